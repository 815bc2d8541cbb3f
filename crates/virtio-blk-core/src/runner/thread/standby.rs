// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread that is there before there is a queue to serve.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that serves one queue after another ([`QueueThread::serve_on`](super::QueueThread::serve_on)) and sleeps in
/// between: for an owner that can't, or must not, make a thread at the moment at which it starts a queue. On a busy machine
/// a thread that is woken also runs sooner than one that was just made, which waits for the end of others' time slices.
///
/// Dropping it waits until the queue that it serves was stopped.
pub struct StandbyThread {
    /// There until this is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl StandbyThread {
    /// Makes a thread with this name, of which the system shows 15 bytes at most.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn spawn(name: String) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let thread = Builder::new().name(name).spawn(move || {
            for job in queue {
                // What it does about a panic of a disk it has done; the thread is there for the next.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Has the thread do `job` after those that it was given before.
    pub(super) fn give(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as this.
            let _ = jobs.send(Box::new(job));
        }
    }
}

impl Drop for StandbyThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for StandbyThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandbyThread").finish_non_exhaustive()
    }
}

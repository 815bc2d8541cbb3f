// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads that call into the library, which blocks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::{Completion, DiskError, Op, OpKind};

use super::image::{Extent, Image};

/// Threads of a disk.
const THREADS: usize = 4;
/// Most operations of a thread that wait together for the tables to be written.
const MAX_BATCH: usize = 64;

/// An operation, and the queue it came from.
struct Job {
    op: Op,
    home: Arc<Home>,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Desk {
    work: Mutex<Work>,
    more: Condvar,
}

/// The threads of a disk. They end when this is dropped, after the work that is left.
pub(super) struct Pool {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// The host has no more threads.
    pub fn new(image: &Arc<Image>) -> io::Result<Self> {
        let mut pool = Self {
            desk: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let (desk, image) = (pool.desk.clone(), image.clone());
            let thread = std::thread::Builder::new()
                .name("qcow2".into())
                .spawn(move || work(&desk, &image))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Hands an operation over. It comes out of `home`.
    pub fn submit(&self, op: Op, home: &Arc<Home>) {
        home.state().pending += 1;
        let home = home.clone();
        let mut work = self
            .desk
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        work.jobs.push_back(Job { op, home });
        drop(work);
        self.desk.more.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.desk
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.desk.more.notify_all();
        for thread in self.threads.drain(..) {
            // A thread can't panic: the library's panics are caught.
            let _ = thread.join();
        }
    }
}

impl Desk {
    /// The next job. `None`: there is none now, or, if `wait`, there never will be.
    fn next(&self, wait: bool) -> Option<Job> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match work.jobs.pop_front() {
                Some(job) => return Some(job),
                None if work.closed || !wait => return None,
                None => work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// What a thread does.
fn work(desk: &Desk, image: &Image) {
    // Done, but their changes of tables are not in the file.
    let mut batch: Vec<(Job, Result<(), DiskError>)> = Vec::new();
    loop {
        let job = if batch.len() < MAX_BATCH {
            desk.next(batch.is_empty())
        } else {
            None
        };
        let Some(Job { op, home }) = job else {
            if batch.is_empty() {
                return;
            }
            write_out(image, &mut batch);
            continue;
        };
        if home.state().closed {
            drop(op);
            home.dropped();
            continue;
        }
        let result = image.execute(&op.kind, &op.buf, &|| home.state().closed);
        if op.kind.is_write() && image.is_unwritten() {
            batch.push((Job { op, home }, result));
        } else {
            finish(image, Job { op, home }, result);
        }
    }
}

/// Writes the tables once for all, and finishes the operations.
fn write_out(image: &Image, batch: &mut Vec<(Job, Result<(), DiskError>)>) {
    for (job, result) in batch.drain(..) {
        // Does nothing if it went well for the first, and gives each its own error if not.
        let result = result.and_then(|()| image.write_out());
        finish(image, job, result);
    }
}

fn finish(image: &Image, job: Job, result: Result<(), DiskError>) {
    let extent = match job.op.kind {
        OpKind::Read { offset } | OpKind::Write { offset, .. } if result.is_ok() => {
            image.learn(offset)
        }
        _ => None,
    };
    job.home.finished(job.op.complete(result), extent);
}

/// What the threads finished for a queue.
#[derive(Debug)]
pub(super) struct Finished {
    pub completion: Completion,
    /// Where the operation's first clusters are now.
    pub extent: Option<Extent>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    done: Vec<Finished>,
    /// Operations with the threads.
    pending: usize,
    closed: bool,
}

/// Where a queue's operations come back.
#[derive(Debug)]
pub(super) struct Home {
    state: Mutex<State>,
    idle: Condvar,
    /// Readable while something is done.
    notifier: OwnedFd,
}

impl Home {
    /// # Errors
    /// The host has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            idle: Condvar::new(),
            notifier: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finished(&self, completion: Completion, extent: Option<Extent>) {
        let mut state = self.state();
        state.pending -= 1;
        if state.done.is_empty() {
            // The counter can't overflow: it is emptied whenever `done` is.
            let _ = rustix::io::write(&self.notifier, &1u64.to_ne_bytes());
        }
        state.done.push(Finished { completion, extent });
        drop(state);
        self.idle.notify_all();
    }

    fn dropped(&self) {
        self.state().pending -= 1;
        self.idle.notify_all();
    }

    /// Moves what is done to the end of `into`.
    pub fn take(&self, into: &mut Vec<Finished>) {
        let mut state = self.state();
        if !state.done.is_empty() {
            into.append(&mut state.done);
            let mut count = [0; 8];
            // It has been written to exactly once.
            let _ = rustix::io::read(&self.notifier, &mut count);
        }
    }

    /// Waits until the threads hold nothing of this queue any more.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        while state.pending > 0 {
            state = self
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}

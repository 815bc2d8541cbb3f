// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An operation with the threads, and the queue that it comes back to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::{Completion, DiskError, Op};

use crate::sync::{lock, wait};

/// An operation that is with the threads. It comes back to its queue once, through [`Job::finish`], however often it
/// changes hands before.
#[derive(Debug)]
pub struct Job {
    op: Op,
    home: Arc<Home>,
    /// Bytes of its range that are done.
    pub done: u64,
    /// Nothing is left of it but a barrier.
    pub last: bool,
}

impl Job {
    /// An operation of the queue that `home` belongs to.
    pub fn new(op: Op, home: &Arc<Home>) -> Self {
        lock(&home.state).pending += 1;
        Self {
            op,
            home: home.clone(),
            done: 0,
            last: false,
        }
    }

    /// The operation.
    pub const fn op(&self) -> &Op {
        &self.op
    }

    /// Whether nobody wants to know any more: its queue is being dropped.
    pub fn is_unwanted(&self) -> bool {
        lock(&self.home.state).closed
    }

    /// Completes the operation.
    pub fn finish(self, result: Result<(), DiskError>) {
        let Self { op, home, .. } = self;
        let mut state = lock(&home.state);
        state.pending -= 1;
        if !state.closed {
            home.ring(&state);
            state.done.push(op.complete(result));
        }
        drop(state);
        home.idle.notify_all();
    }
}

#[derive(Debug, Default)]
struct State {
    done: Vec<Completion>,
    /// Grants whose entries are written, or not.
    written: Vec<(usize, Result<(), DiskError>)>,
    /// Operations and entries with the threads.
    pending: usize,
    closed: bool,
}

impl State {
    const fn is_empty(&self) -> bool {
        self.done.is_empty() && self.written.is_empty()
    }
}

/// Where a queue's operations come back.
#[derive(Debug)]
pub struct Home {
    state: Mutex<State>,
    idle: Condvar,
    /// Readable while something is done.
    bell: OwnedFd,
}

impl Home {
    /// # Errors
    /// The host has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            idle: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Moves what is done to the end of `into`. How the entries of grants were written is returned.
    pub fn take(&self, into: &mut Vec<Completion>) -> Vec<(usize, Result<(), DiskError>)> {
        let mut state = lock(&self.state);
        if !state.is_empty() {
            into.append(&mut state.done);
            let mut count = [0; 8];
            // It has been written to exactly once.
            let _ = rustix::io::read(&self.bell, &mut count);
        }
        std::mem::take(&mut state.written)
    }

    /// Has the queue learn of something that it has finished itself.
    pub fn bring(&self, completion: Completion) {
        let mut state = lock(&self.state);
        self.ring(&state);
        state.done.push(completion);
    }

    /// The threads get entries to write.
    pub fn begin(&self) {
        lock(&self.state).pending += 1;
    }

    /// The entries of a grant are written, or not.
    pub fn wrote(&self, grant: usize, result: Result<(), DiskError>) {
        let mut state = lock(&self.state);
        state.pending -= 1;
        if !state.closed {
            self.ring(&state);
            state.written.push((grant, result));
        }
        drop(state);
        self.idle.notify_all();
    }

    /// Makes the descriptor readable, before something is added.
    fn ring(&self, state: &State) {
        if state.is_empty() {
            // The counter can't overflow: it is emptied whenever everything is taken.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Waits until the threads hold nothing of this queue any more, and moves what is done to the end of `into`.
    pub fn wait(&self, into: &mut Vec<Completion>) {
        let mut state = lock(&self.state);
        while state.pending > 0 {
            state = wait(&self.idle, state);
        }
        drop(state);
        self.take(into);
    }

    /// Waits until the threads hold nothing of this queue any more.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        while state.pending > 0 {
            state = wait(&self.idle, state);
        }
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

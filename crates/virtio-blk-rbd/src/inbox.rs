// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where librbd's threads put what has ended, for the owner of a queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::Completion;

/// An operation that has ended.
pub(crate) struct Ended {
    /// Its place with the owner.
    pub place: usize,
    pub completion: Completion,
}

/// What has ended and was not taken yet. Its descriptor is readable exactly while there is something.
pub(crate) struct Inbox {
    state: Mutex<State>,
    bell: OwnedFd,
    /// Told each time that something ends.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    list: Vec<Ended>,
    /// All that ever ended.
    count: u64,
}

impl Inbox {
    /// Empty, with room for `depth` without an allocation later.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                list: Vec::with_capacity(depth),
                count: 0,
            }),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ended: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation has ended. From any thread.
    pub(crate) fn push(&self, ended: Ended) {
        let mut state = self.lock();
        if state.list.is_empty() {
            // Under the lock: if the list is empty then the descriptor is not readable. It can't be full.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
        state.list.push(ended);
        state.count += 1;
        self.ended.notify_all();
    }

    /// Puts what has ended into `into`, which is empty and takes the list's place.
    pub(crate) fn take(&self, into: &mut Vec<Ended>) {
        let mut state = self.lock();
        if state.list.is_empty() {
            return;
        }
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::swap(&mut state.list, into);
    }

    /// Waits until so many have ended since the beginning.
    pub(crate) fn wait_for(&self, count: u64) {
        let mut state = self.lock();
        while state.count < count {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What to wait on.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

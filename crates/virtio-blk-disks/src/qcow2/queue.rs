// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path: threads that do the work, and a descriptor that tells of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use virtio_blk_core::disk::{
    Caps, Completion, DiskError, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::image::Image;
use crate::admit::Bounds;

#[derive(Default)]
struct State {
    waiting: VecDeque<Op>,
    done: Vec<Completion>,
    closed: bool,
}

/// What the queue shares with its threads.
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// Readable while something is done.
    bell: OwnedFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, state: &mut State, completion: Completion) {
        if state.done.is_empty() {
            // Fails only where it rings already.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
        state.done.push(completion);
    }

    /// Waits for an operation; `None` when the queue is closed.
    fn next(&self) -> Option<Op> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if let Some(op) = state.waiting.pop_front() {
                return Some(op);
            }
            state = (self.work.wait(state)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, image: &Image) {
        let mut bounce = Vec::new();
        while let Some(op) = self.next() {
            let result = image.execute(&op.kind, &op.buf, &mut bounce);
            self.finish(&mut self.state(), op.complete(result));
        }
    }
}

/// A data path of a [`super::Qcow2Disk`].
pub(super) struct Qcow2Queue {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    bounds: Bounds,
    /// Discard and write-zeroes are offered.
    zeroes: bool,
    limit: usize,
    in_flight: usize,
}

impl Qcow2Queue {
    pub(super) fn open(
        image: Arc<Image>,
        caps: Caps,
        depth: u16,
        workers: u16,
    ) -> Result<Self, DiskError> {
        let bell =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let mut this = Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                work: Condvar::new(),
                bell,
            }),
            workers: Vec::with_capacity(usize::from(workers)),
            bounds: Bounds {
                capacity: caps.capacity_bytes(),
                block: caps.align.guest_block,
                read_only: caps.read_only,
            },
            zeroes: caps.discard.is_some(),
            limit: usize::from(depth),
            in_flight: 0,
        };
        for _ in 0..workers {
            let (shared, image) = (this.shared.clone(), image.clone());
            let thread = std::thread::Builder::new()
                .name("vblk-qcow2".into())
                .spawn(move || shared.work(&image))?;
            this.workers.push(thread);
        }
        Ok(this)
    }
}

impl IoQueue for Qcow2Queue {
    fn submit(&mut self, op: Op) -> Submit {
        if let Err(error) = self.bounds.check(&op.kind, op.buf.len()) {
            return Submit::Done(op.complete(Err(error)));
        }
        if !self.zeroes && matches!(op.kind, OpKind::Discard { .. } | OpKind::WriteZeroes { .. }) {
            return Submit::Done(op.complete(Err(DiskError::Unsupported)));
        }
        if self.in_flight >= self.limit {
            return Submit::Full(op);
        }
        self.in_flight += 1;
        self.shared.state().waiting.push_back(op);
        self.shared.work.notify_one();
        Submit::Queued
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let mut state = self.shared.state();
        let count = state.done.len();
        if count != 0 {
            let mut rung = [0; 8];
            // Fails only where it did not ring.
            let _ = rustix::io::read(&self.shared.bell, &mut rung);
            done.append(&mut state.done);
        }
        self.in_flight -= count;
        Ok(count)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Fd(self.shared.bell.as_fd())
    }

    fn cancel(&mut self, token: Token) {
        let mut state = self.shared.state();
        let found = state.waiting.iter().position(|op| op.token == token);
        if let Some(op) = found.and_then(|index| state.waiting.remove(index)) {
            let completion = op.complete(Err(DiskError::Cancelled));
            self.shared.finish(&mut state, completion);
        }
    }
}

impl Drop for Qcow2Queue {
    /// Waits for what a thread works on; what none has begun is dropped.
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A panic was reported by the thread.
            let _ = worker.join();
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A broken queue: it takes nothing new and returns nothing, and still collects what the disk has, so that a
//! reset finds it at rest.

use super::QueueRunner;
use crate::memory::DeviceMemory;

impl<M: DeviceMemory> QueueRunner<M> {
    /// Has the disk finish early what it still has. What it was not given yet is forgotten.
    #[cold]
    pub(super) fn cancel_outstanding(&mut self) {
        for op in std::mem::take(&mut self.stalled) {
            self.slab.release(op.token);
        }
        if let Some(io) = &mut self.io {
            for token in self.slab.busy() {
                io.cancel(token);
            }
            io.release_held();
        }
        self.poll_broken();
    }

    /// Collects what the disk has finished.
    #[cold]
    pub(super) fn poll_broken(&mut self) {
        let Some(io) = &mut self.io else {
            return;
        };
        let mut done = std::mem::take(&mut self.done);
        let started = if std::mem::take(&mut self.unflushed) {
            io.flush_batch()
        } else {
            Ok(())
        };
        let reaped = io.reap(&mut done);
        for completion in done.drain(..) {
            if self.slab.get(completion.token).is_some() {
                self.slab.release(completion.token);
            }
        }
        self.done = done;
        self.slab.release_memory();
        if started.is_err() || reaped.is_err() {
            // Dropping it waits until no buffer is used any more.
            self.io = None;
            for token in self.slab.busy() {
                self.slab.release(token);
            }
        }
    }
}

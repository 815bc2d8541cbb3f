// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that fails all requests: for a guest that neither path can serve.

use virtio_blk_core::disk::{Caps, Completion, Disk, DiskError, IoQueue, Op, Submit, Wait};

/// Fails everything.
pub(super) struct FailedDisk(pub(super) Caps);

struct FailedQueue;

impl Disk for FailedDisk {
    fn caps(&self) -> Caps {
        self.0
    }

    fn open_queue(&self, _depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(FailedQueue))
    }
}

impl IoQueue for FailedQueue {
    fn submit(&mut self, op: Op) -> Submit {
        Submit::Done(op.complete(Err(DiskError::from_errno(libc::EIO))))
    }

    fn reap(&mut self, _done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        Ok(0)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Inline
    }
}

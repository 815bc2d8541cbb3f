// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What lies behind the end of the disk, before it grows.

use virtio_blk_core::disk::{DiskError, IoBuf, Op, OpKind, Token};

use super::Qcow2Queue;
use crate::image::broken;
use crate::job::Job;

impl Qcow2Queue {
    /// Has bytes that lie behind the end of the disk, within its last cluster, read as zeroes, stably so. Waits for that; no
    /// other operation was given to the queue.
    ///
    /// # Errors
    /// The disk's; a damaged image.
    pub fn clear(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let kind = OpKind::WriteZeroes {
            offset,
            len,
            unmap: false,
            fua: true,
        };
        let op = Op {
            token: Token(0),
            kind,
            buf: IoBuf::new(),
        };
        self.pool.put(Job::new(op, &self.share.0));
        let mut done = Vec::new();
        self.share.0.wait(&mut done);
        done.pop()
            .map_or_else(|| Err(broken()), |completion| completion.result)
    }
}

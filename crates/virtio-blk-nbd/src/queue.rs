// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue of a disk.

use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::disk::{Completion, DiskError, IoQueue, Op, OpKind, Submit, Token, Wait};

use crate::link::Link;
use crate::shared::Shared;
use crate::waiter::Waiter;

/// A queue of a disk: a member of a connection.
pub(crate) struct NbdQueue {
    shared: Arc<Shared>,
    link: Arc<Link>,
    who: usize,
    waiter: Arc<Waiter>,
}

impl NbdQueue {
    /// A queue that uses `link`.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn open(
        shared: Arc<Shared>,
        link: Arc<Link>,
        depth: u16,
    ) -> Result<Self, DiskError> {
        let waiter = Arc::new(Waiter::new()?);
        let who = link.join(waiter.clone(), depth)?;
        Ok(Self {
            shared,
            link,
            who,
            waiter,
        })
    }

    /// Checks an operation whose buffer holds `len` bytes. Returns whether there is anything to do.
    fn admit(&self, kind: &OpKind, len: usize) -> Result<bool, DiskError> {
        let caps = self.shared.caps();
        if caps.read_only && kind.is_write() {
            return Err(DiskError::ReadOnly);
        }
        if let Some((offset, len)) = kind.range(len as u64) {
            if !caps.contains(offset, len) {
                return Err(DiskError::OutOfRange);
            }
            if (offset | len) & (u64::from(caps.align.guest_block) - 1) != 0 {
                return Err(DiskError::Misaligned);
            }
        }
        let len = match kind {
            OpKind::Read { .. } | OpKind::Write { .. } => len as u64,
            OpKind::Flush => return Ok(true),
            OpKind::Discard { len, .. } if caps.discard.is_some() => *len,
            OpKind::WriteZeroes { len, .. } if caps.write_zeroes.is_some() => *len,
            _ => return Err(DiskError::Unsupported),
        };
        Ok(len != 0)
    }
}

impl IoQueue for NbdQueue {
    fn submit(&mut self, op: Op) -> Submit {
        match self.admit(&op.kind, op.buf.len()) {
            Ok(true) => self.link.submit(self.who, op),
            Ok(false) => Submit::Done(op.complete(Ok(()))),
            Err(error) => Submit::Done(op.complete(Err(error))),
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.link.send(self.who);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.waiter.come();
        Ok(self.link.reap(self.who, done))
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Fd(self.waiter.as_fd())
    }

    fn deadline(&self) -> Option<Instant> {
        self.link.deadline(self.who)
    }

    fn release_held(&mut self) {
        self.link.release(self.who);
    }

    fn cancel(&mut self, token: Token) {
        self.link.cancel(self.who, token);
    }
}

impl Drop for NbdQueue {
    /// Waits at most a second, for replies to changes that the server has.
    fn drop(&mut self) {
        self.link.leave(self.who);
    }
}

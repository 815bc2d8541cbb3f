// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue whose changes are marked in the image's bitmaps.

use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::PersistentBitmap;

/// A queue whose changes are marked before they are made.
pub struct MarkingQueue<Q> {
    inner: Q,
    bitmaps: Vec<Arc<PersistentBitmap>>,
}

impl<Q: IoQueue> MarkingQueue<Q> {
    /// A queue over `inner`, for these bitmaps.
    pub const fn new(inner: Q, bitmaps: Vec<Arc<PersistentBitmap>>) -> Self {
        Self { inner, bitmaps }
    }

    fn mark(&self, kind: &OpKind, len: usize) {
        if let Some((offset, len)) = kind.range(len as u64).filter(|_| kind.is_write()) {
            for bitmap in &self.bitmaps {
                bitmap.mark(offset, len);
            }
        }
    }
}

impl<Q: IoQueue> IoQueue for MarkingQueue<Q> {
    fn submit(&mut self, op: Op) -> Submit {
        self.mark(&op.kind, op.buf.len());
        self.inner.submit(op)
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf, token: Option<Token>) -> Execute {
        self.mark(kind, buf.len());
        self.inner.execute(kind, buf, token)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn release_held(&mut self) {
        self.inner.release_held();
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
}

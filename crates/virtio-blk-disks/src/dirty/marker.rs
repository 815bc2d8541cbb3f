// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is marked when operations end.

use std::sync::Arc;

use arc_swap::ArcSwap;
use virtio_blk_core::disk::{Completion, DiskError, IoBuf, IoQueue, Op, OpKind};

use super::Bitmaps;
use crate::observe::Observer;

/// First byte and length of what an operation changes.
type Range = Option<(u64, u64)>;

/// Marks what operations of a [`super::DirtyDisk`] changed.
pub(super) struct Marker {
    pub(super) bitmaps: Arc<ArcSwap<Bitmaps>>,
}

fn changed(kind: &OpKind, data_len: usize) -> Range {
    kind.range(data_len as u64).filter(|_| kind.is_write())
}

impl Marker {
    /// Marks what an operation changed that has ended.
    fn mark(&self, range: Range) {
        if let Some((offset, len)) = range {
            for (_, bitmap) in self.bitmaps.load().iter() {
                bitmap.mark(offset, len);
            }
        }
    }
}

impl Observer for Marker {
    type Noted = Range;

    fn begin(&mut self, op: &Op) -> Range {
        changed(&op.kind, op.buf.len())
    }

    fn end(&mut self, range: Range, _: &mut Completion) {
        self.mark(range);
    }

    fn dropped(&mut self, range: Range) {
        self.mark(range);
    }

    fn execute(
        &mut self,
        inner: &mut dyn IoQueue,
        kind: &OpKind,
        buf: &IoBuf,
    ) -> Option<Result<(), DiskError>> {
        let result = inner.execute(kind, buf)?;
        self.mark(changed(kind, buf.len()));
        Some(result)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is marked when operations end.

use std::sync::Arc;

use arc_swap::ArcSwap;
use virtio_blk_core::disk::{Completion, DiskError, Execute, IoBuf, IoQueue, Op, OpKind, Token};

use super::Bitmaps;
use super::persist::Persist;
use crate::observe::Observer;

/// First byte and length of what an operation changes.
pub(super) type ByteRange = Option<(u64, u64)>;

/// Marks what operations of a [`super::DirtyDisk`] changed.
pub(super) struct DirtyMarker {
    pub(super) bitmaps: Arc<ArcSwap<Bitmaps>>,
}

#[inline]
fn changed(kind: &OpKind, data_len: usize) -> ByteRange {
    kind.range(data_len as u64).filter(|_| kind.is_write())
}

/// Marks what an operation changed when it has ended, and needs to know nothing of it before.
pub(super) trait EndMarker: Send {
    fn mark(&self, range: ByteRange);
}

impl EndMarker for DirtyMarker {
    #[inline]
    fn mark(&self, range: ByteRange) {
        if let Some((offset, len)) = range {
            for (_, bitmap) in self.bitmaps.load().iter() {
                bitmap.mark(offset, len);
            }
        }
    }
}

impl<M: EndMarker> Observer for M {
    type Noted = ByteRange;

    fn begin(&mut self, op: &Op) -> ByteRange {
        changed(&op.kind, op.buf.len())
    }

    fn end(&mut self, range: ByteRange, _: &mut Completion) {
        self.mark(range);
    }

    fn dropped(&mut self, range: ByteRange) {
        self.mark(range);
    }

    const EXECUTES: bool = true;

    fn execute(&mut self, inner: &mut dyn IoQueue, kind: &OpKind, buf: &IoBuf) -> Execute {
        let executed = inner.execute(kind, buf, None);
        if let Execute::Done(_) = executed {
            self.mark(changed(kind, buf.len()));
        }
        executed
    }
}

/// The same where one of the bitmaps has a file, which is written before the disk.
pub(super) struct PersistentMarker {
    pub(super) marker: DirtyMarker,
    pub(super) file: Arc<Persist>,
}

impl PersistentMarker {
    fn ended(&self, range: ByteRange) {
        self.marker.mark(range);
        self.withdrawn(range);
    }

    fn withdrawn(&self, range: ByteRange) {
        if let Some(range) = range {
            self.file.end(range);
        }
    }
}

impl Observer for PersistentMarker {
    type Noted = ByteRange;

    fn check(&self, kind: &OpKind, data_len: usize) -> Result<(), DiskError> {
        changed(kind, data_len).map_or(Ok(()), |range| self.file.begin(range))
    }

    fn begin(&mut self, op: &Op) -> ByteRange {
        changed(&op.kind, op.buf.len())
    }

    fn end(&mut self, range: ByteRange, _: &mut Completion) {
        self.ended(range);
    }

    fn refused(&mut self, range: ByteRange, _: Token) {
        self.withdrawn(range);
    }

    fn dropped(&mut self, range: ByteRange) {
        self.ended(range);
    }

    const EXECUTES: bool = true;

    fn execute(&mut self, inner: &mut dyn IoQueue, kind: &OpKind, buf: &IoBuf) -> Execute {
        if let Err(error) = self.check(kind, buf.len()) {
            return Execute::Done(Err(error));
        }
        let range = changed(kind, buf.len());
        let executed = inner.execute(kind, buf, None);
        match executed {
            Execute::Done(_) => self.ended(range),
            // It comes again, as an operation.
            _ => self.withdrawn(range),
        }
        executed
    }
}

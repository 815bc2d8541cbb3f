// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path whose changes are marked.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};

use super::Bitmaps;
use crate::in_flight::InFlight;

/// First byte and length of what an operation changes.
type Range = Option<(u64, u64)>;

/// What is marked when operations end.
struct Marks {
    bitmaps: Arc<ArcSwap<Bitmaps>>,
    below: InFlight<Range>,
}

/// A data path of a [`super::DirtyDisk`].
pub(super) struct DirtyQueue {
    inner: Box<dyn IoQueue>,
    /// Dropped last: what was in flight is marked once it can't have an effect any more.
    marks: Marks,
}

fn changed(kind: &OpKind, data_len: usize) -> Range {
    kind.range(data_len as u64).filter(|_| kind.is_write())
}

impl Marks {
    /// Marks what an operation changed that has ended.
    fn mark(&self, range: Range) {
        if let Some((offset, len)) = range {
            for (_, bitmap) in self.bitmaps.load().iter() {
                bitmap.mark(offset, len);
            }
        }
    }

    /// Marks what a completion stands for, and gives it its own token again. `None` if the disk
    /// underneath invented it.
    fn end(&mut self, completion: &mut Completion) -> Option<()> {
        let (token, range) = self.below.remove(completion.token)?;
        self.mark(range);
        completion.token = token;
        Some(())
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        for range in self.below.values() {
            self.mark(*range);
        }
    }
}

impl DirtyQueue {
    pub(super) fn new(bitmaps: Arc<ArcSwap<Bitmaps>>, inner: Box<dyn IoQueue>, depth: u16) -> Self {
        Self {
            inner,
            marks: Marks {
                bitmaps,
                below: InFlight::new(usize::from(depth)),
            },
        }
    }
}

impl IoQueue for DirtyQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let outer = op.token;
        let token = self
            .marks
            .below
            .insert(outer, changed(&op.kind, op.buf.len()));
        match self.inner.submit(Op { token, ..op }) {
            Submit::Queued => Submit::Queued,
            Submit::Done(mut completion) => {
                completion.token = token;
                self.marks.end(&mut completion);
                Submit::Done(completion)
            }
            Submit::Full(op) => {
                self.marks.below.remove(token);
                Submit::Full(Op { token: outer, ..op })
            }
        }
    }

    fn execute(&mut self, kind: &OpKind, buf: &IoBuf) -> Option<Result<(), DiskError>> {
        let result = self.inner.execute(kind, buf)?;
        self.marks.mark(changed(kind, buf.len()));
        Some(result)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let first = done.len();
        let result = self.inner.reap(done);
        let mut at = first;
        while let Some(completion) = done.get_mut(at) {
            match self.marks.end(completion) {
                Some(()) => at += 1,
                None => drop(done.remove(at)),
            }
        }
        result.map(|_| done.len() - first)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn cancel(&mut self, token: Token) {
        if let Some(inner) = self.marks.below.find(token) {
            self.inner.cancel(inner);
        }
    }
}

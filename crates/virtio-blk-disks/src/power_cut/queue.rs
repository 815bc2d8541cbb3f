// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path whose changes are noted.

use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, IoQueue, Op, OpKind, SECTOR_SIZE, Submit, Token, Wait,
};

use super::Shared;
use super::history::{Begun, Content, Moment, SECTOR};
use crate::in_flight::InFlight;

/// What is noted of an operation.
enum Noted {
    Change(Begun),
    Flush(Moment),
    Nothing,
}

/// A data path of a [`super::PowerCutDisk`].
pub(super) struct PowerCutQueue {
    history: Shared,
    inner: Box<dyn IoQueue>,
    below: InFlight<Noted>,
}

impl PowerCutQueue {
    pub(super) fn new(history: Shared, inner: Box<dyn IoQueue>, depth: u16) -> Self {
        Self {
            history,
            inner,
            below: InFlight::new(usize::from(depth)),
        }
    }

    fn note(&self, op: &Op) -> Noted {
        let mut history = self.history.get();
        let of = |content: Content, len: u64| {
            std::iter::repeat_n(content, usize::try_from(len / SECTOR_SIZE).unwrap_or(0))
        };
        match op.kind {
            OpKind::Write { offset, fua } => {
                let data = op.buf.to_vec();
                let sectors = data.chunks_exact(SECTOR).map(|s| Content::Data(s.into()));
                Noted::Change(history.submit(offset / SECTOR_SIZE, sectors, fua))
            }
            OpKind::WriteZeroes {
                offset, len, fua, ..
            } => Noted::Change(history.submit(offset / SECTOR_SIZE, of(Content::Zero, len), fua)),
            OpKind::Discard { offset, len } | OpKind::SecureErase { offset, len } => {
                Noted::Change(history.submit(offset / SECTOR_SIZE, of(Content::Any, len), false))
            }
            OpKind::Flush => Noted::Flush(history.submit_flush()),
            _ => Noted::Nothing,
        }
    }

    /// Notes an end, and gives the completion its own token again. `None` if the disk underneath invented
    /// it.
    fn end(&mut self, completion: &mut Completion) -> Option<()> {
        let (token, noted) = self.below.remove(completion.token)?;
        completion.token = token;
        let done = completion.result.is_ok();
        match noted {
            Noted::Change(begun) => self.history.get().end(begun, done),
            Noted::Flush(submitted) if done => self.history.get().complete_flush(submitted),
            Noted::Flush(_) | Noted::Nothing => {}
        }
        Some(())
    }
}

impl IoQueue for PowerCutQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let outer = op.token;
        let noted = self.note(&op);
        let token = self.below.insert(outer, noted);
        match self.inner.submit(Op { token, ..op }) {
            Submit::Queued => Submit::Queued,
            Submit::Done(mut completion) => {
                completion.token = token;
                self.end(&mut completion);
                Submit::Done(completion)
            }
            Submit::Full(op) => {
                if let Some((_, Noted::Change(begun))) = self.below.remove(token) {
                    self.history.get().withdraw(begun);
                }
                Submit::Full(Op { token: outer, ..op })
            }
        }
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let first = done.len();
        let result = self.inner.reap(done);
        let mut at = first;
        while let Some(completion) = done.get_mut(at) {
            match self.end(completion) {
                Some(()) => at += 1,
                None => drop(done.remove(at)),
            }
        }
        result.map(|_| at - first)
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.inner.deadline()
    }

    fn cancel(&mut self, token: Token) {
        if let Some(inner) = self.below.find(token) {
            self.inner.cancel(inner);
        }
    }
}

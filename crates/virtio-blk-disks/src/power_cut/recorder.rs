// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is noted of operations.

use virtio_blk_core::disk::{Completion, Op, OpKind, SECTOR_SIZE, Token};

use super::Shared;
use super::history::{Begun, Content, Moment, SECTOR};
use crate::observe::Observer;

/// What is noted of an operation.
pub(super) enum Noted {
    Change(Begun),
    Flush(Moment),
    Nothing,
}

/// Notes what happens to a [`super::PowerCutDisk`].
pub(super) struct Recorder {
    pub(super) history: Shared,
}

impl Observer for Recorder {
    type Noted = Noted;

    fn begin(&mut self, op: &Op) -> Noted {
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

    fn end(&mut self, noted: Noted, completion: &mut Completion) {
        let done = completion.result.is_ok();
        match noted {
            Noted::Change(begun) => self.history.get().end(begun, done),
            Noted::Flush(submitted) if done => self.history.get().complete_flush(submitted),
            Noted::Flush(_) | Noted::Nothing => {}
        }
    }

    fn refused(&mut self, noted: Noted, _: Token) {
        if let Noted::Change(begun) = noted {
            self.history.get().withdraw(begun);
        }
    }

    fn dropped(&mut self, noted: Noted) {
        if let Noted::Change(begun) = noted {
            self.history.get().end(begun, false);
        }
    }
}

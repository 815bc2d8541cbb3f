// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One data path whose answers are checked.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use virtio_blk_core::disk::{
    Completion, DiskError, IoBuf, IoQueue, Op, OpKind, SECTOR_SIZE, Submit, Token, Wait,
};

use super::sums::{Known, Seen, sum};
use super::{Lie, MAX_ERASE_SECTORS, Shared};
use crate::in_flight::InFlight;

/// Bytes of a sector.
const SECTOR: usize = SECTOR_SIZE as usize;

/// What is remembered of an operation in flight.
enum Noted {
    /// The first sector and how each was.
    Read(u64, Vec<Seen>),
    /// The first sector and what each will hold.
    Change(u64, Vec<Known>),
    Nothing,
}

/// A data path of a [`super::VerifyDisk`].
pub(super) struct VerifyQueue {
    shared: Arc<Shared>,
    inner: Box<dyn IoQueue>,
    below: InFlight<Noted>,
}

/// The checksum of each sector of a buffer.
fn sums(buf: &IoBuf) -> impl Iterator<Item = u64> {
    (0..buf.len() / SECTOR).map(|index| {
        let mut sector = [0; SECTOR];
        buf.copy_out(index * SECTOR, &mut sector);
        sum(&sector)
    })
}

impl VerifyQueue {
    pub(super) fn new(shared: Arc<Shared>, inner: Box<dyn IoQueue>, depth: u16) -> Self {
        Self {
            shared,
            inner,
            below: InFlight::new(usize::from(depth)),
        }
    }

    fn note(&self, op: &Op) -> Noted {
        let Some((offset, len)) = op.kind.range(op.buf.len() as u64) else {
            return Noted::Nothing;
        };
        let first = offset / SECTOR_SIZE;
        // A buffer's length, or within the limit for erasing.
        let count = usize::try_from(len / SECTOR_SIZE).unwrap_or(0);
        let sums_of = &self.shared.sums;
        let left: Vec<Known> = match op.kind {
            OpKind::Read { .. } => {
                let seen = (first..).take(count).map(|sector| sums_of.look(sector));
                return Noted::Read(first, seen.collect());
            }
            OpKind::Write { .. } => sums(&op.buf).map(Known::Sum).collect(),
            OpKind::WriteZeroes { .. } => vec![Known::Sum(sum(&[0; SECTOR])); count],
            _ => vec![Known::Loose; count],
        };
        for (sector, _) in (first..).zip(&left) {
            sums_of.begin(sector);
        }
        Noted::Change(first, left)
    }

    /// Forgets or finishes what was noted.
    fn end(&mut self, completion: &mut Completion) -> Option<()> {
        let (token, noted) = self.below.remove(completion.token)?;
        completion.token = token;
        let done = completion.result.is_ok();
        match noted {
            Noted::Change(first, left) => self.settle(first, left, done),
            Noted::Read(first, seen) if done => {
                for ((sector, seen), found) in (first..).zip(seen).zip(sums(&completion.buf)) {
                    if !self.shared.sums.check(sector, seen, found) {
                        let lie = Lie { sector };
                        let _ = self.shared.lie.set(lie);
                        completion.result = Err(io::Error::other(lie).into());
                    }
                }
            }
            Noted::Read(..) | Noted::Nothing => {}
        }
        Some(())
    }

    fn settle(&self, first: u64, left: Vec<Known>, done: bool) {
        for (sector, left) in (first..).zip(left) {
            self.shared.sums.end(sector, done.then_some(left));
        }
    }
}

impl IoQueue for VerifyQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let too_long = |len| len > MAX_ERASE_SECTORS * SECTOR_SIZE;
        match op.kind {
            OpKind::Discard { len, .. }
            | OpKind::SecureErase { len, .. }
            | OpKind::WriteZeroes { len, .. }
                if too_long(len) =>
            {
                return Submit::Done(op.complete(Err(DiskError::Unsupported)));
            }
            _ => {}
        }
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
                if let Some((_, Noted::Change(first, left))) = self.below.remove(token) {
                    self.settle(first, left, false);
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

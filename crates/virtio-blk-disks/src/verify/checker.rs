// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is compared.

use std::io;
use std::sync::Arc;

use virtio_blk_core::disk::{Completion, DiskError, IoBuf, Op, OpKind, SECTOR_SIZE, Token};

use super::sums::{Known, Seen, sum};
use super::{MAX_ERASE_SECTORS, Mismatch, Shared};
use crate::observe::Observer;

/// Bytes of a sector.
const SECTOR: usize = SECTOR_SIZE as usize;

/// What is remembered of an operation in flight.
pub(super) enum Noted {
    /// The first sector and how each was.
    Read(u64, Vec<Seen>),
    /// The first sector and what each will hold.
    Change(u64, Vec<Known>),
    Nothing,
}

/// Compares what a [`super::VerifyDisk`] reads.
pub(super) struct Checker {
    pub(super) shared: Arc<Shared>,
}

/// The checksum of each sector of a buffer.
fn sums(buf: &IoBuf) -> impl Iterator<Item = u64> {
    (0..buf.len() / SECTOR).map(|index| {
        let mut sector = [0; SECTOR];
        buf.copy_out(index * SECTOR, &mut sector);
        sum(&sector)
    })
}

impl Checker {
    fn settle(&self, first: u64, left: Vec<Known>, done: bool) {
        for (sector, left) in (first..).zip(left) {
            self.shared.sums.end(sector, done.then_some(left));
        }
    }
}

impl Observer for Checker {
    type Noted = Noted;

    fn check(&self, kind: &OpKind, _: usize) -> Result<(), DiskError> {
        match *kind {
            OpKind::Discard { len, .. }
            | OpKind::SecureErase { len, .. }
            | OpKind::WriteZeroes { len, .. }
                if len > MAX_ERASE_SECTORS * SECTOR_SIZE =>
            {
                Err(DiskError::Unsupported)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, op: &Op) -> Noted {
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

    fn end(&mut self, noted: Noted, completion: &mut Completion) {
        let done = completion.result.is_ok();
        match noted {
            Noted::Change(first, left) => self.settle(first, left, done),
            Noted::Read(first, seen) if done => {
                for ((sector, seen), found) in (first..).zip(seen).zip(sums(&completion.buf)) {
                    if !self.shared.sums.check(sector, seen, found) {
                        let mismatch = Mismatch { sector };
                        let _ = self.shared.mismatch.set(mismatch);
                        completion.result = Err(io::Error::other(mismatch).into());
                    }
                }
            }
            Noted::Read(..) | Noted::Nothing => {}
        }
    }

    fn refused(&mut self, noted: Noted, _: Token) {
        if let Noted::Change(first, left) = noted {
            for (sector, _) in (first..).zip(left) {
                self.shared.sums.withdraw(sector);
            }
        }
    }

    fn dropped(&mut self, noted: Noted) {
        if let Noted::Change(first, left) = noted {
            self.settle(first, left, false);
        }
    }
}

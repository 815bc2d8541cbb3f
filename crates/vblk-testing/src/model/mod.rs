// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk may contain, given everything that was asked of it and what is still in flight.
//!
//! Each sector keeps the writes that a read may still see. Times come from one counter: a write is
//! *submitted* before the device can know of it and *completed* after the driver saw its completion, so
//! the recorded interval always encloses the real one, and whatever the model forbids is forbidden.
//!
//! - A completed write hides the writes that were completed before it was submitted.
//! - Overlapping writes may take effect in any order, and a sector under several writes may be a mix of
//!   them: the protocol promises no atomicity.
//! - A read may see what was not hidden when it was submitted, and any write submitted before it
//!   completed.
//! - A read with no write around it settles the sector: later reads must see the same.
//! - A discarded sector holds either its old content or zeroes. That is stricter than the standard,
//!   which allows anything; but no server here has a reason to answer with anything else, and foreign
//!   data there would be a leak.

mod sector;

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::pattern::{self, Stamp};
use crate::{Error, SECTOR};
use sector::Sector;

/// Sectors under one lock.
const CHUNK: u64 = 64;

/// A moment on the model's clock.
type Time = u64;

/// What a change leaves behind in each sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The pattern of a write.
    Data(Stamp),
    /// Zeroes.
    Zero,
    /// The old content or zeroes.
    Discard,
}

/// A change in flight, to be given back to [`Model::end_write`].
#[derive(Debug)]
pub struct WriteTicket {
    range: Range<u64>,
    submitted: Time,
}

/// A read in flight, to be given back to [`Model::end_read`].
#[derive(Debug)]
pub struct ReadTicket {
    range: Range<u64>,
    submitted: Time,
}

/// How much freedom a read's sectors had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freedom {
    /// Sectors that could hold more than one content.
    pub ambiguous: u64,
    /// Sectors that were a mix of several writes.
    pub mixed: u64,
}

/// A sector that no history explains.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The sector.
    pub sector: u64,
    /// What was read.
    pub found: String,
    /// Writes that could have been seen.
    pub allowed: Vec<Stamp>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {} holds {}", self.sector, self.found)?;
        f.write_str("; allowed: ")?;
        for (i, stamp) in self.allowed.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match *stamp {
                Stamp::ZERO => write!(f, "{comma}zeroes")?,
                stamp => write!(f, "{comma}write {}", stamp.0)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mismatch {}

/// A model of a run of sectors, shared by all that read and write them.
#[derive(Debug)]
pub struct Model {
    first: u64,
    chunks: Vec<Mutex<Vec<Sector>>>,
    clock: AtomicU64,
    next_stamp: AtomicU64,
    range: Range<u64>,
}

impl Model {
    /// A model of the sectors `range`, which all hold `initial` and have nothing in flight.
    pub fn new(range: Range<u64>, initial: Stamp) -> Self {
        let first = range.start - range.start % CHUNK;
        let chunks = (range.end - first).div_ceil(CHUNK);
        Self {
            first,
            chunks: (0..chunks)
                .map(|_| Mutex::new((0..CHUNK).map(|_| Sector::new(initial)).collect()))
                .collect(),
            clock: AtomicU64::new(1),
            next_stamp: AtomicU64::new(Stamp::FIRST.0),
            range,
        }
    }

    /// The sectors it covers.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// A stamp no other write has.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.next_stamp.fetch_add(1, Ordering::Relaxed))
    }

    /// To be called before a change to the sectors `range` is submitted. The range lies inside the
    /// model's.
    pub fn begin_write(&self, range: Range<u64>, effect: Effect) -> WriteTicket {
        let submitted = self.tick();
        self.each(range.clone(), |_, sector| {
            sector.begin_write(submitted, effect);
        });
        WriteTicket { range, submitted }
    }

    /// To be called after a change's completion was seen.
    pub fn end_write(&self, ticket: WriteTicket) {
        let completed = self.tick();
        self.each(ticket.range, |_, sector| {
            sector.end_write(ticket.submitted, completed);
        });
    }

    /// To be called before a read of the sectors `range` is submitted. The range lies inside the
    /// model's.
    pub fn begin_read(&self, range: Range<u64>) -> ReadTicket {
        let submitted = self.tick();
        self.each(range.clone(), |_, sector| sector.begin_read());
        ReadTicket { range, submitted }
    }

    /// To be called after a read's completion was seen, with what it returned.
    ///
    /// # Errors
    /// The first sector whose content nothing explains. The rest is not looked at.
    pub fn end_read(&self, ticket: ReadTicket, data: &[u8]) -> Result<Freedom, Box<Mismatch>> {
        debug_assert_eq!(
            data.len() as u64,
            (ticket.range.end - ticket.range.start) * SECTOR as u64
        );
        let mut freedom = Freedom::default();
        let mut wrong = None;
        let mut data = data.chunks_exact(SECTOR);
        self.each(ticket.range, |number, sector| {
            let Some(data) = data.next() else { return };
            match sector.end_read(number, ticket.submitted, data) {
                Ok(sector::Seen::Only) => {}
                Ok(sector::Seen::OneOfSeveral) => freedom.ambiguous += 1,
                Ok(sector::Seen::Mix) => {
                    freedom.ambiguous += 1;
                    freedom.mixed += 1;
                }
                Err(allowed) => {
                    wrong.get_or_insert_with(|| {
                        Box::new(Mismatch {
                            sector: number,
                            found: pattern::describe(data),
                            allowed,
                        })
                    });
                }
            }
        });
        wrong.map_or(Ok(freedom), Err)
    }

    /// Compares a raw image with the model, once nothing is in flight.
    ///
    /// # Errors
    /// The file can't be read, or a sector of it is wrong.
    pub fn check_file(&self, path: &Path) -> Result<(), Error> {
        use std::os::unix::fs::FileExt as _;
        let fail = || Error::io(format!("{}", path.display()));
        let file = File::open(path).map_err(fail())?;
        let mut data = vec![0; CHUNK as usize * SECTOR];
        let mut at = self.range.start;
        while at < self.range.end {
            let end = self.range.end.min(at + CHUNK);
            let data = &mut data[..(end - at) as usize * SECTOR];
            file.read_exact_at(data, at * SECTOR as u64)
                .map_err(fail())?;
            let ticket = self.begin_read(at..end);
            self.end_read(ticket, data)?;
            at = end;
        }
        Ok(())
    }

    fn tick(&self) -> Time {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn each(&self, range: Range<u64>, mut f: impl FnMut(u64, &mut Sector)) {
        debug_assert!(range.start >= self.range.start && range.end <= self.range.end);
        let mut at = range.start;
        while at < range.end {
            let chunk = (at - self.first) / CHUNK;
            let end = range.end.min(self.first + (chunk + 1) * CHUNK);
            let mut sectors = self.chunks[chunk as usize]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for number in at..end {
                f(
                    number,
                    &mut sectors[((number - self.first) % CHUNK) as usize],
                );
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests;

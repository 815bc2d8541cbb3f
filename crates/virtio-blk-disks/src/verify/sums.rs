// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of each sector.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Mutex, PoisonError};

/// Sectors that share a lock: those of one megabyte.
const SHARD_SECTORS: u64 = 2048;
const SHARDS: usize = 32;

/// What a sector must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Known {
    /// What the next read finds, and from then on the same.
    #[default]
    Unseen,
    /// Something with this checksum.
    Sum(u64),
    /// Anything, and not always the same: it was discarded.
    Loose,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sector {
    known: Known,
    /// Changes in flight.
    changing: u32,
    /// Several were in flight at a time, or one failed: nobody knows which is there.
    mixed: bool,
    /// Counts changes that began.
    version: u32,
}

/// How a sector was when a read of it began; the read says something if that has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    version: u32,
    quiet: bool,
}

/// Checksums by sector, of those that were read or written.
#[derive(Default)]
pub(super) struct Sums {
    shards: [Mutex<HashMap<u64, Sector>>; SHARDS],
}

/// The checksum of a sector's content.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl Sums {
    fn with<R>(&self, sector: u64, f: impl FnOnce(&mut Sector) -> R) -> R {
        let shard = &self.shards[(sector / SHARD_SECTORS % SHARDS as u64) as usize];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        f(shard.entry(sector).or_default())
    }

    /// Forgets all sectors.
    pub(super) fn forget(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// A change of a sector begins: nothing is known of it until it has ended.
    pub(super) fn begin(&self, sector: u64) {
        self.with(sector, |state| {
            state.mixed |= state.changing != 0;
            state.changing += 1;
            state.version = state.version.wrapping_add(1);
        });
    }

    /// A change of a sector has ended and left this; `None` if it failed.
    pub(super) fn end(&self, sector: u64, left: Option<Known>) {
        self.with(sector, |state| {
            state.changing = state.changing.saturating_sub(1);
            state.mixed |= left.is_none();
            state.known = match left {
                Some(known) if !state.mixed => known,
                _ => Known::Unseen,
            };
            state.mixed &= state.changing != 0;
        });
    }

    /// A change that began did not happen after all. What is known stays, unless another one is in flight.
    pub(super) fn withdraw(&self, sector: u64) {
        self.with(sector, |state| {
            state.changing = state.changing.saturating_sub(1);
            state.mixed &= state.changing != 0;
        });
    }

    /// How a sector is, for a read that begins.
    pub(super) fn look(&self, sector: u64) -> Seen {
        self.with(sector, |state| Seen {
            version: state.version,
            quiet: state.changing == 0,
        })
    }

    /// Compares what a read found, which began when the sector was as `seen`. Returns whether it may be
    /// so.
    pub(super) fn check(&self, sector: u64, seen: Seen, found: u64) -> bool {
        self.with(sector, |state| {
            if !seen.quiet || seen.version != state.version {
                return true;
            }
            match state.known {
                Known::Sum(sum) => sum == found,
                Known::Loose => true,
                Known::Unseen => {
                    state.known = Known::Sum(found);
                    true
                }
            }
        })
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a bitmap says of changes.

use std::fmt;

use super::words::BITS;

/// Since when a bitmap's marks are: of which start of it, and after how many commits. Two results of one generation
/// are about changes since the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Drawn at random when the bitmap was started. It outlives a restart with the bitmap's file.
    pub id: u64,
    /// Commits, and new starts.
    pub number: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.id, self.number)
    }
}

/// Names what was taken from a bitmap. `Display` writes what `FromStr` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeToken {
    pub(super) id: u64,
    pub(super) number: u64,
}

impl fmt::Display for TakeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.id, self.number)
    }
}

/// What was changed, in bytes: ranges that neither overlap nor touch, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// First byte and length. The last one may be shorter than a block, where the disk ends.
    pub ranges: Vec<(u64, u64)>,
    /// Why nobody knows what changed, so that the whole disk counts as changed.
    pub incomplete: Option<&'static str>,
    /// Since when.
    pub generation: Generation,
    /// Bytes of the disk. It may be less than before: what a copy has behind that is gone.
    pub size: u64,
}

/// What was taken from a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// To commit it or to give it back.
    pub token: TakeToken,
    /// What it is.
    pub changes: Changes,
}

/// The ranges of marked blocks, up to `end`.
pub(super) fn ranges(words: &[u64], granularity: u64, end: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (word, base) in words.iter().zip((0_u64..).step_by(BITS as usize)) {
        let mut bits = *word;
        let mut at = base;
        while bits != 0 {
            let gap = u64::from(bits.trailing_zeros());
            let run = u64::from((!(bits >> gap)).trailing_zeros()).min(BITS - gap);
            at += gap;
            let offset = at * granularity;
            if offset >= end {
                // The disk has become smaller.
                return ranges;
            }
            let stop = ((at + run) * granularity).min(end);
            match ranges.last_mut() {
                Some((start, len)) if *start + *len == offset => *len = stop - *start,
                _ => ranges.push((offset, stop - offset)),
            }
            at += run;
            bits = if gap + run == BITS {
                0
            } else {
                bits >> gap >> run
            };
        }
    }
    ranges
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The marks of a part of the disk.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::DirtyBitmap;
use crate::dirty::words::BITS;

/// Blocks that all are changed, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes. Not 0.
    pub len: u64,
    /// Whether they count as changed.
    pub dirty: bool,
}

/// Runs that follow each other, at most so many.
struct Runs {
    list: Vec<Run>,
    most: usize,
}

impl Runs {
    /// Adds what follows. Returns whether there was room for it.
    fn push(&mut self, len: u64, dirty: bool) -> bool {
        let has_room = self.list.len() < self.most;
        match self.list.last_mut() {
            Some(last) if last.dirty == dirty => {
                last.len += len;
                true
            }
            _ if has_room => {
                self.list.push(Run { len, dirty });
                true
            }
            _ => false,
        }
    }
}

impl DirtyBitmap {
    /// What counts as changed in a range, as [`DirtyBitmap::changes`] says it for the whole disk: also what was taken and
    /// not committed. At least one run and at most `most` (at least one); the first begins at the range's start, each
    /// other one where the one before ends, and the last may end before the range does. Nothing for an empty range.
    pub fn runs(&self, range: Range<u64>, most: usize) -> Vec<Run> {
        let mut runs = Runs {
            list: Vec::new(),
            most: most.max(1),
        };
        let state = self.state();
        let known = match Self::why(&state) {
            Some(_) => range.start,
            None => self.tracked.load(Ordering::Acquire).min(range.end),
        };
        let more = self.more();
        let taken = state.taken.as_ref().map(|taken| taken.words.as_slice());
        let mut at = range.start;
        while at < known {
            let block = at / self.granularity;
            let index = usize::try_from(block / BITS).unwrap_or(usize::MAX);
            let word = match self.words.get(index) {
                Some(word) => Some(word),
                None => more.get(index - self.words.len()),
            };
            // What has no bit counts as changed.
            let word = word.map_or(u64::MAX, |word| word.load(Ordering::Acquire));
            let taken = taken.and_then(|words| words.get(index)).copied();
            let bits = (word | taken.unwrap_or(0)) >> (block % BITS);
            let dirty = bits & 1 != 0;
            let alike = if dirty { !bits } else { bits };
            let blocks = u64::from(alike.trailing_zeros()).min(BITS - block % BITS);
            let end = (block + blocks).saturating_mul(self.granularity).min(known);
            if !runs.push(end - at, dirty) {
                return runs.list;
            }
            at = end;
        }
        if at < range.end {
            runs.push(range.end - at, true);
        }
        runs.list
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an export holds, as the server tells it: block status in the context `base:allocation`.

use std::ops::Range;

use virtio_blk_core::disk::{Allocation, Extent, Extents};

use crate::proto::{self, StatusExtent};

/// A question for what a range holds, and what the server has told so far.
///
/// A server may tell of more extents than there is memory for: what is beyond those that were asked for is received
/// and forgotten.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What was asked for.
    range: Range<u64>,
    /// The same at bounds that the server takes.
    pub aligned: Range<u64>,
    most: usize,
    extents: Extents,
    /// The server has told of what lies in front of this byte.
    told: u64,
    /// A list has begun: there is one in a reply.
    pub has_begun: bool,
    /// There is no room for more.
    is_full: bool,
}

impl Asked {
    /// What is in `range`, which is not empty: at most `most` extents. Bounds become multiples of `block`.
    pub(crate) fn new(range: Range<u64>, block: u64, most: usize) -> Self {
        let aligned = range.start - range.start % block..range.end.next_multiple_of(block);
        Self {
            told: aligned.start,
            range,
            aligned,
            most,
            extents: Extents::new(most),
            has_begun: false,
            is_full: false,
        }
    }

    /// Forgets what was told: it is asked anew.
    pub(crate) fn clear(&mut self) {
        self.extents = Extents::new(self.most);
        self.told = self.aligned.start;
        self.has_begun = false;
        self.is_full = false;
    }

    /// Whether one extent is enough.
    pub(crate) const fn is_one(&self) -> bool {
        self.most <= 1
    }

    /// Takes the next extent.
    pub(crate) fn push(&mut self, extent: StatusExtent) {
        let from = self.told.max(self.range.start);
        self.told = self.told.saturating_add(extent.length);
        let to = self.told.min(self.range.end);
        let state = proto::Allocation::of(extent.flags);
        let allocation = match (state.hole, state.zero) {
            (true, true) => Allocation::Hole,
            (false, true) => Allocation::Zero,
            // A hole may hold anything if it does not read as zeroes.
            (_, false) => Allocation::Data,
        };
        if !self.is_full && to > from {
            self.is_full = !self.extents.push(to - from, allocation);
        }
    }

    /// Whether the server has told of anything that was asked for.
    pub(crate) const fn is_told(&self) -> bool {
        self.told > self.range.start
    }

    /// What the server has told of.
    pub(crate) fn into_extents(self) -> Vec<Extent> {
        self.extents.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(
        range: Range<u64>,
        block: u64,
        most: usize,
        list: &[(u64, u64)],
    ) -> Vec<(u64, Allocation)> {
        let mut asked = Asked::new(range, block, most);
        for &(length, flags) in list {
            asked.push(StatusExtent { length, flags });
        }
        let extents = asked.into_extents().into_iter();
        extents
            .map(|extent| (extent.len, extent.allocation))
            .collect()
    }

    #[test]
    fn extents_are_those_of_the_range() {
        use Allocation::{Data, Hole, Zero};
        for (range, block, most, list, wanted) in [
            (0..4096, 1, 9, vec![(4096, 3)], vec![(4096, Hole)]),
            // More than what was asked for, as a server may tell of its last extent.
            (512..1024, 1, 9, vec![(1 << 40, 2)], vec![(512, Zero)]),
            (
                0..4096,
                1,
                9,
                vec![(u64::MAX, 0), (u64::MAX, 3)],
                vec![(4096, Data)],
            ),
            // Less.
            (
                0..4096,
                1,
                9,
                vec![(512, 0), (512, 3)],
                vec![(512, Data), (512, Hole)],
            ),
            // Neighbours of one kind; a hole that does not read as zeroes; bits of later times.
            (
                0..4096,
                1,
                9,
                vec![(512, 0), (512, 1), (512, 0xff0)],
                vec![(1536, Data)],
            ),
            // Not as many as there are.
            (
                0..4096,
                1,
                1,
                vec![(512, 3), (512, 0), (512, 3)],
                vec![(512, Hole)],
            ),
            // Bounds that the server does not take.
            (
                700..5000,
                4096,
                9,
                vec![(4096, 3), (4096, 0)],
                vec![(3396, Hole), (904, Data)],
            ),
            (5000..6000, 4096, 9, vec![(500, 3)], vec![]),
        ] {
            assert_eq!(
                told(range.clone(), block, most, &list),
                wanted,
                "{range:?} {list:?}"
            );
        }
        let asked = Asked::new(5000..6000, 4096, 9);
        assert_eq!(asked.aligned, 4096..8192);
        assert!(!asked.is_told());
    }
}

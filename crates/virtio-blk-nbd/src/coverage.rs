// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which bytes of a read have come.

/// Separate pieces that a reply may have at a time. Servers send data in order, which is one piece; a hostile one
/// could make the list as long as the read.
const MAX_PIECES: usize = 256;

/// Which bytes of a read have come: each may come once.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// All before this byte: what comes in order needs no list.
    head: u64,
    /// Pieces behind it, in order, which do not touch each other.
    pieces: Vec<(u64, u64)>,
}

impl Coverage {
    /// None has.
    pub(crate) fn clear(&mut self) {
        self.head = 0;
        self.pieces.clear();
    }

    /// Bytes from `start` to `end` come, in a read that has them. `false` if some of them came before, or if there
    /// are too many pieces.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> bool {
        if start <= self.head {
            return start == self.head && self.extend(end);
        }
        let at = self.pieces.partition_point(|piece| piece.0 < start);
        let before = at
            .checked_sub(1)
            .and_then(|at| self.pieces.get(at).copied());
        let after = self.pieces.get(at).copied();
        if before.is_some_and(|piece| piece.1 > start) || after.is_some_and(|piece| piece.0 < end) {
            return false;
        }
        let joins_before = before.is_some_and(|piece| piece.1 == start);
        let joins_after = after.is_some_and(|piece| piece.0 == end);
        match (joins_before, joins_after) {
            (true, true) => {
                let end = self.pieces.remove(at).1;
                self.set_end(at - 1, end);
            }
            (true, false) => self.set_end(at - 1, end),
            (false, true) => {
                if let Some(piece) = self.pieces.get_mut(at) {
                    piece.0 = start;
                }
            }
            (false, false) if self.pieces.len() < MAX_PIECES => {
                self.pieces.insert(at, (start, end));
            }
            (false, false) => return false,
        }
        true
    }

    /// Bytes up to `end` follow the head.
    fn extend(&mut self, end: u64) -> bool {
        let next = self.pieces.first().copied();
        match next {
            Some((start, _)) if start < end => return false,
            Some((start, last)) if start == end => {
                self.pieces.remove(0);
                self.head = last;
            }
            _ => self.head = end,
        }
        true
    }

    fn set_end(&mut self, at: usize, end: u64) {
        if let Some(piece) = self.pieces.get_mut(at) {
            piece.1 = end;
        }
    }

    /// Whether all bytes from 0 to `len` have come.
    pub(crate) const fn is_whole(&self, len: u64) -> bool {
        self.pieces.is_empty() && self.head == len
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_as_a_list_of_bytes(pieces in proptest::collection::vec((0_u64..40, 1_u64..9), 1..40)) {
            let mut coverage = Coverage::default();
            let mut bytes = [false; 48];
            for (start, len) in pieces {
                let range = start as usize..(start + len) as usize;
                let fresh = bytes[range.clone()].iter().all(|byte| !byte);
                prop_assert_eq!(coverage.add(start, start + len), fresh);
                if !fresh {
                    break;
                }
                bytes[range].fill(true);
            }
            for len in 1..48 {
                let whole = bytes.iter().enumerate().all(|(at, byte)| *byte == (at < len));
                prop_assert_eq!(coverage.is_whole(len as u64), whole);
            }
        }
    }

    #[test]
    fn the_list_has_an_end() {
        let mut coverage = Coverage::default();
        let added = (0..10_000)
            .filter(|at| coverage.add(2 * at, 2 * at + 1))
            .count();
        assert_eq!(added, 1 + MAX_PIECES);
        // In order it is one piece, of any length, and the same from the end on.
        coverage.clear();
        assert!((0..10_000).all(|at| coverage.add(at, at + 1)));
        assert!(coverage.is_whole(10_000) && coverage.pieces.capacity() <= 2 * MAX_PIECES);
        coverage.clear();
        assert!((0..10_000).rev().all(|at| coverage.add(at, at + 1)));
        assert!(coverage.is_whole(10_000));
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a medium holds data.

/// What a medium holds in a part of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allocation {
    /// Anything. Always right.
    Data,
    /// It reads as zeroes, and has its place on the medium.
    Zero,
    /// It reads as zeroes, and takes no place.
    Hole,
}

/// A part of a medium that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes. Not 0.
    pub len: u64,
    /// What it holds.
    pub allocation: Allocation,
}

/// Extents that follow each other, as [`Disk::extents`](super::Disk::extents) returns them: what follows and is of the
/// same kind becomes one, and there are no more than so many.
#[derive(Debug)]
pub struct Extents {
    list: Vec<Extent>,
    most: usize,
}

impl Extents {
    /// None yet, and at most `most`; at least one.
    pub const fn new(most: usize) -> Self {
        Self {
            list: Vec::new(),
            most: if most == 0 { 1 } else { most },
        }
    }

    /// Adds what follows. Returns whether there was room for it.
    pub fn push(&mut self, len: u64, allocation: Allocation) -> bool {
        let has_room = self.list.len() < self.most;
        match self.list.last_mut() {
            _ if len == 0 => true,
            Some(last) if last.allocation == allocation => {
                last.len += len;
                true
            }
            _ if has_room => {
                self.list.push(Extent { len, allocation });
                true
            }
            _ => false,
        }
    }

    /// The list.
    pub fn into_vec(self) -> Vec<Extent> {
        self.list
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The refcounts in a refcount block, of 1 to 64 bits each.

use super::{be32, be64, put};

/// A refcount block: the counts of consecutive clusters. Counts of less than a byte begin at its least significant
/// bit, larger ones are big endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    bytes: Vec<u8>,
    order: u32,
}

impl Counts {
    /// A block as it is in the file; `order` is that of the geometry.
    pub const fn new(bytes: Vec<u8>, order: u32) -> Self {
        Self { bytes, order }
    }

    /// How many counts there are.
    pub const fn len(&self) -> usize {
        (self.bytes.len() * 8) >> self.order
    }

    /// The block as it is in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the block that hold the counts `first` to `first + count`.
    pub const fn range(&self, first: usize, count: usize) -> std::ops::Range<usize> {
        (first << self.order) / 8..((first + count) << self.order).div_ceil(8)
    }

    /// A count. 0 behind the end.
    pub fn get(&self, index: usize) -> u64 {
        match self.order {
            0..=2 => {
                let bit = index << self.order;
                let byte = self.bytes.get(bit / 8).copied().unwrap_or(0);
                u64::from(byte >> (bit % 8)) & ((1 << (1 << self.order)) - 1)
            }
            3 => self.bytes.get(index).copied().unwrap_or(0).into(),
            4 => (be32(&self.bytes, (index * 2) & !3)
                >> if index.is_multiple_of(2) { 16 } else { 0 }
                & 0xffff)
                .into(),
            5 => be32(&self.bytes, index * 4).into(),
            _ => be64(&self.bytes, index * 8),
        }
    }

    /// Sets a count, of which the low bits are taken. Nothing behind the end.
    pub fn set(&mut self, index: usize, value: u64) {
        match self.order {
            0..=2 => {
                let (bit, width) = (index << self.order, 1 << self.order);
                let mask = ((1_u16 << width) - 1) as u8;
                if let Some(byte) = self.bytes.get_mut(bit / 8) {
                    *byte = *byte & !(mask << (bit % 8)) | (value as u8 & mask) << (bit % 8);
                }
            }
            3 => put(&mut self.bytes, index, &[value as u8]),
            4 => put(&mut self.bytes, index * 2, &(value as u16).to_be_bytes()),
            5 => put(&mut self.bytes, index * 4, &(value as u32).to_be_bytes()),
            _ => put(&mut self.bytes, index * 8, &value.to_be_bytes()),
        }
    }

    /// The first count from `from` on that is 0.
    pub fn find_zero(&self, from: usize) -> Option<usize> {
        (from..self.len()).find(|index| self.get(*index) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_its_counts_and_leaves_its_neighbours() {
        for order in 0..=6 {
            let mut counts = Counts::new(vec![0; 64], order);
            let max = if order == 6 {
                u64::MAX
            } else {
                (1 << (1 << order)) - 1
            };
            assert_eq!(counts.len(), 512 >> order);
            let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & max;
            for i in (0..counts.len()).rev() {
                counts.set(i, value(i));
            }
            for i in 0..counts.len() {
                assert_eq!(counts.get(i), value(i), "order {order}, count {i}");
                assert!(counts.range(i, 1).len() <= 8);
            }
            assert_eq!(counts.get(counts.len()), 0);
            let last = counts.len() - 1;
            for i in 0..last {
                counts.set(i, max);
            }
            counts.set(last, 0);
            assert_eq!(counts.find_zero(0), Some(last));
        }
    }

    #[test]
    fn the_file_has_them_in_the_order_of_the_specification() {
        let mut counts = Counts::new(vec![0; 8], 0);
        counts.set(0, 1);
        counts.set(9, 1);
        assert_eq!(counts.bytes()[..2], [1, 2]);
        let mut counts = Counts::new(vec![0; 8], 4);
        counts.set(1, 0x1234);
        assert_eq!(counts.bytes()[..4], [0, 0, 0x12, 0x34]);
        assert_eq!(counts.range(1, 2), 2..6);
    }
}

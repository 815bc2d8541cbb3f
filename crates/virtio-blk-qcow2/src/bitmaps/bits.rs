// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bits of a persistent bitmap in memory.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Bits in a word.
const BITS: u64 = 64;

/// A persistent dirty bitmap of an image: a bit for each block of the disk, which is set when the block may have changed.
/// It is in memory while the image is open, and stored in the image when its last queue is closed.
pub struct PersistentBitmap {
    name: String,
    granularity_bits: u32,
    enabled: bool,
    bits: RwLock<Bits>,
    /// It is not what the file has.
    changed: AtomicBool,
}

struct Bits {
    /// Bytes of the disk.
    size: u64,
    words: Vec<AtomicU64>,
}

/// A cluster of the bitmap.
pub(super) enum Piece {
    /// No bit is set.
    Zeroes,
    /// All are.
    Ones,
    /// As they are in the file.
    Bytes(Vec<u8>),
}

impl PersistentBitmap {
    /// A bitmap for a disk of `size` bytes in which no bit is set.
    pub(super) fn new(name: &str, granularity_bits: u32, enabled: bool, size: u64) -> Self {
        let this = Self {
            name: name.to_owned(),
            granularity_bits,
            enabled,
            bits: RwLock::new(Bits {
                size: 0,
                words: Vec::new(),
            }),
            changed: AtomicBool::new(false),
        };
        this.set_size(size);
        this
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of a block: a power of two from 512.
    pub const fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Whether changes of the disk are marked in it.
    pub const fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn bits(&self) -> RwLockReadGuard<'_, Bits> {
        self.bits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the blocks that `len` bytes at `offset` are in.
    pub fn mark(&self, offset: u64, len: u64) {
        self.change(offset, len, |word, mask| {
            // Mostly they are set already.
            word.load(Ordering::Relaxed) & mask != mask
                && word.fetch_or(mask, Ordering::AcqRel) & mask != mask
        });
    }

    /// Takes away the marks of the blocks that `len` bytes at `offset` are in: what they hold is safe elsewhere.
    pub fn clear(&self, offset: u64, len: u64) {
        self.change(offset, len, |word, mask| {
            word.fetch_and(!mask, Ordering::AcqRel) & mask != 0
        });
    }

    fn change(&self, offset: u64, len: u64, change: impl Fn(&AtomicU64, u64) -> bool) {
        let bits = self.bits();
        let end = offset.saturating_add(len).min(bits.size);
        if offset >= end {
            return;
        }
        let (first, last) = (
            offset >> self.granularity_bits,
            (end - 1) >> self.granularity_bits,
        );
        for index in first / BITS..=last / BITS {
            let low = first.max(index * BITS) - index * BITS;
            let high = last.min(index * BITS + BITS - 1) - index * BITS;
            let mask = (u64::MAX >> (BITS - 1 - (high - low))) << low;
            if let Some(word) = bits.words.get(index as usize)
                && change(word, mask)
            {
                self.changed.store(true, Ordering::Release);
            }
        }
    }

    /// The marked parts of the disk: first bytes and lengths, in order.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let bits = self.bits();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (index, word) in (0_u64..).zip(&bits.words) {
            let word = word.load(Ordering::Acquire);
            for bit in (0..BITS).filter(|bit| word >> bit & 1 != 0) {
                let start = (index * BITS + bit) << self.granularity_bits;
                let end = (start + self.granularity()).min(bits.size);
                match ranges.last_mut() {
                    Some((first, len)) if *first + *len == start => *len += end - start,
                    _ if start < end => ranges.push((start, end - start)),
                    _ => {}
                }
            }
        }
        ranges
    }

    /// The disk has this many bytes now. What it has grown by is marked.
    pub(super) fn grow(&self, size: u64) {
        let old = self.bits().size;
        self.set_size(size);
        self.mark(old, size.saturating_sub(old));
    }

    fn set_size(&self, size: u64) {
        let blocks = size.div_ceil(self.granularity());
        let mut bits = self.bits.write().unwrap_or_else(PoisonError::into_inner);
        let words = blocks.div_ceil(BITS) as usize;
        while bits.words.len() < words {
            bits.words.push(AtomicU64::new(0));
        }
        bits.size = size;
    }

    /// Bytes of the bits.
    pub(super) fn len(&self) -> u64 {
        let blocks = self.bits().size.div_ceil(self.granularity());
        blocks.div_ceil(8)
    }

    /// Takes over bits from the file, from byte `at` of them on.
    pub(super) fn fill(&self, at: u64, bytes: &[u8]) {
        let bits = self.bits();
        for (index, byte) in (at..self.len()).zip(bytes) {
            if let Some(word) = bits.words.get((index / 8) as usize) {
                word.fetch_or(u64::from(*byte) << (index % 8 * 8), Ordering::AcqRel);
            }
        }
    }

    /// The bits from byte `at` on, a cluster of them.
    pub(super) fn piece(&self, at: u64, cluster: usize) -> Piece {
        let bits = self.bits();
        let words = bits.words.get((at / 8) as usize..).unwrap_or_default();
        let words = words.iter().take(cluster / 8);
        let mut bytes: Vec<u8> = words
            .flat_map(|word| word.load(Ordering::Acquire).to_le_bytes())
            .collect();
        bytes.resize(cluster, 0);
        if bytes.iter().all(|byte| *byte == 0) {
            Piece::Zeroes
        } else if bytes.iter().all(|byte| *byte == 0xff) {
            Piece::Ones
        } else {
            Piece::Bytes(bytes)
        }
    }

    /// Whether it is not what the file has.
    pub(super) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Notes whether it is what the file has.
    pub(super) fn set_changed(&self, changed: bool) {
        self.changed.store(changed, Ordering::Release);
    }
}

impl fmt::Debug for PersistentBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistentBitmap")
            .field("name", &self.name)
            .field("granularity", &self.granularity())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_set_taken_away_and_grow() {
        let bitmap = PersistentBitmap::new("a", 9, true, 512 * 100 + 100);
        assert!(!bitmap.is_changed());
        bitmap.mark(511, 2);
        bitmap.mark(512 * 63, 512 * 2);
        bitmap.mark(512 * 100, u64::MAX);
        let ranges = [(0, 1024), (512 * 63, 1024), (512 * 100, 100)];
        assert_eq!(bitmap.ranges(), ranges);
        assert!(bitmap.is_changed());
        bitmap.set_changed(false);
        bitmap.mark(0, 1024);
        assert!(!bitmap.is_changed(), "it was marked");
        bitmap.clear(512, 1);
        assert!(bitmap.is_changed());
        bitmap.grow(512 * 103);
        let ranges = [(0, 512), (512 * 63, 1024), (512 * 100, 512 * 3)];
        assert_eq!(bitmap.ranges(), ranges);
    }

    #[test]
    fn bits_are_what_the_file_has() {
        let bitmap = PersistentBitmap::new("a", 9, true, 512 * 5000);
        assert_eq!(bitmap.len(), 625);
        assert!(matches!(bitmap.piece(0, 512), Piece::Zeroes));
        bitmap.mark(512 * 9, 512);
        let Piece::Bytes(bytes) = bitmap.piece(0, 512) else {
            panic!("one bit is set");
        };
        assert_eq!((bytes.len(), bytes[0], bytes[1]), (512, 0, 2));
        let copy = PersistentBitmap::new("a", 9, true, 512 * 5000);
        copy.fill(0, &bytes);
        copy.fill(512, &[1]);
        assert_eq!(copy.ranges(), [(512 * 9, 512), (512 * 4096, 512)]);
        bitmap.mark(0, u64::MAX);
        assert!(matches!(bitmap.piece(0, 512), Piece::Ones));
        assert!(
            matches!(bitmap.piece(512, 512), Piece::Bytes(_)),
            "it ends there"
        );
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which blocks were changed.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bits in a word.
const BITS: u64 = u64::BITS as u64;
/// The largest number of blocks of one bitmap: 1 GiB of bits.
const MAX_BLOCKS: u64 = 1 << 33;

/// Why a bitmap can't be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The granularity is not usable.
    #[error("granularity of {0} bytes: give a power of two, at least 512")]
    Granularity(u64),
    /// There would be too many blocks.
    #[error(
        "a disk of {capacity} bytes has too many blocks of {granularity} bytes: give a larger granularity"
    )]
    TooLarge {
        /// Bytes of the disk.
        capacity: u64,
        /// Bytes of a block.
        granularity: u64,
    },
    /// Saved data is of something else, of another version, or damaged.
    #[error("this is no saved dirty bitmap: {0}")]
    Saved(&'static str),
    /// There is a bitmap of that name.
    #[error("there is a dirty bitmap {0:?} already")]
    Exists(String),
}

/// A bit for each block of a disk: whether it was written, zeroed or discarded since the bitmap was started or
/// taken last. All methods may be called from any thread while writes go on.
pub struct DirtyBitmap {
    granularity: u64,
    capacity: u64,
    words: Box<[AtomicU64]>,
    /// Something behind `capacity` was changed: the disk has grown.
    beyond: AtomicBool,
}

/// What was changed, in bytes: ranges that neither overlap nor touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// First byte and length. The last one may be shorter than a block, where the disk ends.
    pub ranges: Vec<(u64, u64)>,
    /// Everything from the size on that the disk had when the bitmap was made has changed: it has
    /// grown since.
    pub beyond: bool,
}

const MAGIC: [u8; 8] = *b"vblkdrty";
const VERSION: u32 = 1;
/// Magic, version, flags, granularity, capacity.
const HEADER: usize = 32;
const FLAG_BEYOND: u32 = 1;

impl DirtyBitmap {
    /// A clean bitmap for a disk of `capacity` bytes in blocks of `granularity` bytes.
    ///
    /// # Errors
    /// The granularity is not a power of two of at least 512, or there would be more than 2^33 blocks.
    pub fn new(capacity: u64, granularity: u64) -> Result<Self, BitmapError> {
        if !granularity.is_power_of_two() || granularity < 512 {
            return Err(BitmapError::Granularity(granularity));
        }
        let blocks = capacity.div_ceil(granularity);
        let words = usize::try_from(blocks.div_ceil(BITS)).ok();
        let words = words
            .filter(|_| blocks <= MAX_BLOCKS)
            .ok_or(BitmapError::TooLarge {
                capacity,
                granularity,
            })?;
        Ok(Self {
            granularity,
            capacity,
            words: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
            beyond: AtomicBool::new(false),
        })
    }

    /// Bytes of a block.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Bytes of the disk when the bitmap was made.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Blocks it tells apart.
    fn blocks(&self) -> u64 {
        self.capacity.div_ceil(self.granularity)
    }

    /// Marks the blocks of `len` bytes from `offset` on. To be called after the change: who marks before
    /// it may have the mark taken before the change is there.
    pub fn mark(&self, offset: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|span| offset.saturating_add(span)) else {
            return;
        };
        if last >= self.capacity {
            self.beyond.store(true, Ordering::Release);
        }
        if offset >= self.capacity {
            return;
        }
        let first = offset / self.granularity;
        let last = last.min(self.capacity - 1) / self.granularity;
        for index in first / BITS..=last / BITS {
            let low = first.max(index * BITS) - index * BITS;
            let high = last.min(index * BITS + BITS - 1) - index * BITS;
            let mask = (u64::MAX >> (BITS - 1 - (high - low))) << low;
            let word = usize::try_from(index).ok().and_then(|i| self.words.get(i));
            if let Some(word) = word {
                // Never skipped, although the bit is often set: only the exchange orders the change before
                // a `take` that finds the bit.
                word.fetch_or(mask, Ordering::Release);
            }
        }
    }

    /// Marks everything.
    pub fn mark_all(&self) {
        self.mark(0, self.capacity);
    }

    /// Bytes in marked blocks.
    pub fn dirty_bytes(&self) -> u64 {
        let blocks: u64 = (self.words.iter())
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum();
        blocks.saturating_mul(self.granularity)
    }

    /// What is marked, without clearing it.
    pub fn changes(&self) -> Changes {
        self.collect(
            |word| word.load(Ordering::Acquire),
            self.beyond.load(Ordering::Acquire),
        )
    }

    /// Takes all marks, and clears them. A change whose mark is taken is on the medium for whoever reads it
    /// afterwards; one that happens meanwhile is marked for the next time.
    pub fn take(&self) -> Changes {
        let beyond = self.beyond.swap(false, Ordering::AcqRel);
        self.collect(|word| word.swap(0, Ordering::AcqRel), beyond)
    }

    /// Puts marks back, of changes that were taken and not used after all.
    pub fn restore(&self, changes: &Changes) {
        for &(offset, len) in &changes.ranges {
            self.mark(offset, len);
        }
        if changes.beyond {
            self.beyond.store(true, Ordering::Release);
        }
    }

    fn collect(&self, get: impl Fn(&AtomicU64) -> u64, beyond: bool) -> Changes {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (word, base) in self.words.iter().zip((0..).step_by(BITS as usize)) {
            let mut bits = get(word);
            let mut at: u64 = base;
            while bits != 0 {
                let gap = u64::from(bits.trailing_zeros());
                let run = u64::from((!(bits >> gap)).trailing_zeros()).min(BITS - gap);
                at += gap;
                let offset = at * self.granularity;
                let end = ((at + run) * self.granularity).min(self.capacity);
                match ranges.last_mut() {
                    Some((start, len)) if *start + *len == offset => *len = end - *start,
                    _ => ranges.push((offset, end - offset)),
                }
                at += run;
                bits = if gap + run == BITS {
                    0
                } else {
                    bits >> gap >> run
                };
            }
        }
        Changes { ranges, beyond }
    }

    /// The bitmap as bytes, to be kept in a file. Marks set meanwhile may be in it or not.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.words.len() * 8);
        let flags = if self.beyond.load(Ordering::Acquire) {
            FLAG_BEYOND
        } else {
            0
        };
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(self.granularity.to_le_bytes());
        bytes.extend(self.capacity.to_le_bytes());
        for word in &self.words {
            bytes.extend(word.load(Ordering::Acquire).to_le_bytes());
        }
        bytes
    }

    /// Reads what [`DirtyBitmap::save`] wrote.
    ///
    /// # Errors
    /// It is something else, or damaged. Nothing larger than `bytes` is allocated.
    pub fn load(bytes: &[u8]) -> Result<Self, BitmapError> {
        let (header, body) = bytes
            .split_at_checked(HEADER)
            .ok_or(BitmapError::Saved("it is too short"))?;
        let number = |at: usize, len: usize| {
            let mut le = [0; 8];
            for (to, from) in le.iter_mut().zip(header.iter().skip(at).take(len)) {
                *to = *from;
            }
            u64::from_le_bytes(le)
        };
        if !header.starts_with(&MAGIC) {
            return Err(BitmapError::Saved("it begins otherwise"));
        }
        if number(8, 4) != u64::from(VERSION) {
            return Err(BitmapError::Saved("its version is unknown"));
        }
        let flags = number(12, 4);
        if flags & !u64::from(FLAG_BEYOND) != 0 {
            return Err(BitmapError::Saved("it has unknown flags"));
        }
        let (granularity, capacity) = (number(16, 8), number(24, 8));
        if !granularity.is_power_of_two() || granularity < 512 {
            return Err(BitmapError::Granularity(granularity));
        }
        let blocks = capacity.div_ceil(granularity);
        if !body.len().is_multiple_of(8) || blocks.div_ceil(BITS) != body.len() as u64 / 8 {
            return Err(BitmapError::Saved("its length does not fit its size"));
        }
        let bitmap = Self::new(capacity, granularity)?;
        for (word, from) in bitmap.words.iter().zip(body.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(from);
            word.store(u64::from_le_bytes(le), Ordering::Relaxed);
        }
        let rest = bitmap.blocks() % BITS;
        if rest != 0
            && (bitmap.words.last()).is_some_and(|word| word.load(Ordering::Relaxed) >> rest != 0)
        {
            return Err(BitmapError::Saved("it marks blocks behind the end"));
        }
        bitmap
            .beyond
            .store(flags & u64::from(FLAG_BEYOND) != 0, Ordering::Relaxed);
        Ok(bitmap)
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("granularity", &self.granularity)
            .field("capacity", &self.capacity)
            .field("dirty_bytes", &self.dirty_bytes())
            .finish()
    }
}

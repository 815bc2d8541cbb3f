// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sparse content of a memory disk.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use virtio_blk_core::disk::{Allocation, DiskError, Extent, Extents, IoBuf};

/// Bytes in a chunk. Large enough that looking one up costs little beside copying a page.
pub(super) const CHUNK: usize = 64 << 10;
/// Locks. Neighbouring chunks have different ones.
const SHARDS: usize = 64;

/// The chunks of one shard, by index. An absent one reads as zeroes.
type Map = HashMap<u64, Box<[u8]>>;

/// A lock on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(RwLock<Map>);

impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, Map> {
        // A panic under the lock leaves at worst half a chunk written, as a failed write may.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Map> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sparse bytes from 0 to `u64::MAX`.
#[derive(Debug)]
pub(super) struct Chunks {
    shards: Vec<Shard>,
}

/// One chunk's part of a range.
struct Part {
    /// Which chunk.
    index: u64,
    /// Where in the chunk.
    within: Range<usize>,
    /// Where in the range.
    at: usize,
}

/// The parts of `len` bytes from `offset` on.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let position = offset + at as u64;
        let start = (position % CHUNK as u64) as usize;
        let size = (CHUNK - start).min(len - at);
        let part = Part {
            index: position / CHUNK as u64,
            within: start..start + size,
            at,
        };
        at += size;
        Some(part)
    })
}

/// A chunk of zeroes, or the error of a host that is out of memory.
fn new_chunk() -> Result<Box<[u8]>, DiskError> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(CHUNK)
        .map_err(|_| DiskError::from_errno(libc::ENOSPC))?;
    bytes.resize(CHUNK, 0);
    Ok(bytes.into_boxed_slice())
}

/// Gives a chunk's memory back, overwritten if so asked.
fn release(mut chunk: Box<[u8]>, wipe: bool) {
    if wipe {
        chunk.fill(0);
        // Without this the compiler may leave out what nobody reads.
        std::hint::black_box(&chunk);
    }
}

impl Chunks {
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
        }
    }

    fn shard(&self, index: u64) -> &Shard {
        &self.shards[(index % SHARDS as u64) as usize]
    }

    /// Chunks that hold data.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Which parts of a range have a chunk: at most `most` of them.
    pub fn extents(&self, range: Range<u64>, most: usize) -> Vec<Extent> {
        let mut extents = Extents::new(most);
        let mut at = range.start;
        while at < range.end {
            let index = at / CHUNK as u64;
            let next = (index + 1).saturating_mul(CHUNK as u64).min(range.end);
            let allocation = match self.shard(index).read().contains_key(&index) {
                true => Allocation::Data,
                false => Allocation::Hole,
            };
            if !extents.push(next - at, allocation) {
                break;
            }
            at = next;
        }
        extents.into_vec()
    }

    /// Fills `buf` from `offset` on.
    pub fn read(&self, offset: u64, buf: &IoBuf) {
        for part in parts(offset, buf.len()) {
            let map = self.shard(part.index).read();
            match map.get(&part.index) {
                Some(chunk) => buf.copy_in(part.at, &chunk[part.within]),
                None => buf.fill(part.at, part.within.len(), 0),
            };
        }
    }

    /// Stores `buf` from `offset` on, as long as it lies within `capacity` bytes.
    ///
    /// The capacity is looked at under each lock. A call that shrinks the disk stores the capacity first
    /// and clears what is beyond under the same locks afterwards: either we see the new capacity here,
    /// or what we write is cleared.
    ///
    /// # Errors
    /// `OutOfRange`; `ENOSPC` where memory ran out.
    pub fn write(&self, offset: u64, buf: &IoBuf, capacity: &AtomicU64) -> Result<(), DiskError> {
        for part in parts(offset, buf.len()) {
            let mut map = self.shard(part.index).write();
            let end = part.index * CHUNK as u64 + part.within.end as u64;
            if end > capacity.load(Ordering::SeqCst) {
                return Err(DiskError::OutOfRange);
            }
            if let Some(chunk) = map.get_mut(&part.index) {
                buf.copy_out(part.at, &mut chunk[part.within]);
                continue;
            }
            map.try_reserve(1)
                .map_err(|_| DiskError::from_errno(libc::ENOSPC))?;
            let mut chunk = new_chunk()?;
            buf.copy_out(part.at, &mut chunk[part.within]);
            map.insert(part.index, chunk);
        }
        Ok(())
    }

    /// Makes `len` bytes from `offset` on read as zeroes, giving whole chunks back: also the last one of
    /// the disk, which the `capacity` may cut short. With `wipe` their memory is overwritten first.
    pub fn clear(&self, offset: u64, len: u64, wipe: bool, capacity: &AtomicU64) {
        let size = CHUNK as u64;
        let end = offset + len;
        let (first_whole, end_whole) = (offset.div_ceil(size), end / size);
        if first_whole > end_whole {
            // Inside one chunk.
            return self.zero(offset, len as usize);
        }
        self.zero(offset, (first_whole * size - offset) as usize);
        self.remove(first_whole..end_whole, wipe);
        let rest = (end - end_whole * size) as usize;
        let mut map = self.shard(end_whole).write();
        // Under the lock, for the reason given at `write`: nothing was stored beyond this capacity.
        if rest > 0 && end >= capacity.load(Ordering::SeqCst) {
            if let Some(chunk) = map.remove(&end_whole) {
                release(chunk, wipe);
            }
        } else if let Some(chunk) = map.get_mut(&end_whole) {
            chunk[..rest].fill(0);
        }
    }

    /// Drops everything from `capacity` bytes on.
    pub fn cut(&self, capacity: u64) {
        let end = capacity.next_multiple_of(CHUNK as u64);
        self.zero(capacity, (end - capacity) as usize);
        self.remove(end / CHUNK as u64..u64::MAX, false);
    }

    /// Overwrites `len` bytes, all in one chunk, with zeroes where the chunk is present.
    fn zero(&self, offset: u64, len: usize) {
        for part in parts(offset, len) {
            if let Some(chunk) = self.shard(part.index).write().get_mut(&part.index) {
                chunk[part.within].fill(0);
            }
        }
    }

    /// Removes whole chunks. The work is bounded by the chunks present, not by the range.
    fn remove(&self, chunks: Range<u64>, wipe: bool) {
        let count = chunks.end.saturating_sub(chunks.start);
        if count < SHARDS as u64 {
            for index in chunks {
                if let Some(chunk) = self.shard(index).write().remove(&index) {
                    release(chunk, wipe);
                }
            }
            return;
        }
        for shard in &self.shards {
            let mut map = shard.write();
            map.extract_if(|index, _| chunks.contains(index))
                .for_each(|(_, chunk)| release(chunk, wipe));
            if map.len() < map.capacity() / 4 {
                map.shrink_to_fit();
            }
        }
    }
}

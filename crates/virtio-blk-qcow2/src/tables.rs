// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The L1 table, and what is in memory of the L2 tables.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use virtio_blk_core::disk::DiskError;

use crate::base::{Base, window};
use crate::format::{COPIED, Entry, Header, OFFSET, be64, field, put};
use crate::lane::Lane;
use crate::medium::{MetaIo, Put};
use crate::refcounts::{Refcounts, Run};
use crate::slice::{Slice, State};
use crate::sync::{lock, try_lock};

/// Most bytes of slices in memory.
const MAX_BYTES: u64 = 32 << 20;
/// Bytes that a slice takes besides its entries.
const OVERHEAD: u64 = 256;
/// Parts of the cache, each with a lock of its own.
const SHARDS: usize = 16;

/// A part of the cache.
#[derive(Default)]
struct Shard {
    slices: HashMap<u64, Arc<Slice>>,
    /// In the order in which they came, to be thrown out.
    order: VecDeque<u64>,
}

/// The L1 table. An entry is changed under [`Tables::growing`].
struct L1 {
    entries: Vec<AtomicU64>,
    /// First byte in the file.
    at: u64,
}

/// The L1 table, and what is in memory of the L2 tables.
pub struct Tables {
    base: Arc<Base>,
    l1: RwLock<L1>,
    /// Held while an entry of the L1 table changes.
    growing: Mutex<()>,
    shards: Vec<Mutex<Shard>>,
    /// Most slices in a shard.
    most: usize,
}

impl Tables {
    /// Takes over the L1 table, as in the file.
    pub fn new(base: Arc<Base>, header: &Header, l1: &[u8]) -> Self {
        let entries = (0..l1.len())
            .step_by(8)
            .map(|at| AtomicU64::new(be64(l1, at)))
            .collect();
        Self {
            l1: RwLock::new(L1 {
                entries,
                at: header.l1.offset,
            }),
            growing: Mutex::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most: ((MAX_BYTES / (base.geometry.slice() + OVERHEAD)) as usize / SHARDS).max(4),
            base,
        }
    }

    fn l1(&self) -> RwLockReadGuard<'_, L1> {
        self.l1.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry of the L1 table.
    pub fn l1_entry(&self, index: u64) -> u64 {
        let entry = usize::try_from(index).ok().and_then(|index| {
            self.l1()
                .entries
                .get(index)
                .map(|e| e.load(Ordering::Acquire))
        });
        entry.unwrap_or(0)
    }

    /// The number of the slice that a guest cluster's entry is in, and the entry's index in it.
    pub fn place(&self, cluster: u64) -> (u64, usize) {
        let entries = self.base.geometry.slice_entries();
        (cluster / entries, (cluster % entries) as usize)
    }

    /// The L1 entry that a slice is reached through.
    fn l1_of(&self, slice: u64) -> u64 {
        let geometry = self.base.geometry;
        slice / (geometry.table_entries() / geometry.slice_entries())
    }

    /// Bytes from the beginning of an L2 table to a slice.
    fn offset_of(&self, slice: u64) -> u64 {
        let geometry = self.base.geometry;
        slice % (geometry.table_entries() / geometry.slice_entries()) * geometry.slice()
    }

    fn shard(&self, number: u64) -> Option<MutexGuard<'_, Shard>> {
        let shards = self.shards.len() as u64;
        self.shards.get((number % shards) as usize).map(lock)
    }

    /// A slice that is in memory.
    pub fn cached(&self, number: u64) -> Option<Arc<Slice>> {
        let shard = self.shard(number)?;
        let slice = shard.slices.get(&number)?;
        slice.used.store(true, Ordering::Relaxed);
        Some(slice.clone())
    }

    /// A slice, which may still have to be read.
    pub fn slice(&self, number: u64) -> Arc<Slice> {
        let Some(mut shard) = self.shard(number) else {
            return Slice::new(number);
        };
        if let Some(slice) = shard.slices.get(&number) {
            slice.used.store(true, Ordering::Relaxed);
            return slice.clone();
        }
        // Everything in memory is in the file: whatever nobody holds may go.
        for _ in 0..shard.order.len() * 2 {
            if shard.slices.len() < self.most {
                break;
            }
            let Some(oldest) = shard.order.pop_front() else {
                break;
            };
            let free = shard.slices.get(&oldest).is_none_or(|slice| {
                Arc::strong_count(slice) == 1 && !slice.used.swap(false, Ordering::Relaxed)
            });
            if free {
                shard.slices.remove(&oldest);
            } else {
                shard.order.push_back(oldest);
            }
        }
        let slice = Slice::new(number);
        shard.slices.insert(number, slice.clone());
        shard.order.push_back(number);
        slice
    }

    /// Whether a locked slice can be used as it is, without reading it.
    pub fn is_loaded(&self, slice: &Slice, state: &mut State) -> bool {
        if state.l1.is_none() {
            return false;
        }
        // A table that moved, or came to be, has the same entries.
        state.l1 = Some(self.l1_entry(self.l1_of(slice.number)));
        true
    }

    /// Reads a locked slice if that was not done.
    ///
    /// # Errors
    /// The disk's.
    pub fn load(&self, lane: &mut Lane, slice: &Slice, state: &mut State) -> Result<(), DiskError> {
        if self.is_loaded(slice, state) {
            return Ok(());
        }
        let geometry = self.base.geometry;
        let l1 = self.l1_entry(self.l1_of(slice.number));
        if l1 & OFFSET == 0 {
            state.fill(geometry, l1, None);
            return Ok(());
        }
        let mut bytes = vec![0; geometry.slice() as usize];
        let at = (l1 & OFFSET) + self.offset_of(slice.number);
        self.base.medium.read_meta(lane, at, &mut bytes)?;
        state.fill(geometry, l1, Some(&bytes));
        Ok(())
    }

    /// Whether the entries of a loaded slice can be changed: its table is there, and not shared with a snapshot.
    pub fn is_writable(state: &State) -> bool {
        state
            .l1
            .is_some_and(|l1| l1 & OFFSET != 0 && l1 & COPIED != 0)
    }

    /// Whether a loaded slice has a table.
    pub fn has_table(state: &State) -> bool {
        state.l1.is_some_and(|l1| l1 & OFFSET != 0)
    }

    /// Stores entries of a loaded and writable slice: in the file, then in memory. If that fails, they are as before.
    pub fn store(
        &self,
        io: &mut dyn MetaIo,
        slice: &Slice,
        state: &mut State,
        changes: &[(usize, Entry)],
    ) -> Put {
        let geometry = self.base.geometry;
        let size = 8 * geometry.words();
        let indices = || changes.iter().map(|(index, _)| *index);
        let (Some(first), Some(last)) = (indices().min(), indices().max()) else {
            return Put::Done;
        };
        if !Self::is_writable(state) {
            return Put::Failed(crate::image::broken());
        }
        let range = first * size..(last + 1) * size;
        let part = window(range, self.base.medium.block(), geometry.slice() as usize);
        let old = state.bytes(part.clone());
        let mut new = old.clone();
        for (index, entry) in changes {
            let at = index * size - part.start;
            put(&mut new, at, &entry.word.to_be_bytes());
            if geometry.extended {
                put(&mut new, at + 8, &entry.bits.to_be_bytes());
            }
        }
        let table = state.l1.unwrap_or(0) & OFFSET;
        let at = table + self.offset_of(slice.number) + part.start as u64;
        let put = self.base.write_meta(io, at, &new, &old);
        if matches!(put, Put::Done) {
            for (index, entry) in changes {
                state.set(geometry, *index, *entry);
            }
        }
        put
    }

    /// Gives a slice without a table one: a cluster that is counted, stably so, and reads as zeroes. Whether the cluster
    /// was used is returned; somebody else may have been quicker. `None`: somebody else changes the L1 table, and the
    /// caller can't wait.
    pub fn add_table(&self, io: &mut dyn MetaIo, slice: u64, host: u64) -> Option<(Put, bool)> {
        let _alone = if io.may_wait() {
            lock(&self.growing)
        } else {
            try_lock(&self.growing)?
        };
        let index = self.l1_of(slice);
        if self.l1_entry(index) & OFFSET != 0 {
            return Some((Put::Done, false));
        }
        Some((self.set_l1(io, index, host | COPIED), true))
    }

    /// Whether the table of a slice is shared with a snapshot.
    pub fn is_shared(&self, slice: u64) -> bool {
        let l1 = self.l1_entry(self.l1_of(slice));
        l1 & OFFSET != 0 && l1 & COPIED == 0
    }

    /// Gives a slice whose table is shared with a snapshot a table of its own, in `host`. What was its table before, if
    /// it was shared.
    ///
    /// # Errors
    /// The disk's.
    pub fn unshare(
        &self,
        lane: &mut Lane,
        slice: u64,
        host: u64,
    ) -> Result<Option<u64>, DiskError> {
        let _alone = lock(&self.growing);
        let index = self.l1_of(slice);
        let old = self.l1_entry(index);
        if old & COPIED != 0 || old & OFFSET == 0 {
            return Ok(None);
        }
        let mut table = vec![0; self.base.geometry.cluster() as usize];
        // A shared table is not changed by anybody.
        lane.read(old & OFFSET, &mut table)?;
        lane.write(host, &table)?;
        self.base.barrier(lane)?;
        match self.set_l1(lane, index, host | COPIED) {
            Put::Failed(error) => Err(error),
            Put::Done | Put::Later => Ok(Some(old & OFFSET)),
        }
    }

    /// Makes the L1 table large enough for `entries`, and the image `size` bytes. What the old table's clusters were, if
    /// the table has moved: the file refers to them until the next barrier.
    ///
    /// # Errors
    /// Out of space; the disk's. Table and size are as before, in memory and in the file; or the image is frozen.
    pub fn grow(
        &self,
        lane: &mut Lane,
        refcounts: &Mutex<Refcounts>,
        entries: u64,
        size: u64,
    ) -> Result<Option<Run>, DiskError> {
        let (base, geometry) = (&self.base, self.base.geometry);
        let _alone = lock(&self.growing);
        // Nobody changes it meanwhile, and everybody may look at it.
        let l1 = self.l1();
        let (old, len) = (l1.entries.len() as u64 * 8, entries * 8);
        let moves = len > geometry.clusters(old) * geometry.cluster();
        if len > old && !moves {
            self.clear_tail(lane, &l1, len)?;
            base.barrier(lane)?;
        }
        let mut at = l1.at;
        if moves {
            let count = geometry.clusters(len);
            let run = lock(refcounts).reserve_all(lane, count)?;
            at = run.first << geometry.cluster_bits;
            let mut table: Vec<u8> = (l1.entries.iter())
                .flat_map(|entry| entry.load(Ordering::Acquire).to_be_bytes())
                .collect();
            table.resize((count << geometry.cluster_bits) as usize, 0);
            let written = lane.write(at, &table).and_then(|()| base.barrier(lane));
            if let Err(error) = written {
                // Nothing refers to them, and nothing is lost if that fails.
                let _ = lock(refcounts).release(lane, run, &mut Vec::new());
                return Err(error);
            }
        }
        let count = entries.max(l1.entries.len() as u64);
        drop(l1);
        base.update_header(lane, |head| {
            put(head, field::SIZE, &size.to_be_bytes());
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            put(head, field::L1, &count.to_be_bytes());
            put(head, field::L1 + 4, &at.to_be_bytes());
        })?;
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        while (l1.entries.len() as u64) < count {
            l1.entries.push(AtomicU64::new(0));
        }
        let old_at = std::mem::replace(&mut l1.at, at);
        Ok(moves.then(|| Run {
            first: old_at >> geometry.cluster_bits,
            count: geometry.clusters(old),
        }))
    }

    /// Makes what follows the entries in the L1 table's last cluster zero, up to byte `len` of the table.
    ///
    /// It is written as entries are, in whole blocks as they should be: a part of a block would be read before, and might be
    /// what a failed write left, while somebody else writes it as it should be.
    fn clear_tail(&self, lane: &mut Lane, l1: &L1, len: u64) -> Result<(), DiskError> {
        let (base, geometry) = (&self.base, self.base.geometry);
        let old = l1.entries.len() * 8;
        let total = (geometry.clusters(old as u64) * geometry.cluster()) as usize;
        let part = window(old..len as usize, base.medium.block(), total);
        let entries = l1.entries.get(part.start / 8..).unwrap_or_default();
        let mut bytes: Vec<u8> = (entries.iter())
            .flat_map(|entry| entry.load(Ordering::Acquire).to_be_bytes())
            .collect();
        bytes.resize(part.len(), 0);
        match base.write_meta(lane, l1.at + part.start as u64, &bytes, &bytes) {
            Put::Done => Ok(()),
            Put::Failed(error) => Err(error),
            Put::Later => Err(crate::image::broken()),
        }
    }

    fn set_l1(&self, io: &mut dyn MetaIo, index: u64, value: u64) -> Put {
        let l1 = self.l1();
        let index = index as usize;
        let total = l1.entries.len() * 8;
        let part = window(index * 8..index * 8 + 8, self.base.medium.block(), total);
        let entries = l1.entries.get(part.start / 8..part.end / 8);
        let old: Vec<u8> = (entries.unwrap_or_default().iter())
            .flat_map(|entry| entry.load(Ordering::Acquire).to_be_bytes())
            .collect();
        let mut new = old.clone();
        put(&mut new, index * 8 - part.start, &value.to_be_bytes());
        // The table begins at a cluster and has that cluster for itself: whole blocks can be written.
        let block = self.base.medium.block();
        let padded = |mut bytes: Vec<u8>| {
            if self.base.geometry.cluster() >= block as u64 {
                bytes.resize(bytes.len().next_multiple_of(block), 0);
            }
            bytes
        };
        let (new, old) = (padded(new), padded(old));
        let put = (self.base).write_meta(io, l1.at + part.start as u64, &new, &old);
        if matches!(put, Put::Done)
            && let Some(entry) = l1.entries.get(index)
        {
            entry.store(value, Ordering::Release);
        }
        put
    }
}

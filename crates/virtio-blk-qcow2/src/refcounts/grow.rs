// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! More counts: refcount blocks, and a larger table of them.

use std::ops::Range;

use virtio_blk_core::disk::DiskError;

use super::{Block, Refcounts, Run};
use crate::base::{ENOSPC, window};
use crate::format::{Counts, field, put};
use crate::lane::Lane;
use crate::medium::Put;

/// Most bytes of the refcount table, as QEMU has it.
const MAX_TABLE: u64 = 8 << 20;

/// Clusters that were not counted, and the blocks that count them, in the first of them.
struct Region {
    /// The blocks' numbers.
    blocks: Range<u64>,
    /// All clusters.
    used: Range<u64>,
}

impl Region {
    /// The first cluster behind the blocks.
    const fn rest(&self) -> u64 {
        self.used.start + (self.blocks.end - self.blocks.start)
    }
}

impl Refcounts {
    /// Adds a refcount block, in one of the clusters that it counts. All of them are free.
    ///
    /// # Errors
    /// The disk's. Then there is none; what was written is nothing's.
    pub(super) fn add_block(&mut self, lane: &mut Lane, number: u64) -> Result<(), DiskError> {
        let base = self.base.clone();
        let per_block = base.geometry.block_clusters();
        let start = number * per_block;
        let place = (start..start + per_block).find(|cluster| !base.is_table(*cluster));
        let place = place.ok_or_else(|| DiskError::from_errno(ENOSPC))?;
        self.put_block(lane, number, place)
    }

    /// Adds a refcount block for the cluster `first` and its neighbours, in the cluster `place`, which it counts and which
    /// nothing uses. The table is large enough.
    ///
    /// # Errors
    /// The disk's.
    pub fn place_block(
        &mut self,
        lane: &mut Lane,
        first: u64,
        place: u64,
    ) -> Result<(), DiskError> {
        let number = first / self.per_block();
        self.put_block(lane, number, place)
    }

    fn put_block(&mut self, lane: &mut Lane, number: u64, place: u64) -> Result<(), DiskError> {
        let base = self.base.clone();
        let (geometry, cluster) = (base.geometry, base.geometry.cluster());
        let start = number * geometry.block_clusters();
        let mut counts = Counts::new(vec![0; cluster as usize], geometry.refcount_order);
        counts.set((place - start) as usize, 1);
        base.medium.ensure((place + 1) * cluster)?;
        lane.write(place * cluster, counts.bytes())?;
        // The table never refers to what is not there.
        base.barrier(lane)?;
        self.set_entry(lane, number, place * cluster)?;
        self.clock += 1;
        let used = self.clock;
        self.blocks.insert(number, Block { counts, used });
        self.top = self.top.max(place + 1);
        Ok(())
    }

    fn set_entry(&mut self, lane: &mut Lane, number: u64, value: u64) -> Result<(), DiskError> {
        let index = number as usize;
        let part = window(
            index * 8..index * 8 + 8,
            self.base.medium.block(),
            self.table.len() * 8,
        );
        let entries = self.table.get(part.start / 8..part.end / 8);
        let old: Vec<u8> = (entries.unwrap_or_default().iter())
            .flat_map(|entry| entry.to_be_bytes())
            .collect();
        let mut new = old.clone();
        put(&mut new, index * 8 - part.start, &value.to_be_bytes());
        let at = self.table_at + part.start as u64;
        if let Put::Failed(error) = self.base.write_meta(lane, at, &new, &old) {
            return Err(error);
        }
        if let Some(entry) = self.table.get_mut(index) {
            *entry = value;
        }
        Ok(())
    }

    /// Counts `count` clusters in one piece once, behind everything that is counted, with the blocks that count them.
    ///
    /// # Errors
    /// Out of space; the disk's. Then they, or some of the blocks, may be counted and used by nobody.
    pub(super) fn reserve_behind(&mut self, lane: &mut Lane, count: u64) -> Result<Run, DiskError> {
        let base = self.base.clone();
        let region = loop {
            let last = self.table.iter().rposition(|place| *place != 0);
            let region = self.uncounted(last.map_or(0, |last| last as u64 + 1), count);
            if region.blocks.end <= self.table.len() as u64 {
                break region;
            }
            self.grow_table(lane)?;
        };
        let placed = self.write_blocks(lane, &region)?;
        // The table never refers to what is not there.
        base.barrier(lane)?;
        for (number, place) in placed {
            self.set_entry(lane, number, place)?;
        }
        self.top = self.top.max(region.used.end);
        let first = region.rest();
        Ok(Run { first, count })
    }

    /// Clusters that nothing counts, from the refcount block with the number `block` on: `count` in one piece, and before
    /// them one for each block that counts them all.
    fn uncounted(&self, block: u64, count: u64) -> Region {
        let per_block = self.per_block();
        let mut start = block * per_block;
        loop {
            let first = start / per_block;
            let mut blocks = first..first + 1;
            while blocks.end * per_block < start + (blocks.end - first) + count {
                blocks.end += 1;
            }
            let used = start..start + (blocks.end - first) + count;
            match used.clone().find(|cluster| self.base.is_table(*cluster)) {
                Some(taken) => start = taken + 1,
                None => return Region { blocks, used },
            }
        }
    }

    /// Writes the blocks of a region, which count it. Their numbers and places.
    fn write_blocks(&self, lane: &mut Lane, region: &Region) -> Result<Vec<(u64, u64)>, DiskError> {
        let (base, geometry) = (&self.base, self.base.geometry);
        let (cluster, per_block) = (geometry.cluster(), self.per_block());
        base.medium.ensure(region.used.end * cluster)?;
        let mut placed = Vec::new();
        for (number, place) in region.blocks.clone().zip(region.used.clone()) {
            let mut counts = Counts::new(vec![0; cluster as usize], geometry.refcount_order);
            let range = number * per_block..(number + 1) * per_block;
            for cluster in region.used.start.max(range.start)..region.used.end.min(range.end) {
                counts.set((cluster - range.start) as usize, 1);
            }
            lane.write(place * cluster, counts.bytes())?;
            placed.push((number, place * cluster));
        }
        Ok(placed)
    }

    /// Makes the refcount table larger. The new one lies behind everything that the old one counts, with the refcount
    /// blocks that count itself.
    ///
    /// # Errors
    /// Out of space: it has the greatest size that QEMU opens. The disk's; a failure in exchanging the tables freezes
    /// the image.
    pub(super) fn grow_table(&mut self, lane: &mut Lane) -> Result<(), DiskError> {
        let base = self.base.clone();
        let cluster = base.geometry.cluster();
        let old_len = self.table.len() as u64 * 8;
        // Half as much again, and one cluster at least.
        let len = (old_len + old_len / 2).max(old_len + cluster);
        let len = len.next_multiple_of(cluster).min(MAX_TABLE);
        if len <= old_len {
            return Err(DiskError::from_errno(ENOSPC));
        }
        let table_clusters = len / cluster;
        let region = self.uncounted(self.table.len() as u64, table_clusters);
        if region.blocks.end * 8 > len {
            return Err(DiskError::from_errno(ENOSPC));
        }
        let mut table = self.table.clone();
        table.resize((len / 8) as usize, 0);
        for (number, place) in self.write_blocks(lane, &region)? {
            if let Some(entry) = table.get_mut(number as usize) {
                *entry = place;
            }
        }
        let table_at = region.rest() * cluster;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        lane.write(table_at, &bytes)?;
        base.barrier(lane)?;
        base.update_header(lane, |head| {
            put(head, field::REFCOUNTS, &table_at.to_be_bytes());
            let clusters = u32::try_from(table_clusters).unwrap_or(0);
            put(head, field::REFCOUNTS + 8, &clusters.to_be_bytes());
        })?;
        let old = Run {
            first: self.table_at / cluster,
            count: old_len / cluster,
        };
        self.table = table;
        self.table_at = table_at;
        self.top = self.top.max(region.used.end);
        // Only when nothing refers to it any more, not even after a power cut.
        base.barrier(lane)?;
        self.release(lane, old, &mut Vec::new())
    }
}

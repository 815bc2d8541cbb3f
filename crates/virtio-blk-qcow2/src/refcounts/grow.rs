// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! More counts: refcount blocks, and a larger table of them.

use virtio_blk_core::disk::DiskError;

use super::{Block, Refcounts};
use crate::base::{ENOSPC, window};
use crate::format::{Counts, field, put};
use crate::lane::Lane;
use crate::medium::Put;

/// Most bytes of the refcount table, as QEMU has it.
const MAX_TABLE: u64 = 8 << 20;

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
    /// nothing uses.
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
        while number >= self.table.len() as u64 {
            self.grow_table(lane)?;
        }
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

    /// Makes the refcount table larger. The new one lies behind everything that the old one counts, with the refcount
    /// blocks that count itself.
    ///
    /// # Errors
    /// Out of space: it has the greatest size that QEMU opens. The disk's; a failure in exchanging the tables freezes
    /// the image.
    pub(super) fn grow_table(&mut self, lane: &mut Lane) -> Result<(), DiskError> {
        let base = self.base.clone();
        let (geometry, cluster) = (base.geometry, base.geometry.cluster());
        let per_block = geometry.block_clusters();
        let old_len = self.table.len() as u64 * 8;
        // Half as much again, and one cluster at least.
        let len = (old_len + old_len / 2).max(old_len + cluster);
        let len = len.next_multiple_of(cluster).min(MAX_TABLE);
        if len <= old_len {
            return Err(DiskError::from_errno(ENOSPC));
        }
        let mut start = self.table.len() as u64 * per_block;
        let table_clusters = len / cluster;
        let (first_block, blocks, used) = loop {
            // The new blocks count from the first cluster that has no count.
            let first_block = start / per_block;
            let mut blocks = 1;
            while first_block * per_block + blocks * per_block < start + blocks + table_clusters {
                blocks += 1;
            }
            let used = start..start + blocks + table_clusters;
            match used.clone().find(|cluster| base.is_table(*cluster)) {
                Some(taken) => start = taken + 1,
                None => break (first_block, blocks, used),
            }
        };
        if (first_block + blocks) * 8 > len {
            return Err(DiskError::from_errno(ENOSPC));
        }
        base.medium.ensure(used.end * cluster)?;
        let mut table = self.table.clone();
        table.resize((len / 8) as usize, 0);
        let mut added = Vec::new();
        for index in 0..blocks {
            let number = first_block + index;
            let mut counts = Counts::new(vec![0; cluster as usize], geometry.refcount_order);
            let range = number * per_block..(number + 1) * per_block;
            for cluster in used.start.max(range.start)..used.end.min(range.end) {
                counts.set((cluster - range.start) as usize, 1);
            }
            let place = (start + index) * cluster;
            lane.write(place, counts.bytes())?;
            if let Some(entry) = table.get_mut(number as usize) {
                *entry = place;
            }
            added.push((number, counts));
        }
        let table_at = (start + blocks) * cluster;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        lane.write(table_at, &bytes)?;
        base.barrier(lane)?;
        base.update_header(lane, |head| {
            put(head, field::REFCOUNTS, &table_at.to_be_bytes());
            let clusters = u32::try_from(table_clusters).unwrap_or(0);
            put(head, field::REFCOUNTS + 8, &clusters.to_be_bytes());
        })?;
        let old = super::Run {
            first: self.table_at / cluster,
            count: old_len / cluster,
        };
        self.table = table;
        self.table_at = table_at;
        self.top = self.top.max(used.end);
        for (number, counts) in added {
            self.clock += 1;
            let used = self.clock;
            self.blocks.insert(number, Block { counts, used });
        }
        // Only when nothing refers to it any more, not even after a power cut.
        base.barrier(lane)?;
        self.release(lane, old, &mut Vec::new())
    }
}

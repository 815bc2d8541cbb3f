// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The counts of the file's clusters: which are free, and how to count one.
//!
//! What is in memory is what is in the file: a change is written first, and taken over when that has succeeded.

mod grow;

use std::collections::HashMap;
use std::sync::Arc;

use virtio_blk_core::disk::DiskError;

use crate::base::{Base, ENOSPC, window};
use crate::format::{Counts, Header, be64};
use crate::lane::Lane;
use crate::medium::Put;

/// Most refcount blocks in memory, and most bytes of them (two blocks at least).
const MAX_BLOCKS: usize = 256;
const MAX_BYTES: u64 = 4 << 20;
/// Places in entries of the refcount table.
const OFFSET: u64 = !511;

/// Consecutive clusters of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one's number.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// A refcount block, and when it was used last.
struct Block {
    counts: Counts,
    used: u64,
}

/// The counts of the file's clusters.
pub struct Refcounts {
    base: Arc<Base>,
    /// Places of the refcount blocks; 0: none, all its counts are 0.
    table: Vec<u64>,
    /// First byte of the table in the file.
    table_at: u64,
    blocks: HashMap<u64, Block>,
    clock: u64,
    /// No cluster before this one is free.
    hint: u64,
    /// From this cluster on, the file was made longer by us and never written: it reads as zeroes.
    top: u64,
}

impl Refcounts {
    /// Reads the refcount table.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(base: Arc<Base>, header: &Header, lane: &mut Lane) -> Result<Self, DiskError> {
        let mut bytes = vec![0; usize::try_from(header.refcounts.len).unwrap_or(0)];
        lane.read(header.refcounts.offset, &mut bytes)?;
        let table = (0..bytes.len()).step_by(8);
        let table = table.map(|at| be64(&bytes, at) & OFFSET).collect();
        let top = base.geometry.clusters(base.medium.len());
        Ok(Self {
            base,
            table,
            table_at: header.refcounts.offset,
            blocks: HashMap::new(),
            clock: 0,
            hint: 0,
            top,
        })
    }

    /// Clusters that a refcount block counts.
    pub fn per_block(&self) -> u64 {
        self.base.geometry.block_clusters()
    }

    /// The largest count.
    pub fn max(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.base.geometry.refcount_order))
    }

    fn entry(&self, block: u64) -> u64 {
        usize::try_from(block)
            .ok()
            .and_then(|block| self.table.get(block))
            .copied()
            .unwrap_or(0)
    }

    /// Has a refcount block in memory, if there is one.
    fn load(&mut self, lane: &mut Lane, block: u64) -> Result<Option<&mut Block>, DiskError> {
        let at = self.entry(block);
        if at == 0 {
            return Ok(None);
        }
        let geometry = self.base.geometry;
        self.clock += 1;
        let clock = self.clock;
        if !self.blocks.contains_key(&block) {
            let cluster = geometry.cluster();
            if !at.is_multiple_of(cluster) || at >= self.base.medium.len() {
                return Err(self.base.damaged("a refcount block lies outside the file"));
            }
            let mut bytes = vec![0; cluster as usize];
            self.base.medium.read_meta(lane, at, &mut bytes)?;
            let most = ((MAX_BYTES / cluster) as usize).clamp(2, MAX_BLOCKS);
            while self.blocks.len() >= most {
                let oldest = self.blocks.iter().min_by_key(|(_, block)| block.used);
                let Some(oldest) = oldest.map(|(number, _)| *number) else {
                    break;
                };
                self.blocks.remove(&oldest);
            }
            let counts = Counts::new(bytes, geometry.refcount_order);
            self.blocks.insert(
                block,
                Block {
                    counts,
                    used: clock,
                },
            );
        }
        let mut block = self.blocks.get_mut(&block);
        if let Some(block) = &mut block {
            block.used = clock;
        }
        Ok(block)
    }

    /// A cluster's count.
    ///
    /// # Errors
    /// The disk's; a damaged table.
    pub fn get(&mut self, lane: &mut Lane, cluster: u64) -> Result<u64, DiskError> {
        let per_block = self.per_block();
        let block = self.load(lane, cluster / per_block)?;
        Ok(block.map_or(0, |block| block.counts.get((cluster % per_block) as usize)))
    }

    /// Changes the counts of a run within a block, in the file and then in memory.
    fn change(
        &mut self,
        lane: &mut Lane,
        run: Run,
        change: impl Fn(usize, u64) -> u64,
    ) -> Result<(), DiskError> {
        let base = self.base.clone();
        let per_block = self.per_block();
        let (number, first) = (run.first / per_block, (run.first % per_block) as usize);
        let count = run.count as usize;
        let at = self.entry(number);
        let Some(block) = self.load(lane, number)? else {
            return Err(base.damaged("clusters are used that have no count"));
        };
        let mut new = block.counts.clone();
        for index in first..first + count {
            new.set(index, change(index - first, new.get(index)));
        }
        let (old, len) = (&block.counts, new.bytes().len());
        let part = window(new.range(first, count), base.medium.block(), len);
        let (new_bytes, old_bytes) = (new.bytes().get(part.clone()), old.bytes().get(part.clone()));
        let put = base.write_meta(
            lane,
            at + part.start as u64,
            new_bytes.unwrap_or_default(),
            old_bytes.unwrap_or_default(),
        );
        if let Put::Failed(error) = put {
            return Err(error);
        }
        block.counts = new;
        Ok(())
    }

    /// Whether the table is large enough for a cluster.
    pub fn reaches(&self, cluster: u64) -> bool {
        cluster / self.per_block() < self.table.len() as u64
    }

    /// Whether there is a refcount block for a cluster.
    pub fn has_block(&self, cluster: u64) -> bool {
        self.entry(cluster / self.per_block()) != 0
    }

    /// Sets the counts of a run within a block to what `used` says of each cluster of it, by number from 0 on. Counts that
    /// are too low stay unless `raise`.
    ///
    /// # Errors
    /// The disk's.
    pub fn mend(
        &mut self,
        lane: &mut Lane,
        run: Run,
        raise: bool,
        used: &dyn Fn(usize) -> u64,
    ) -> Result<(), DiskError> {
        let own = self.entry(run.first / self.per_block()) >> self.base.geometry.cluster_bits;
        let first = run.first;
        let max = self.max();
        self.change(lane, run, |index, count| {
            let used = used(index).max(u64::from(first + index as u64 == own));
            match raise {
                // What uses are counted in ends there: there may be more.
                _ if used >= u64::from(u16::MAX) => count,
                true => used.min(max),
                false => count.min(used),
            }
        })
    }

    /// Counts free clusters once, at least one and at most `want` in one piece. In the file, they read as zeroes.
    ///
    /// Nothing may refer to them before the next barrier.
    ///
    /// # Errors
    /// Out of space; the disk's. Then nothing is counted.
    pub fn reserve(&mut self, lane: &mut Lane, want: u64) -> Result<Run, DiskError> {
        let base = self.base.clone();
        // What is free may have to be made zero first.
        base.changes.check()?;
        let mut run = self.find(lane, want, 1)?;
        let cluster = base.geometry.cluster();
        if let Err(error) = base.medium.ensure((run.first + run.count) * cluster) {
            // As much as fits.
            run.count = (base.medium.len() / cluster).saturating_sub(run.first);
            if run.count == 0 {
                return Err(error);
            }
        }
        let end = run.first + run.count;
        if run.first < self.top {
            let len = (self.top.min(end) - run.first) * cluster;
            lane.zero(run.first * cluster, len, true)?;
        }
        self.change(lane, run, |_, _| 1)?;
        self.hint = end;
        self.top = self.top.max(end);
        Ok(run)
    }

    /// Counts exactly `count` free clusters once, in one piece, as [`Refcounts::reserve`] does.
    ///
    /// # Errors
    /// Out of space; the disk's. Then nothing refers to what was counted, if anything was.
    pub fn reserve_all(&mut self, lane: &mut Lane, count: u64) -> Result<Run, DiskError> {
        let base = self.base.clone();
        // A new block is in the first of the clusters that it counts.
        if count >= self.per_block() {
            return self.reserve_behind(lane, count);
        }
        let run = self.find(lane, count, count)?;
        let end = run.first + run.count;
        base.medium.ensure(end * base.geometry.cluster())?;
        self.change(lane, run, |_, _| 1)?;
        self.top = self.top.max(end);
        Ok(run)
    }

    /// The first free clusters that are at least `least` in one piece, but not more than `want`.
    fn find(&mut self, lane: &mut Lane, want: u64, least: u64) -> Result<Run, DiskError> {
        let base = self.base.clone();
        let per_block = self.per_block();
        let mut cluster = self.hint;
        loop {
            let number = cluster / per_block;
            if number >= self.table.len() as u64 {
                self.grow_table(lane)?;
                continue;
            }
            if self.entry(number) == 0 {
                self.add_block(lane, number)?;
            }
            let Some(block) = self.load(lane, number)? else {
                return Err(DiskError::from_errno(ENOSPC));
            };
            let start = number * per_block;
            let mut index = (cluster - start) as usize;
            while let Some(free) = block.counts.find_zero(index) {
                let is_free = |index: usize| {
                    index < block.counts.len()
                        && block.counts.get(index) == 0
                        && !base.is_table(start + index as u64)
                };
                let count = (free..)
                    .take(want.max(1) as usize)
                    .take_while(|index| is_free(*index))
                    .count();
                if count as u64 >= least {
                    return Ok(Run {
                        first: start + free as u64,
                        count: count as u64,
                    });
                }
                index = free + count.max(1);
            }
            cluster = start + per_block;
        }
    }

    /// Counts the clusters of a run once less. What is free then is handed to `freed`.
    ///
    /// # Errors
    /// The disk's; a damaged table. The clusters from some block on are counted as before.
    pub fn release(
        &mut self,
        lane: &mut Lane,
        mut run: Run,
        freed: &mut Vec<Run>,
    ) -> Result<(), DiskError> {
        let per_block = self.per_block();
        while run.count > 0 {
            let count = run.count.min(per_block - run.first % per_block);
            let part = Run { count, ..run };
            for cluster in part.first..part.first + count {
                if self.get(lane, cluster)? == 0 {
                    return Err(self.base.damaged("a cluster is used that is not counted"));
                }
            }
            self.change(lane, part, |_, count| count - 1)?;
            for cluster in part.first..part.first + count {
                if self.get(lane, cluster)? == 0 {
                    self.hint = self.hint.min(cluster);
                    match freed.last_mut() {
                        Some(last) if last.first + last.count == cluster => last.count += 1,
                        _ => freed.push(Run {
                            first: cluster,
                            count: 1,
                        }),
                    }
                }
            }
            run.first += count;
            run.count -= count;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Refcounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refcounts")
    }
}

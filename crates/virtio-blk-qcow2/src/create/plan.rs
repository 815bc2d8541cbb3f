// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a new image has its parts.

use virtio_blk_core::disk::DiskError;

use super::{CreateOptions, Done};
use crate::format::{COPIED, Counts, Entry, Geometry, put};
use crate::lane::Lane;

/// Most bytes of the refcount table, as QEMU has it.
const MAX_REFCOUNTS: u64 = 8 << 20;

/// Where the parts of a new image are, in clusters.
pub(super) struct Plan {
    pub(super) geometry: Geometry,
    /// Clusters of the refcount table, which begins at 1.
    pub(super) table: u64,
    /// Refcount blocks, which follow.
    blocks: u64,
    /// Clusters and entries of the L1 table, which follows.
    l1: u64,
    pub(super) entries: u64,
    /// L2 tables, which follow, and then data.
    l2: u64,
    /// Clusters of data, in the image or beside it.
    data: u64,
    external: bool,
    /// Of the file.
    pub(super) total: u64,
}

impl Plan {
    /// `None`: there are too many clusters for the refcount table.
    pub(super) fn new(options: &CreateOptions) -> Option<Self> {
        let geometry = options.geometry();
        let tables = options.size.div_ceil(geometry.table_reach());
        let entries = tables.max(1);
        let l1 = geometry.clusters(entries * 8).max(1);
        let (l2, data) = if options.has_places() {
            (tables, geometry.clusters(options.size))
        } else {
            (0, 0)
        };
        let external = options.is_external();
        let own = if external { 0 } else { data };
        let (mut table, mut blocks) = (1, 1);
        loop {
            let total = 1 + table + blocks + l1 + l2 + own;
            let need = total.div_ceil(geometry.block_clusters());
            let room = geometry.clusters(need * 8);
            if room << geometry.cluster_bits > MAX_REFCOUNTS {
                return None;
            }
            if (need, room) == (blocks, table) {
                return Some(Self {
                    geometry,
                    table,
                    blocks,
                    l1,
                    entries,
                    l2,
                    data,
                    external,
                    total,
                });
            }
            (blocks, table) = (need.max(blocks), room.max(table));
        }
    }

    /// The first byte of a cluster.
    pub(super) const fn at(&self, cluster: u64) -> u64 {
        cluster << self.geometry.cluster_bits
    }

    /// Where the L1 table begins.
    pub(super) const fn l1_at(&self) -> u64 {
        1 + self.table + self.blocks
    }

    const fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1
    }

    /// Where the data begins, in the file that it is in.
    pub(super) const fn data_at(&self) -> u64 {
        if self.external {
            0
        } else {
            self.l2_at() + self.l2
        }
    }

    /// Bytes of tables and counts that are written, about.
    pub(super) const fn written(&self) -> u64 {
        self.at(self.blocks + self.l2)
    }

    /// Writes refcount table and blocks.
    pub(super) fn write_counts(&self, lane: &mut Lane, done: &mut Done) -> Result<(), DiskError> {
        let cluster = self.geometry.cluster() as usize;
        let per_block = self.geometry.block_clusters();
        let mut table = vec![0; self.table as usize * cluster];
        for number in 0..self.blocks {
            let place = 1 + self.table + number;
            put(
                &mut table,
                number as usize * 8,
                &self.at(place).to_be_bytes(),
            );
            let mut counts = Counts::new(vec![0; cluster], self.geometry.refcount_order);
            let used = self.total.saturating_sub(number * per_block).min(per_block);
            for index in 0..used {
                counts.set(index as usize, 1);
            }
            lane.write(self.at(place), counts.bytes())?;
            done.add(cluster as u64);
        }
        lane.write(self.at(1), &table)
    }

    /// Writes the L1 table, and L2 tables if there are any.
    pub(super) fn write_map(&self, lane: &mut Lane, done: &mut Done) -> Result<(), DiskError> {
        let cluster = self.geometry.cluster() as usize;
        let mut l1 = vec![0; self.l1 as usize * cluster];
        let words = self.geometry.words();
        for number in 0..self.l2 {
            let place = self.at(self.l2_at() + number);
            put(
                &mut l1,
                number as usize * 8,
                &(place | COPIED).to_be_bytes(),
            );
            let mut table = vec![0; cluster];
            let first = number * self.geometry.table_entries();
            let count = self.geometry.table_entries().min(self.data - first);
            for index in 0..count {
                let host = self.at(self.data_at() + first + index);
                let entry = Entry::data(self.geometry, host);
                let at = index as usize * 8 * words;
                put(&mut table, at, &entry.word.to_be_bytes());
                if words == 2 {
                    put(&mut table, at + 8, &entry.bits.to_be_bytes());
                }
            }
            lane.write(place, &table)?;
            done.add(cluster as u64);
        }
        lane.write(self.at(self.l1_at()), &l1)
    }
}

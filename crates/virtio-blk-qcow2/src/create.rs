// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes a new image.

use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};

use crate::format::{COPIED, Compression, Counts, Geometry, Header, put};
use crate::lane::Lane;
use crate::medium::Medium;

const MAGIC: u32 = 0x5146_49fb;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Bytes of the header that is written, with the field for the compression.
const HEADER: usize = 112;
/// Most bytes of the L1 table, and of the refcount table, as QEMU has them.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNTS: u64 = 8 << 20;
/// Most bytes of a name.
const MAX_NAME: usize = 1023;

/// What a new image is to be like: version 3, refcounts of 16 bits, no snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    size: u64,
    cluster: u64,
    subclusters: bool,
    zstd: bool,
    backing: Option<(String, String)>,
    metadata: bool,
}

impl CreateOptions {
    /// An image of `size` bytes for the guest, a multiple of 512, with clusters of 64 KiB and nothing in it.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            cluster: 64 << 10,
            subclusters: false,
            zstd: false,
            backing: None,
            metadata: false,
        }
    }

    /// Bytes of a cluster: a power of two from 512 to 2 MiB, from 16 KiB on with subclusters.
    #[must_use]
    pub const fn cluster(mut self, bytes: u64) -> Self {
        self.cluster = bytes;
        self
    }

    /// Whether clusters have 32 subclusters each (extended L2 entries).
    #[must_use]
    pub const fn subclusters(mut self, yes: bool) -> Self {
        self.subclusters = yes;
        self
    }

    /// Whether clusters that somebody compresses later are compressed with zstd, not zlib.
    #[must_use]
    pub const fn zstd(mut self, yes: bool) -> Self {
        self.zstd = yes;
        self
    }

    /// The backing file: its name as the image is to have it, and its format, `raw` or `qcow2`. It is not looked at.
    #[must_use]
    pub fn backing(mut self, name: impl Into<String>, format: impl Into<String>) -> Self {
        self.backing = Some((name.into(), format.into()));
        self
    }

    /// Whether every cluster gets its place now (preallocation of metadata), so that no write has to allocate. Not with
    /// a backing file.
    #[must_use]
    pub const fn metadata(mut self, yes: bool) -> Self {
        self.metadata = yes;
        self
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster.checked_ilog2().unwrap_or(0),
            refcount_order: 4,
            extended: self.subclusters,
        }
    }

    /// What is wrong with the options.
    fn fault(&self) -> Option<String> {
        let geometry = self.geometry();
        let least = if self.subclusters { 16 << 10 } else { 512 };
        if !self.cluster.is_power_of_two() || !(least..=2 << 20).contains(&self.cluster) {
            return Some(format!(
                "clusters of {} bytes are impossible: use a power of two from {least} to {}",
                self.cluster,
                2 << 20
            ));
        }
        if !self.size.is_multiple_of(512) {
            return Some(format!("{} bytes is not a multiple of 512", self.size));
        }
        if self.size.div_ceil(geometry.table_reach()) * 8 > MAX_L1 {
            return Some(format!(
                "{} bytes are too many for clusters of {} bytes: use larger ones",
                self.size, self.cluster
            ));
        }
        let (name, format) = self.backing.as_ref()?;
        if name.is_empty()
            || name.len() > MAX_NAME
            || HEADER + 32 + name.len() > 512 && geometry.cluster() == 512
        {
            return Some("the name of the backing file is empty or too long".into());
        }
        if format != "raw" && format != "qcow2" {
            return Some(format!(
                "{format} is no format of a backing file: use raw or qcow2"
            ));
        }
        self.metadata.then(|| {
            "clusters can't have a place before they are copied from a backing file".into()
        })
    }
}

/// Where the parts of a new image are, in clusters.
struct Plan {
    geometry: Geometry,
    /// Clusters of the refcount table, which begins at 1.
    table: u64,
    /// Refcount blocks, which follow.
    blocks: u64,
    /// Clusters and entries of the L1 table, which follows.
    l1: u64,
    entries: u64,
    /// L2 tables, which follow, and then data.
    l2: u64,
    /// Of the file.
    total: u64,
}

impl Plan {
    fn new(options: &CreateOptions) -> Option<Self> {
        let geometry = options.geometry();
        let entries = options.size.div_ceil(geometry.table_reach()).max(1);
        let l1 = geometry.clusters(entries * 8).max(1);
        let (l2, data) = if options.metadata {
            let tables = options.size.div_ceil(geometry.table_reach());
            (tables, geometry.clusters(options.size))
        } else {
            (0, 0)
        };
        let (mut table, mut blocks) = (1, 1);
        loop {
            let total = 1 + table + blocks + l1 + l2 + data;
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
                    total,
                });
            }
            (blocks, table) = (need.max(blocks), room.max(table));
        }
    }

    const fn at(&self, cluster: u64) -> u64 {
        cluster << self.geometry.cluster_bits
    }

    const fn l1_at(&self) -> u64 {
        1 + self.table + self.blocks
    }

    const fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1
    }

    /// Writes refcount table and blocks.
    fn write_counts(&self, lane: &mut Lane) -> Result<(), DiskError> {
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
        }
        lane.write(self.at(1), &table)
    }

    /// Writes the L1 table, and L2 tables if there are any.
    fn write_map(&self, lane: &mut Lane, size: u64) -> Result<(), DiskError> {
        let cluster = self.geometry.cluster() as usize;
        let mut l1 = vec![0; self.l1 as usize * cluster];
        let data_at = self.l2_at() + self.l2;
        let clusters = self.geometry.clusters(size);
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
            for index in 0..self.geometry.table_entries().min(clusters - first) {
                let host = self.at(data_at + first + index);
                let entry = crate::format::Entry::data(self.geometry, host);
                let at = index as usize * 8 * words;
                put(&mut table, at, &entry.word.to_be_bytes());
                if words == 2 {
                    put(&mut table, at + 8, &entry.bits.to_be_bytes());
                }
            }
            lane.write(place, &table)?;
        }
        lane.write(self.at(self.l1_at()), &l1)
    }

    fn header(&self, options: &CreateOptions) -> Vec<u8> {
        let mut bytes = vec![0; self.geometry.cluster() as usize];
        let mut features = 0_u64;
        if options.zstd {
            features |= 1 << 3;
        }
        if options.subclusters {
            features |= 1 << 4;
        }
        for (at, value) in [
            (0, MAGIC),
            (4, 3),
            (20, self.geometry.cluster_bits),
            (36, self.entries as u32),
            (56, self.table as u32),
            (96, self.geometry.refcount_order),
            (100, HEADER as u32),
        ] {
            put(&mut bytes, at, &value.to_be_bytes());
        }
        for (at, value) in [
            (24, options.size),
            (40, self.at(self.l1_at())),
            (48, self.at(1)),
            (72, features),
        ] {
            put(&mut bytes, at, &value.to_be_bytes());
        }
        put(&mut bytes, 104, &[u8::from(options.zstd)]);
        if let Some((name, format)) = &options.backing {
            put(&mut bytes, HEADER, &BACKING_FORMAT.to_be_bytes());
            put(&mut bytes, HEADER + 4, &(format.len() as u32).to_be_bytes());
            put(&mut bytes, HEADER + 8, format.as_bytes());
            // Behind the extension and the one that ends them.
            let at = HEADER + 8 + 8 + 8;
            put(&mut bytes, at, name.as_bytes());
            put(&mut bytes, 8, &(at as u64).to_be_bytes());
            put(&mut bytes, 16, &(name.len() as u32).to_be_bytes());
        }
        bytes
    }
}

/// Makes a new image on a disk, from its first byte on: a new, empty file. What was there is lost. The image is stable
/// when this returns, and never looks like one before it is complete.
///
/// # Errors
/// `Config`: options that are impossible, with the reason; the disk's.
pub fn create(disk: &Arc<dyn Disk>, options: &CreateOptions) -> Result<(), DiskError> {
    if let Some(fault) = options.fault() {
        return Err(DiskError::Config(fault));
    }
    let plan = Plan::new(options).ok_or_else(|| {
        DiskError::Config("too many clusters for the refcount table: use larger ones".into())
    })?;
    let medium = Arc::new(Medium::new(disk.clone())?);
    medium.ensure(plan.at(plan.total))?;
    let mut lane = medium.lane()?;
    let header = plan.header(options);
    // No image until it is one.
    lane.write(0, &vec![0; header.len()])?;
    lane.flush()?;
    if options.metadata {
        let data = plan.l2_at() + plan.l2;
        lane.zero(plan.at(data), plan.at(plan.total - data), true)?;
    }
    plan.write_counts(&mut lane)?;
    plan.write_map(&mut lane, options.size)?;
    lane.flush()?;
    debug_assert!(
        Header::parse(&header, plan.at(plan.total))
            .is_ok_and(|header| { (header.compression == Compression::Zstd) == options.zstd })
    );
    lane.write(0, &header)?;
    lane.flush()
}

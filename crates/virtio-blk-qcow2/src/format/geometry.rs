// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sizes of an image's parts, all powers of two.

/// Most bytes of a slice of an L2 table.
const MAX_SLICE: u64 = 4096;
/// Subclusters in a cluster, as a power of two, with extended L2 entries.
const SUBCLUSTER_BITS: u32 = 5;

/// The sizes that a header chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a cluster, as a power of two: 9 to 21.
    pub cluster_bits: u32,
    /// Bits of a refcount, as a power of two: 0 to 6.
    pub refcount_order: u32,
    /// L2 entries have 16 bytes, and a cluster 32 subclusters.
    pub extended: bool,
}

impl Geometry {
    /// Bytes of a cluster.
    pub const fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an allocation unit, as a power of two: a cluster, or a subcluster.
    pub const fn unit_bits(self) -> u32 {
        if self.extended {
            self.cluster_bits - SUBCLUSTER_BITS
        } else {
            self.cluster_bits
        }
    }

    /// Bytes of an allocation unit.
    pub const fn unit(self) -> u64 {
        1 << self.unit_bits()
    }

    /// Units in a cluster: 1 or 32.
    pub const fn units(self) -> u32 {
        1 << (self.cluster_bits - self.unit_bits())
    }

    /// Words of 8 bytes in an L2 entry: 1 or 2.
    pub const fn words(self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// Entries in an L2 table.
    pub const fn table_entries(self) -> u64 {
        self.cluster() / (8 * self.words() as u64)
    }

    /// Bytes of the guest that an L2 table stands for.
    pub const fn table_reach(self) -> u64 {
        self.table_entries() * self.cluster()
    }

    /// Bytes of a slice, the part of an L2 table that is read and locked as one.
    pub const fn slice(self) -> u64 {
        if self.cluster() < MAX_SLICE {
            self.cluster()
        } else {
            MAX_SLICE
        }
    }

    /// Entries in a slice.
    pub const fn slice_entries(self) -> u64 {
        self.slice() / (8 * self.words() as u64)
    }

    /// Bytes of the guest that a slice stands for.
    pub const fn slice_reach(self) -> u64 {
        self.slice_entries() * self.cluster()
    }

    /// Clusters that a refcount block counts.
    pub const fn block_clusters(self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// Clusters in `bytes`, the last one perhaps not whole.
    pub const fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster())
    }
}

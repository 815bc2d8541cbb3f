// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Entries of L1 and L2 tables (QEMU's `docs/interop/qcow2.rst`, "Cluster mapping").

use super::Geometry;

/// The cluster that the entry refers to has the refcount 1: it may be written.
pub const COPIED: u64 = 1 << 63;
/// The entry describes compressed data.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (version 3, standard entries).
const ZERO: u64 = 1;
/// Bits of the place in the file.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// All subclusters are allocated.
const ALL_ALLOCATED: u64 = 0xffff_ffff;
/// All subclusters read as zeroes.
const ALL_ZERO: u64 = 0xffff_ffff << 32;

/// Where a unit of the guest's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the backing file, or nowhere.
    Below,
    /// Nowhere: it reads as zeroes.
    Zero,
    /// In the file, from this byte on.
    Data(u64),
    /// With the rest of its cluster, compressed.
    Compressed,
}

/// Where compressed data may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// First byte.
    pub offset: u64,
    /// Bytes, up to the end of the last sector.
    pub len: u64,
}

/// An entry of an L2 table: what becomes of one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The descriptor.
    pub word: u64,
    /// The subclusters' bitmaps; 0 for standard entries.
    pub bits: u64,
}

impl Entry {
    /// A cluster that is in the backing file, or nowhere.
    pub const BELOW: Self = Self { word: 0, bits: 0 };

    /// A cluster that reads as zeroes and takes no space. Version 2 has none.
    pub const fn zero(geometry: Geometry) -> Self {
        if geometry.extended {
            Self {
                word: 0,
                bits: ALL_ZERO,
            }
        } else {
            Self {
                word: ZERO,
                bits: 0,
            }
        }
    }

    /// A cluster of which everything is at `host`, with the refcount 1.
    pub const fn data(geometry: Geometry, host: u64) -> Self {
        Self {
            word: host | COPIED,
            bits: if geometry.extended { ALL_ALLOCATED } else { 0 },
        }
    }

    /// A cluster of which the subclusters `mask` are at `host`, with the refcount 1; the others are what they are in
    /// this entry.
    pub const fn with_data(self, geometry: Geometry, host: u64, mask: u32) -> Self {
        if !geometry.extended {
            return Self::data(geometry, host);
        }
        let mask = mask as u64;
        Self {
            word: host | COPIED,
            bits: (self.bits | mask) & !(mask << 32),
        }
    }

    /// The same cluster, of which the subclusters `mask` read as zeroes. Its space, if it has any, stays.
    pub const fn with_zeroes(self, mask: u32) -> Self {
        let mask = mask as u64;
        Self {
            word: self.word,
            bits: (self.bits | mask << 32) & !mask,
        }
    }

    /// Whether the cluster is compressed.
    pub const fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// Whether the cluster in the file may be written in place.
    pub const fn is_copied(self) -> bool {
        self.word & COPIED != 0
    }

    /// The cluster in the file, if there is one that is not compressed. In an external data file, 0 is one if the
    /// entry is marked as copied.
    pub const fn host(self, external: bool) -> Option<u64> {
        let offset = self.word & OFFSET;
        if self.is_compressed() || (offset == 0 && !(external && self.is_copied())) {
            None
        } else {
            Some(offset)
        }
    }

    /// Where unit `unit` of the cluster is, one of [`Geometry::units`].
    pub const fn place(self, geometry: Geometry, unit: u32, external: bool) -> Place {
        if self.is_compressed() {
            return Place::Compressed;
        }
        let host = self.host(external);
        if geometry.extended {
            if self.bits >> (32 + unit) & 1 != 0 {
                return Place::Zero;
            }
            return match host {
                Some(host) if self.bits >> unit & 1 != 0 => {
                    Place::Data(host + ((unit as u64) << geometry.unit_bits()))
                }
                _ => Place::Below,
            };
        }
        if self.word & ZERO != 0 {
            return Place::Zero;
        }
        match host {
            Some(host) => Place::Data(host),
            None => Place::Below,
        }
    }

    /// What is wrong with the entry, whatever image it is in. The place in the file is checked where it is used.
    pub const fn fault(self, geometry: Geometry, version: u32) -> Option<&'static str> {
        if self.is_compressed() {
            if self.is_copied() {
                return Some("a compressed cluster is marked as copied");
            }
            if geometry.extended && self.bits != 0 {
                return Some("a compressed cluster has subclusters");
            }
            return None;
        }
        if self.word & OFFSET & (geometry.cluster() - 1) != 0 {
            return Some("a cluster's place is not aligned");
        }
        if geometry.extended {
            if self.bits & self.bits >> 32 & ALL_ALLOCATED != 0 {
                return Some("a subcluster is both allocated and zero");
            }
            if self.word & OFFSET == 0 && self.bits & ALL_ALLOCATED != 0 && !self.is_copied() {
                return Some("subclusters are allocated in a cluster that is not");
            }
        }
        if self.word & ZERO != 0 && (geometry.extended || version < 3) {
            return Some("a cluster is marked as zero where that means nothing");
        }
        None
    }

    /// Where the compressed data is.
    pub const fn compressed(self, geometry: Geometry) -> Compressed {
        // 62 bits: the place, then the number of further sectors.
        let place_bits = 62 - (geometry.cluster_bits - 8);
        let offset = self.word & ((1 << place_bits) - 1);
        let further = (self.word & (COMPRESSED - 1)) >> place_bits;
        Compressed {
            offset,
            len: (further + 1) * 512 - (offset & 511),
        }
    }

    /// The clusters of the file that the entry refers to: the first, and how many.
    pub const fn clusters(self, geometry: Geometry, external: bool) -> Option<(u64, u64)> {
        if self.is_compressed() {
            let data = self.compressed(geometry);
            let first = data.offset >> geometry.cluster_bits;
            let last = (data.offset + data.len - 1) >> geometry.cluster_bits;
            return Some((first, last - first + 1));
        }
        if external {
            return None;
        }
        match self.host(false) {
            Some(host) => {
                let first = host >> geometry.cluster_bits;
                // One, unless the place is not aligned, which is a fault.
                let last = (host + geometry.cluster() - 1) >> geometry.cluster_bits;
                Some((first, last - first + 1))
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests;

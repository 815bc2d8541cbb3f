// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a new image is to be like.

use super::header;
use crate::format::Geometry;

/// Most bytes of the L1 table, as QEMU has it.
const MAX_L1: u64 = 32 << 20;
/// Most bytes of a name.
const MAX_NAME: usize = 1023;

/// What a new image gets at once, before anybody writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing: each cluster gets its place when it is written.
    #[default]
    Off,
    /// Every cluster has its place, but the file has holes there.
    Metadata,
    /// Every cluster has its place, and the host has set its space aside, as far as its file system can do that without
    /// writing.
    Falloc,
    /// Every cluster has its place and is written with zeroes.
    Full,
}

impl Preallocation {
    /// Whether clusters have their places.
    pub(super) const fn places(self) -> bool {
        !matches!(self, Self::Off)
    }
}

/// What a new image is to be like: version 3, without snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    pub(super) size: u64,
    pub(super) cluster: u64,
    pub(super) subclusters: bool,
    pub(super) zstd: bool,
    pub(super) refcount_bits: u32,
    pub(super) lazy_refcounts: bool,
    pub(super) backing: Option<(String, String)>,
    pub(super) data_file: Option<String>,
    pub(super) data_file_raw: bool,
    pub(super) preallocation: Preallocation,
}

impl CreateOptions {
    /// An image of `size` bytes for the guest, a multiple of 512, with clusters of 64 KiB, refcounts of 16 bits and nothing
    /// in it.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            cluster: 64 << 10,
            subclusters: false,
            zstd: false,
            refcount_bits: 16,
            lazy_refcounts: false,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
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

    /// Bits of a refcount: a power of two from 1 to 64. With 1 there can be no internal snapshots.
    #[must_use]
    pub const fn refcount_bits(mut self, bits: u32) -> Self {
        self.refcount_bits = bits;
        self
    }

    /// Whether who changes the image may leave its refcounts out of date until it is closed. This crate never does; QEMU
    /// does, and an image of which it was killed has to be mended.
    #[must_use]
    pub const fn lazy_refcounts(mut self, yes: bool) -> Self {
        self.lazy_refcounts = yes;
        self
    }

    /// The backing file: its name as the image is to have it, and its format, `raw` or `qcow2`. It is not looked at.
    #[must_use]
    pub fn backing(mut self, name: impl Into<String>, format: impl Into<String>) -> Self {
        self.backing = Some((name.into(), format.into()));
        self
    }

    /// The external data file, by its name as the image is to have it: the guest's data is there, and the image has the
    /// tables alone. A path that does not begin at the root is looked for where the image is by this crate, and in the
    /// process's directory by QEMU. `raw`: it is the guest's disk byte for byte, so that others can use it as a raw image; then every
    /// cluster has its place at once.
    #[must_use]
    pub fn data_file(mut self, name: impl Into<String>, raw: bool) -> Self {
        self.data_file = Some(name.into());
        self.data_file_raw = raw;
        self
    }

    /// What is there at once. Not with a backing file, whose data a place would hide.
    #[must_use]
    pub const fn preallocation(mut self, what: Preallocation) -> Self {
        self.preallocation = what;
        self
    }

    /// Whether the image has an external data file.
    pub(super) const fn is_external(&self) -> bool {
        self.data_file.is_some()
    }

    /// Whether clusters have their places at once. What others see in a raw data file has to be what the guest sees.
    pub(super) const fn has_places(&self) -> bool {
        self.preallocation.places() || self.data_file_raw
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster.checked_ilog2().unwrap_or(0),
            refcount_order: self.refcount_bits.checked_ilog2().unwrap_or(0),
            extended: self.subclusters,
        }
    }

    /// What is wrong with the options.
    pub(super) fn fault(&self) -> Option<String> {
        let geometry = self.geometry();
        let least = if self.subclusters { 16 << 10 } else { 512 };
        if !self.cluster.is_power_of_two() || !(least..=2 << 20).contains(&self.cluster) {
            return Some(format!(
                "clusters of {} bytes are impossible: use a power of two from {least} to {}",
                self.cluster,
                2 << 20
            ));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Some(format!(
                "refcounts of {} bits are impossible: use a power of two from 1 to 64",
                self.refcount_bits
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
        self.fault_of_names()
    }

    fn fault_of_names(&self) -> Option<String> {
        let is_name = |name: &str| (1..=MAX_NAME).contains(&name.len());
        if let Some(name) = &self.data_file
            && !is_name(name)
        {
            return Some("the name of the data file is empty or too long".into());
        }
        if let Some((name, format)) = &self.backing {
            if !is_name(name) {
                return Some("the name of the backing file is empty or too long".into());
            }
            if format != "raw" && format != "qcow2" {
                return Some(format!(
                    "{format} is no format of a backing file: use raw or qcow2"
                ));
            }
            if self.data_file_raw {
                return Some("a raw data file can't have a backing file under it".into());
            }
            if self.preallocation.places() {
                return Some(
                    "clusters can't have a place before they are copied from a backing file".into(),
                );
            }
        }
        (header::len(self) as u64 > self.cluster).then(|| {
            format!(
                "the names of its files don't fit in a cluster of {} bytes: use larger ones",
                self.cluster
            )
        })
    }
}

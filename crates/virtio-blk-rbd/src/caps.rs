// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an image can do.

use virtio_blk_core::disk::{Alignments, Caps, EraseLimits, SECTOR_SIZE, Topology, ZeroLimits};

/// Most sectors of one discard or write-zeroes (1 GiB): 256 objects of the usual size, each of which is an operation of
/// its own for the cluster.
const MAX_ERASE_SECTORS: u32 = 1 << 21;
/// Segments of a request.
const MAX_ERASE_SEGMENTS: u32 = 256;
/// Below that a discard does nothing, if the library does not say: `rbd_discard_granularity_bytes`.
const DISCARD_GRANULARITY: u64 = 64 << 10;
/// What the stores of the cluster write at once: 4 KiB, as a power of two of sectors.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// What stays as it is while an image is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Bytes that lie together in one object.
    pub stripe_unit: Option<u64>,
    /// Bytes below which a discard does nothing.
    pub discard: Option<u64>,
    /// Whether the library can write zeroes.
    pub write_zeroes: bool,
    pub read_only: bool,
}

impl Shape {
    /// The caps of an image of so many sectors.
    pub(crate) fn caps(&self, capacity: u64) -> Caps {
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR_SIZE).unwrap_or(u32::MAX);
        let usable = |bytes: &u64| bytes.is_power_of_two() && *bytes >= SECTOR_SIZE;
        let discard = self.discard.filter(usable).unwrap_or(DISCARD_GRANULARITY);
        Caps {
            align: Alignments {
                guest_block: SECTOR_SIZE as u32,
                host_offset: 1,
                host_memory: 1,
            },
            topology: Topology {
                physical_block_exp: PHYSICAL_BLOCK_EXP,
                alignment_offset: 0,
                min_io_size: 1 << PHYSICAL_BLOCK_EXP,
                opt_io_size: self.stripe_unit.map_or(0, sectors),
            },
            read_only: self.read_only,
            flush: !self.read_only,
            discard: (!self.read_only).then_some(EraseLimits {
                max_sectors: MAX_ERASE_SECTORS,
                max_segments: MAX_ERASE_SEGMENTS,
                alignment: sectors(discard),
            }),
            write_zeroes: (!self.read_only && self.write_zeroes).then_some(ZeroLimits {
                max_sectors: MAX_ERASE_SECTORS,
                max_segments: MAX_ERASE_SEGMENTS,
                may_unmap: true,
            }),
            ..Caps::basic(capacity)
        }
    }
}

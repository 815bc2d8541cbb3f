// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a block device of the host says about itself.

use std::path::{Path, PathBuf};

use virtio_blk_core::disk::{EraseLimits, SECTOR_SIZE, Topology};

use super::{MAX_ERASE_SECTORS, MAX_ERASE_SEGMENTS, sectors};
use crate::raw::sys::BlockInfo;

/// Where the kernel shows devices by number.
pub(super) const SYSFS: &str = "/sys/dev/block";

/// What sysfs says about a device's request queue; 0 where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockQueue {
    /// Bytes; 0: the device can't discard.
    pub discard_max: u64,
    /// Bytes.
    pub discard_granularity: u64,
}

impl BlockQueue {
    /// Reads it for the device with number `device` from below `base`. A partition has its disk's.
    pub fn read(base: &Path, device: u64) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let own = base.join(format!("{major}:{minor}"));
        let queue = [own.join("queue"), own.join("../queue")]
            .into_iter()
            .find(|path| path.is_dir());
        queue.map_or_else(Self::default, |queue| {
            let number = |name: &str| read_number(&queue.join(name)).unwrap_or(0);
            Self {
                discard_max: number("discard_max_bytes"),
                discard_granularity: number("discard_granularity"),
            }
        })
    }

    /// The limits of a discard, if the device can do it at all.
    pub fn discard_limits(self) -> Option<EraseLimits> {
        if self.discard_max < SECTOR_SIZE {
            return None;
        }
        // The kernel splits larger ones, so the device's own maximum is no limit for us.
        Some(EraseLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            alignment: sectors(self.discard_granularity),
        })
    }
}

/// A number in a file of its own.
fn read_number(path: &PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Hints from the device's own.
pub(super) fn topology(guest_block: u32, info: &BlockInfo) -> Topology {
    let blocks = |bytes: u32| bytes / guest_block;
    let ratio = blocks(info.physical).max(1);
    let exp = if ratio.is_power_of_two() {
        (ratio.ilog2() as u8).min(16)
    } else {
        0
    };
    Topology {
        physical_block_exp: exp,
        alignment_offset: u8::try_from(blocks(info.align_offset)).unwrap_or(0),
        min_io_size: u16::try_from(blocks(info.io_min)).unwrap_or(0).max(1),
        opt_io_size: blocks(info.io_opt),
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space (virtio 1.4, 2.5.2, 5.2.4 and 5.2.5.2).

use super::Device;
use crate::spec::config::{self, Config};
use crate::spec::feature;

/// A write to the configuration space that has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Only `writeback` can be written, and only with CONFIG_WCE negotiated.
    #[error("bytes {offset} to {end} of the configuration space are read-only")]
    ReadOnly {
        /// First byte of the write.
        offset: u64,
        /// The byte behind the last.
        end: u64,
    },
    /// `writeback` takes 0 and 1.
    #[error("{0} is no cache mode: 0 is write-through, 1 is write-back")]
    CacheMode(u8),
}

impl Device {
    /// The configuration space as fields. Those of features that are not offered are 0.
    pub fn config(&self) -> Config {
        let abi = self.guest_abi();
        let has = |bit| abi.features & bit != 0;
        let mut config = Config {
            capacity: abi.capacity,
            ..Config::default()
        };
        if has(feature::SEG_MAX) {
            config.seg_max = abi.seg_max;
        }
        if has(feature::BLK_SIZE) {
            config.blk_size = abi.block_size;
        }
        if has(feature::TOPOLOGY) {
            config.physical_block_exp = abi.topology.physical_block_exp;
            config.alignment_offset = abi.topology.alignment_offset;
            config.min_io_size = abi.topology.min_io_size;
            config.opt_io_size = abi.topology.opt_io_size;
        }
        if has(feature::CONFIG_WCE) {
            config.writeback = u8::from(abi.writeback);
        }
        if has(feature::MQ) {
            config.num_queues = abi.queues;
        }
        if let Some(limits) = abi.discard {
            config.max_discard_sectors = limits.max_sectors;
            config.max_discard_seg = limits.max_segments;
            config.discard_sector_alignment = limits.alignment;
        }
        if let Some(limits) = abi.write_zeroes {
            config.max_write_zeroes_sectors = limits.max_sectors;
            config.max_write_zeroes_seg = limits.max_segments;
            config.write_zeroes_may_unmap = u8::from(limits.may_unmap);
        }
        if let Some(limits) = abi.secure_erase {
            config.max_secure_erase_sectors = limits.max_sectors;
            config.max_secure_erase_seg = limits.max_segments;
            config.secure_erase_sector_alignment = limits.alignment;
        }
        config
    }

    /// Counts changes of the configuration space that the driver did not make. A transport with a
    /// generation field shows (the low bits of) it; reads between two equal values are consistent.
    pub fn config_generation(&self) -> u32 {
        *super::lock(&self.generation)
    }

    /// Reads the configuration space from byte `offset` on, at any offset and of any width. Bytes beyond
    /// the end read as 0.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.config().to_bytes();
        data.fill(0);
        let tail = usize::try_from(offset).ok().and_then(|o| bytes.get(o..));
        if let Some(tail) = tail {
            for (to, from) in data.iter_mut().zip(tail) {
                *to = *from;
            }
        }
    }

    /// Writes the configuration space from byte `offset` on, at any offset and of any width. Only the
    /// byte `writeback` takes effect, and only with CONFIG_WCE negotiated; a wider write that covers it
    /// is refused as a whole unless its other bytes fall on reserved ones and are 0.
    ///
    /// # Errors
    /// Nothing was changed. Transports without a way to answer drop the error.
    pub fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), ConfigError> {
        let end = offset.saturating_add(data.len() as u64);
        let read_only = ConfigError::ReadOnly { offset, end };
        if self.accepted() & feature::CONFIG_WCE == 0 || offset != config::WRITEBACK_OFFSET as u64 {
            return Err(read_only);
        }
        match data {
            [mode @ (0 | 1)] | [mode @ (0 | 1), 0] => {
                self.shared.set_writeback(*mode == 1);
                Ok(())
            }
            [mode] => Err(ConfigError::CacheMode(*mode)),
            _ => Err(read_only),
        }
    }
}

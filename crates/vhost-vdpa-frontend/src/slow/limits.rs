// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a block device's features and configuration space mean for its user.

use vdpa_bus::VdpaDevice;
use virtio_blk_core::disk::{Caps, EraseLimits, Topology, ZeroLimits};
use virtio_blk_core::spec::config::{self, Config};
use virtio_blk_core::spec::feature;

use crate::PathError;
use crate::error::{DeviceStep, Step};

/// Most data segments of a request, whatever the device allows: what a slot's table has room for.
const MAX_SEGMENTS: u32 = 126;

/// The block device bits that the slow path knows how to use.
pub(crate) const BLOCK_FEATURES: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::LIFETIME
    | feature::SECURE_ERASE;

/// The bits of ring and transport that the slow path uses where it can.
pub(crate) const RING_FEATURES: u64 = feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::VERSION_1
    | feature::ACCESS_PLATFORM;

/// Limits of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Data segments.
    pub(super) segments: usize,
    /// Bytes of a segment.
    pub(super) segment: u32,
    /// Bytes that data is a multiple of.
    pub(super) block: u32,
}

/// The configuration space. One that is shorter than what we know reads as zero behind its end.
pub(super) fn read_config(device: &dyn VdpaDevice) -> Result<Config, PathError> {
    let mut bytes = [0; config::SIZE];
    let len = device.get_config_size().min(config::SIZE);
    if let Some(present) = bytes.get_mut(..len)
        && len != 0
    {
        device.get_config(0, present).step(DeviceStep::ReadConfig)?;
    }
    Ok(Config::from_bytes(&bytes))
}

fn refuse<T>(what: impl Into<String>) -> Result<T, PathError> {
    Err(PathError::Config(what.into()))
}

/// The block size and the other limits of one request.
pub(super) fn limits(features: u64, config: &Config) -> Result<Limits, PathError> {
    let has = |bit| features & bit != 0;
    let block = if has(feature::BLK_SIZE) {
        config.blk_size
    } else {
        512
    };
    if !block.is_power_of_two() || !(512..=1 << 21).contains(&block) {
        return refuse(format!("blocks of {block} bytes"));
    }
    let segments = if has(feature::SEG_MAX) {
        config.seg_max.clamp(1, MAX_SEGMENTS)
    } else {
        1
    };
    let segment = match config.size_max {
        0 => u32::MAX,
        max if has(feature::SIZE_MAX) => max,
        _ => u32::MAX,
    };
    if u64::from(segment) * u64::from(segments) < u64::from(block) {
        return refuse(format!(
            "{segments} segments of {segment} bytes hold no block of {block}"
        ));
    }
    Ok(Limits {
        segments: segments as usize,
        segment,
        block,
    })
}

/// What a disk over the device can do.
pub(super) fn caps(features: u64, config: &Config, queues: u16) -> Result<Caps, PathError> {
    let has = |bit| features & bit != 0;
    let block = limits(features, config)?.block;
    let mut caps = Caps::basic(capacity(config, block));
    caps.align.guest_block = block;
    if has(feature::TOPOLOGY) {
        caps.topology = Topology {
            physical_block_exp: config.physical_block_exp.min(16),
            alignment_offset: config.alignment_offset,
            min_io_size: config.min_io_size,
            opt_io_size: config.opt_io_size,
        };
    }
    let erase = |bit, max_sectors: u32, max_segments: u32, alignment: u32| {
        (has(bit) && max_sectors != 0 && max_segments != 0).then(|| EraseLimits {
            max_sectors,
            max_segments,
            alignment: alignment.max(1),
        })
    };
    caps.read_only = has(feature::RO);
    caps.flush = has(feature::FLUSH);
    caps.discard = erase(
        feature::DISCARD,
        config.max_discard_sectors,
        config.max_discard_seg,
        config.discard_sector_alignment,
    );
    caps.secure_erase = erase(
        feature::SECURE_ERASE,
        config.max_secure_erase_sectors,
        config.max_secure_erase_seg,
        config.secure_erase_sector_alignment,
    );
    let zeroes = (config.max_write_zeroes_sectors, config.max_write_zeroes_seg);
    caps.write_zeroes =
        (has(feature::WRITE_ZEROES) && zeroes.0 != 0 && zeroes.1 != 0).then_some(ZeroLimits {
            max_sectors: zeroes.0,
            max_segments: zeroes.1,
            may_unmap: config.write_zeroes_may_unmap != 0,
        });
    caps.lifetime = has(feature::LIFETIME);
    caps.max_queues = queues;
    match caps.validate() {
        Ok(()) => Ok(caps),
        Err(error) => refuse(error.to_string()),
    }
}

/// The capacity in sectors, of whole blocks.
pub(super) const fn capacity(config: &Config, block: u32) -> u64 {
    config.capacity - config.capacity % (block as u64 / 512)
}

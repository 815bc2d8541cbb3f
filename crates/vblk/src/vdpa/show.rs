// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `vblk vdpa show` says.

use serde::Serialize;
use vdpa_bus::management::{BlkConfig, Device, DeviceConfig, NetConfig};
use virtio_blk_core::disk::SECTOR_SIZE;
use virtio_blk_core::spec::feature;

use super::class;
use crate::output;

const NETWORK: u32 = 1;
const BLOCK: u32 = 2;
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;

/// A device. Field names are the JSON's.
#[derive(Serialize)]
pub struct Shown {
    name: String,
    mgmtdev: String,
    class: String,
    vendor_id: u32,
    driver: Option<String>,
    node: Option<String>,
    queues: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_queue_size: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offered: Option<Vec<String>>,
    /// Not before the driver has chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    negotiated: Option<Vec<String>>,
    #[serde(flatten)]
    config: Option<Config>,
    #[serde(flatten)]
    network: Option<Network>,
}

/// The configuration space of a network device. Field names are the JSON's.
#[derive(Serialize)]
struct Network {
    mac: Option<String>,
    link_up: Option<bool>,
    mtu: Option<u16>,
    max_queue_pairs: Option<u16>,
}

impl Network {
    fn new(net: &NetConfig) -> Self {
        Self {
            mac: net.mac_address.map(|address| address.to_string()),
            link_up: net.status.map(|status| status & LINK_UP != 0),
            mtu: net.mtu,
            max_queue_pairs: net.max_queue_pairs,
        }
    }
}

/// The configuration space of a block device. Field names are the JSON's, as in `vblk disk info`.
#[derive(Serialize)]
struct Config {
    size: Option<String>,
    bytes: Option<u64>,
    sectors: Option<u64>,
    logical_block: Option<u32>,
    physical_block: Option<u64>,
    optimal_io: Option<u64>,
    read_only: Option<bool>,
    write_cache: Option<bool>,
    max_segments: Option<u32>,
    discard: Option<Limits>,
    write_zeroes: Option<Limits>,
}

/// Limits of discard and write-zeroes.
#[derive(Serialize)]
struct Limits {
    max_bytes: u64,
    max_segments: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alignment_bytes: Option<u64>,
}

fn bytes(sectors: u32) -> u64 {
    u64::from(sectors) * SECTOR_SIZE
}

impl Config {
    fn new(blk: &BlkConfig) -> Self {
        let size = blk
            .capacity
            .map(|sectors| sectors.saturating_mul(SECTOR_SIZE));
        let block = blk.blk_size.map(u64::from);
        let exponent = u32::from(blk.physical_block_exp.unwrap_or(0));
        Self {
            size: size.map(output::size),
            bytes: size,
            sectors: blk.capacity,
            logical_block: blk.blk_size,
            physical_block: block.and_then(|block| block.checked_mul(1_u64.checked_shl(exponent)?)),
            optimal_io: block
                .zip(blk.opt_io_size)
                .map(|(block, blocks)| block * u64::from(blocks)),
            read_only: blk.read_only,
            write_cache: blk.flush,
            max_segments: blk.seg_max,
            discard: blk.max_discard_sectors.map(|max| Limits {
                max_bytes: bytes(max),
                max_segments: blk.max_discard_seg,
                alignment_bytes: blk.discard_sector_alignment.map(bytes),
            }),
            write_zeroes: blk.max_write_zeroes_sectors.map(|max| Limits {
                max_bytes: bytes(max),
                max_segments: blk.max_write_zeroes_seg,
                alignment_bytes: None,
            }),
        }
    }
}

impl Shown {
    pub fn new(
        device: &Device,
        config: &DeviceConfig,
        driver: Option<String>,
        node: Option<String>,
    ) -> Self {
        let block = device.device_id == BLOCK;
        // Bits below 24 mean something else in each class.
        let names = |features: u64| match block {
            true => feature::names(features),
            false => vec![format!("{features:#x}")],
        };
        Self {
            name: device.name.clone(),
            mgmtdev: device.management.to_string(),
            class: class(device.device_id),
            vendor_id: device.vendor_id,
            driver,
            node,
            queues: device.max_vqs,
            max_queue_size: device.max_vq_size,
            offered: config.device_features.map(names),
            negotiated: config.negotiated_features.map(names),
            config: block.then(|| Config::new(&config.blk)),
            network: (device.device_id == NETWORK).then(|| Network::new(&config.net)),
        }
    }
}

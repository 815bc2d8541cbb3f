// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel says of a device's configuration space.

use super::attribute::attr;
use super::device::MacAddress;
use super::wire::Attributes;

/// The features and the configuration space of a device, as far as the kernel tells them. A field is
/// `None` where the kernel left it out: it is too old, or the device doesn't offer the feature that the
/// field belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// The device's name.
    pub name: String,
    /// The virtio device ID: 2 is a block device.
    pub device_id: Option<u32>,
    /// The vendor ID.
    pub vendor_id: Option<u32>,
    /// Features the device offers. The fields below are of these.
    pub device_features: Option<u64>,
    /// Features the driver took: only after FEATURES_OK.
    pub negotiated_features: Option<u64>,
    /// The fields of a network device.
    pub net: NetConfig,
    /// The fields of a block device.
    pub blk: BlkConfig,
}

/// Fields of a network device's configuration space (virtio 1.4, 5.1.4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetConfig {
    /// The address.
    pub mac_address: Option<MacAddress>,
    /// `VIRTIO_NET_S_LINK_UP` and further bits.
    pub status: Option<u16>,
    /// Queue pairs, at most.
    pub max_queue_pairs: Option<u16>,
    /// Bytes.
    pub mtu: Option<u16>,
}

/// Fields of a block device's configuration space. All sectors have 512 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlkConfig {
    /// Sectors.
    pub capacity: Option<u64>,
    /// Bytes in a segment, at most.
    pub size_max: Option<u32>,
    /// Segments of a request, at most.
    pub seg_max: Option<u32>,
    /// Bytes of a logical block.
    pub blk_size: Option<u32>,
    /// Request queues.
    pub num_queues: Option<u16>,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_block_exp: Option<u8>,
    /// The first aligned logical block.
    pub alignment_offset: Option<u8>,
    /// Logical blocks of the smallest good I/O.
    pub min_io_size: Option<u16>,
    /// Logical blocks of the best I/O.
    pub opt_io_size: Option<u32>,
    /// Sectors in a segment of a discard, at most.
    pub max_discard_sectors: Option<u32>,
    /// Segments in a discard, at most.
    pub max_discard_seg: Option<u32>,
    /// Sectors that a discard should start at a multiple of.
    pub discard_sector_alignment: Option<u32>,
    /// Sectors in a segment of a write-zeroes, at most.
    pub max_write_zeroes_sectors: Option<u32>,
    /// Segments in a write-zeroes, at most.
    pub max_write_zeroes_seg: Option<u32>,
    /// Whether the device offers VIRTIO_BLK_F_RO.
    pub read_only: Option<bool>,
    /// Whether the device offers VIRTIO_BLK_F_FLUSH.
    pub flush: Option<bool>,
}

impl DeviceConfig {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let attributes = Attributes::parse(bytes)?;
        Ok(Self {
            name: attributes.needed_text(attr::DEV_NAME)?,
            device_id: attributes.u32(attr::DEV_ID)?,
            vendor_id: attributes.u32(attr::DEV_VENDOR_ID)?,
            device_features: attributes.u64(attr::DEV_FEATURES)?,
            negotiated_features: attributes.u64(attr::DEV_NEGOTIATED_FEATURES)?,
            net: NetConfig::of(&attributes)?,
            blk: BlkConfig::of(&attributes)?,
        })
    }
}

impl NetConfig {
    fn of(attributes: &Attributes<'_>) -> Result<Self, String> {
        Ok(Self {
            mac_address: attributes.fixed(attr::NET_CFG_MACADDR)?.map(MacAddress),
            // The header calls it a byte, the kernel sends two.
            status: (attributes.u16(attr::NET_STATUS))
                .or_else(|_| Ok::<_, String>(attributes.u8(attr::NET_STATUS)?.map(u16::from)))?,
            max_queue_pairs: attributes.u16(attr::NET_CFG_MAX_VQP)?,
            mtu: attributes.u16(attr::NET_CFG_MTU)?,
        })
    }
}

impl BlkConfig {
    fn of(attributes: &Attributes<'_>) -> Result<Self, String> {
        let flag = |kind| Ok::<_, String>(attributes.u8(kind)?.map(|value| value != 0));
        Ok(Self {
            capacity: attributes.u64(attr::BLK_CFG_CAPACITY)?,
            size_max: attributes.u32(attr::BLK_CFG_SIZE_MAX)?,
            seg_max: attributes.u32(attr::BLK_CFG_SEG_MAX)?,
            blk_size: attributes.u32(attr::BLK_CFG_BLK_SIZE)?,
            num_queues: attributes.u16(attr::BLK_CFG_NUM_QUEUES)?,
            physical_block_exp: attributes.u8(attr::BLK_CFG_PHY_BLK_EXP)?,
            alignment_offset: attributes.u8(attr::BLK_CFG_ALIGN_OFFSET)?,
            min_io_size: attributes.u16(attr::BLK_CFG_MIN_IO_SIZE)?,
            opt_io_size: attributes.u32(attr::BLK_CFG_OPT_IO_SIZE)?,
            max_discard_sectors: attributes.u32(attr::BLK_CFG_MAX_DISCARD_SEC)?,
            max_discard_seg: attributes.u32(attr::BLK_CFG_MAX_DISCARD_SEG)?,
            discard_sector_alignment: attributes.u32(attr::BLK_CFG_DISCARD_SEC_ALIGN)?,
            max_write_zeroes_sectors: attributes.u32(attr::BLK_CFG_MAX_WRITE_ZEROES_SEC)?,
            max_write_zeroes_seg: attributes.u32(attr::BLK_CFG_MAX_WRITE_ZEROES_SEG)?,
            read_only: flag(attr::BLK_READ_ONLY)?,
            flush: flag(attr::BLK_FLUSH)?,
        })
    }
}

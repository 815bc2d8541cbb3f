// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space of a block device (virtio 1.4, 5.2.4): 96 bytes, little-endian.

/// Bytes of the configuration space, up to and including the zoned fields.
pub const SIZE: usize = 96;
/// Offset of `writeback`, the only field a driver may write.
pub const WRITEBACK_OFFSET: usize = 32;
/// Offset of `num_queues`, two bytes.
pub const NUM_QUEUES_OFFSET: usize = 34;

/// The fields, in host byte order. Those of features that are not offered are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the specification's; units are there too (sectors of 512 bytes).
pub struct Config {
    pub capacity: u64,
    pub size_max: u32,
    pub seg_max: u32,
    pub cylinders: u16,
    pub heads: u8,
    pub sectors: u8,
    pub blk_size: u32,
    pub physical_block_exp: u8,
    pub alignment_offset: u8,
    pub min_io_size: u16,
    pub opt_io_size: u32,
    pub writeback: u8,
    pub num_queues: u16,
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    pub discard_sector_alignment: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: u8,
    pub max_secure_erase_sectors: u32,
    pub max_secure_erase_seg: u32,
    pub secure_erase_sector_alignment: u32,
}

impl Config {
    /// The wire form. Reserved bytes and the zoned fields are zero.
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field)
        };
        put(0, &self.capacity.to_le_bytes());
        put(8, &self.size_max.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(16, &self.cylinders.to_le_bytes());
        put(18, &[self.heads, self.sectors]);
        put(20, &self.blk_size.to_le_bytes());
        put(24, &[self.physical_block_exp, self.alignment_offset]);
        put(26, &self.min_io_size.to_le_bytes());
        put(28, &self.opt_io_size.to_le_bytes());
        put(WRITEBACK_OFFSET, &[self.writeback]);
        put(NUM_QUEUES_OFFSET, &self.num_queues.to_le_bytes());
        put(36, &self.max_discard_sectors.to_le_bytes());
        put(40, &self.max_discard_seg.to_le_bytes());
        put(44, &self.discard_sector_alignment.to_le_bytes());
        put(48, &self.max_write_zeroes_sectors.to_le_bytes());
        put(52, &self.max_write_zeroes_seg.to_le_bytes());
        put(56, &[self.write_zeroes_may_unmap]);
        put(60, &self.max_secure_erase_sectors.to_le_bytes());
        put(64, &self.max_secure_erase_seg.to_le_bytes());
        put(68, &self.secure_erase_sector_alignment.to_le_bytes());
        bytes
    }

    /// Reads the wire form (a client's side of it).
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Self {
        let u16_at = |o: usize| u16::from_le_bytes([bytes[o], bytes[o + 1]]);
        let u32_at =
            |o: usize| u32::from_le_bytes([bytes[o], bytes[o + 1], bytes[o + 2], bytes[o + 3]]);
        Self {
            capacity: u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32,
            size_max: u32_at(8),
            seg_max: u32_at(12),
            cylinders: u16_at(16),
            heads: bytes[18],
            sectors: bytes[19],
            blk_size: u32_at(20),
            physical_block_exp: bytes[24],
            alignment_offset: bytes[25],
            min_io_size: u16_at(26),
            opt_io_size: u32_at(28),
            writeback: bytes[WRITEBACK_OFFSET],
            num_queues: u16_at(NUM_QUEUES_OFFSET),
            max_discard_sectors: u32_at(36),
            max_discard_seg: u32_at(40),
            discard_sector_alignment: u32_at(44),
            max_write_zeroes_sectors: u32_at(48),
            max_write_zeroes_seg: u32_at(52),
            write_zeroes_may_unmap: bytes[56],
            max_secure_erase_sectors: u32_at(60),
            max_secure_erase_seg: u32_at(64),
            secure_erase_sector_alignment: u32_at(68),
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a medium can do.

use super::DiskError;

/// The unit of capacity, offsets and limits in virtio-blk: 512 bytes, whatever the block size is.
pub const SECTOR_SIZE: u64 = 512;

/// The largest capacity in sectors: every byte offset fits a signed 64-bit `off_t`.
const MAX_CAPACITY: u64 = i64::MAX as u64 / SECTOR_SIZE;

/// The three meanings of "alignment". None is ever derived from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignments {
    /// Bytes: the logical block the guest is told (`blk_size`). Operations are multiples of it.
    pub guest_block: u32,
    /// Bytes: what the host's file offset and length must be a multiple of. At most `guest_block`.
    pub host_offset: u32,
    /// Bytes: what a buffer's address must be a multiple of to be used without a copy. The disk copies
    /// where it is not.
    pub host_memory: u32,
}

/// Hints about the medium's geometry, in the fields of the config space (virtio 1.4, 5.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Logical blocks per physical block, as a power of two.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Suggested minimum I/O size in logical blocks.
    pub min_io_size: u16,
    /// Optimal (suggested maximum) I/O size in logical blocks; 0: no suggestion.
    pub opt_io_size: u32,
}

/// Limits of one discard or secure-erase request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EraseLimits {
    /// Most sectors in one segment. Not 0.
    pub max_sectors: u32,
    /// Most segments in one request. Not 0.
    pub max_segments: u32,
    /// Sectors: what segments should be aligned to. Not 0.
    pub alignment: u32,
}

/// Limits of one write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroLimits {
    /// Most sectors in one segment. Not 0.
    pub max_sectors: u32,
    /// Most segments in one request. Not 0.
    pub max_segments: u32,
    /// A write-zeroes with `unmap` may deallocate.
    pub may_unmap: bool,
}

/// What a medium can do: the source of the device's feature bits and config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Sectors of 512 bytes. A multiple of the guest block.
    pub capacity: u64,
    /// Block size and alignments.
    pub align: Alignments,
    /// Geometry hints.
    pub topology: Topology,
    /// Nothing may change the medium.
    pub read_only: bool,
    /// Completed writes may sit in a volatile cache until a flush (or `fua`).
    pub flush: bool,
    /// Discard is possible, with these limits.
    pub discard: Option<EraseLimits>,
    /// Write-zeroes is possible, with these limits.
    pub write_zeroes: Option<ZeroLimits>,
    /// Secure erase is possible, with these limits.
    pub secure_erase: Option<EraseLimits>,
    /// [`super::OpKind::Lifetime`] is answered.
    pub lifetime: bool,
    /// Most queues open at once. Not 0.
    pub max_queues: u16,
}

impl Caps {
    /// A writable medium of `capacity` sectors of 512 bytes with 512-byte blocks, no volatile cache, no
    /// optional operation and any number of queues. Change what differs.
    pub const fn basic(capacity: u64) -> Self {
        Self {
            capacity,
            align: Alignments {
                guest_block: SECTOR_SIZE as u32,
                host_offset: 1,
                host_memory: 1,
            },
            topology: Topology {
                physical_block_exp: 0,
                alignment_offset: 0,
                min_io_size: 1,
                opt_io_size: 0,
            },
            read_only: false,
            flush: false,
            discard: None,
            write_zeroes: None,
            secure_erase: None,
            lifetime: false,
            max_queues: u16::MAX,
        }
    }

    /// The capacity in bytes. Cannot overflow once [`Caps::validate`] passed; saturates before.
    pub const fn capacity_bytes(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR_SIZE)
    }

    /// Whether `len` bytes from `offset` lie inside the capacity. Free of overflow.
    pub const fn contains(&self, offset: u64, len: u64) -> bool {
        let capacity = self.capacity_bytes();
        offset <= capacity && len <= capacity - offset
    }

    /// Checks that the values make sense together, so that the device can trust them.
    ///
    /// # Errors
    /// [`DiskError::Config`] with the field that is wrong.
    pub fn validate(&self) -> Result<(), DiskError> {
        let refuse = |what: &str| {
            Err(DiskError::Config(format!(
                "invalid disk capabilities: {what}"
            )))
        };
        let Alignments {
            guest_block,
            host_offset,
            host_memory,
        } = self.align;
        if !guest_block.is_power_of_two()
            || u64::from(guest_block) < SECTOR_SIZE
            || guest_block > 1 << 21
        {
            return refuse("guest_block must be a power of two from 512 to 2097152");
        }
        if !host_offset.is_power_of_two() || host_offset > guest_block {
            return refuse("host_offset must be a power of two and at most guest_block");
        }
        if !host_memory.is_power_of_two() || host_memory > 1 << 21 {
            return refuse("host_memory must be a power of two and at most 2097152");
        }
        if self.capacity > MAX_CAPACITY {
            return refuse("capacity is beyond 2^63 bytes");
        }
        if !self.capacity_bytes().is_multiple_of(u64::from(guest_block)) {
            return refuse("capacity is not a multiple of guest_block");
        }
        if self.topology.physical_block_exp > 16 {
            return refuse("physical_block_exp is beyond 16");
        }
        if self.max_queues == 0 {
            return refuse("max_queues is 0");
        }
        for (limits, name) in [
            (self.discard, "discard"),
            (self.secure_erase, "secure_erase"),
        ] {
            if limits.is_some_and(|l| l.max_sectors == 0 || l.max_segments == 0 || l.alignment == 0)
            {
                return refuse(&format!("a limit of {name} is 0"));
            }
        }
        if self
            .write_zeroes
            .is_some_and(|l| l.max_sectors == 0 || l.max_segments == 0)
        {
            return refuse("a limit of write_zeroes is 0");
        }
        Ok(())
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory for requests, cut into equal slots.

use vm_memory::GuestAddress;

use super::ArenaError;
use crate::Segment;
use crate::wire::{DESC_LEN, HEADER_LEN};

/// How to cut an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Requests in flight at a time.
    pub slots: u16,
    /// Bytes of data per request.
    pub data_len: u32,
    /// Bytes the data is aligned to, a power of two; at least 16 are kept.
    pub data_align: u32,
    /// Descriptors an indirect table has room for; 0 for no tables.
    pub table_len: u16,
}

impl Default for ArenaConfig {
    /// 16 slots of 4096 bytes aligned to 512, tables for 16 descriptors.
    fn default() -> Self {
        Self {
            slots: 16,
            data_len: 4096,
            data_align: 512,
            table_len: 16,
        }
    }
}

impl ArenaConfig {
    const fn align(&self) -> u64 {
        if self.data_align > 16 {
            self.data_align as u64
        } else {
            16
        }
    }

    /// Bytes from a slot's start to its data.
    const fn data_offset(&self) -> u64 {
        (DESC_LEN * self.table_len as u64 + HEADER_LEN as u64).next_multiple_of(self.align())
    }

    const fn stride(&self) -> u64 {
        (self.data_offset() + self.data_len as u64 + 1).next_multiple_of(self.align())
    }

    /// Bytes of guest memory an arena takes, wherever it starts.
    pub const fn footprint(&self) -> u64 {
        self.stride() * self.slots as u64 + self.align()
    }
}

/// Guest memory cut into slots, one per request in flight. In a slot lie, in this order and the last
/// three without a gap, so that descriptors may span them: indirect table, header, data, status.
/// Data out starts at the data's start, data in ends at its end.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    base: GuestAddress,
    config: ArenaConfig,
}

impl Arena {
    /// An arena of [`ArenaConfig::footprint`] bytes from `base` on, where `base` needs no alignment.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub fn new(base: GuestAddress, config: ArenaConfig) -> Result<Self, ArenaError> {
        if config.slots == 0 {
            return Err(ArenaError::NoSlots);
        }
        if !config.data_align.is_power_of_two() {
            return Err(ArenaError::Alignment(config.data_align));
        }
        let len = config.footprint();
        if base.0.checked_add(len).is_none() {
            return Err(ArenaError::Wraps { base: base.0, len });
        }
        let base = GuestAddress(base.0.next_multiple_of(config.align()));
        Ok(Self { base, config })
    }

    /// How it is cut.
    pub const fn config(&self) -> &ArenaConfig {
        &self.config
    }

    /// The places in a slot, which must be below the number of slots.
    pub(super) const fn slot(&self, index: u16) -> Slot {
        let base = self.base.0 + self.config.stride() * index as u64;
        Slot {
            table: GuestAddress(base),
            data: Segment::new(
                GuestAddress(base + self.config.data_offset()),
                self.config.data_len,
            ),
        }
    }
}

/// The places in one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// The indirect table.
    pub table: GuestAddress,
    /// The data area.
    pub data: Segment,
}

impl Slot {
    pub(super) const fn header(&self) -> GuestAddress {
        GuestAddress(self.data.addr.0 - HEADER_LEN as u64)
    }

    pub(super) const fn status(&self) -> GuestAddress {
        GuestAddress(self.data.addr.0 + self.data.len as u64)
    }

    /// Data in of `len` bytes, which fit.
    pub(super) const fn input(&self, len: u32) -> Segment {
        let offset = self.data.len as u64 - len as u64;
        Segment::new(GuestAddress(self.data.addr.0 + offset), len)
    }
}

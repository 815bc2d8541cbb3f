// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the guest's units are, as far as it is remembered: what the fast path looks at, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::Place;

/// Most units that are remembered: 2 MiB.
const MAX_SLOTS: u64 = 1 << 18;
/// Bits of a place in a slot: a number of units.
const PLACE_BITS: u32 = 40;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
/// Instead of a place: it reads as zeroes.
const ZERO: u64 = PLACE_MASK;
/// Instead of a place: the backing file has it.
const BELOW: u64 = PLACE_MASK - 1;
/// Data may be written in place.
const WRITABLE: u64 = 1 << PLACE_BITS;
const TAG_SHIFT: u32 = PLACE_BITS + 1;
const MAX_TAG: u64 = (1 << (64 - TAG_SHIFT)) - 1;

/// Where a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the file, in one piece from this byte on.
    Data(u64),
    /// It reads as zeroes.
    Zero,
    /// In the backing file, at the same place.
    Below,
}

/// Where units are. Each has one slot where it can be remembered, so that the next one that belongs there replaces it.
///
/// A slot is changed under the lock of the slice that the unit's entry is in. It is looked at without one.
pub struct Map {
    /// The unit's tag, whether it may be written, and its place; 0: nothing.
    slots: Box<[AtomicU64]>,
    slot_bits: u32,
    unit_bits: u32,
}

impl Map {
    /// For a disk of `size` bytes in units of `1 << unit_bits`.
    pub fn new(size: u64, unit_bits: u32) -> Self {
        let units = size.div_ceil(1 << unit_bits);
        let count = units.clamp(1, MAX_SLOTS).next_power_of_two();
        Self {
            slots: (0..count).map(|_| AtomicU64::new(0)).collect(),
            slot_bits: count.ilog2(),
            unit_bits,
        }
    }

    #[inline]
    fn slot(&self, unit: u64) -> Option<(&AtomicU64, u64)> {
        let tag = (unit >> self.slot_bits) + 1;
        let slot = self.slots.get(unit as usize & (self.slots.len() - 1))?;
        Some((slot, tag))
    }

    #[inline]
    fn get(&self, unit: u64) -> Option<u64> {
        let (slot, tag) = self.slot(unit)?;
        let value = slot.load(Ordering::Acquire);
        (value >> TAG_SHIFT == tag).then_some(value)
    }

    /// Where `len` bytes at `offset` of the guest are, if that is remembered for all of them and they are in one piece,
    /// and may be written in place if `write`.
    #[inline]
    pub fn find(&self, offset: u64, len: usize, write: bool) -> Option<Found> {
        let first = offset >> self.unit_bits;
        let last = (offset + len as u64).checked_sub(1)? >> self.unit_bits;
        let value = self.get(first)?;
        if write && value & WRITABLE == 0 {
            return None;
        }
        let place = value & PLACE_MASK;
        let special = place >= BELOW;
        for unit in first + 1..=last {
            let expected = if special {
                place
            } else {
                place + (unit - first)
            };
            let next = self.get(unit)?;
            if next & PLACE_MASK != expected || (write && next & WRITABLE == 0) {
                return None;
            }
        }
        Some(match place {
            ZERO => Found::Zero,
            BELOW => Found::Below,
            place => {
                Found::Data((place << self.unit_bits) + (offset & ((1 << self.unit_bits) - 1)))
            }
        })
    }

    /// Remembers where a unit is. `writable`: data there may be written in place.
    pub fn set(&self, unit: u64, place: Place, writable: bool) {
        let Some((slot, tag)) = self.slot(unit) else {
            return;
        };
        let place = match place {
            Place::Zero => ZERO,
            Place::Below => BELOW,
            Place::Data(host) if host >> self.unit_bits < BELOW => {
                host >> self.unit_bits | if writable { WRITABLE } else { 0 }
            }
            Place::Data(_) | Place::Compressed => return self.clear(unit),
        };
        let value = if tag <= MAX_TAG {
            tag << TAG_SHIFT | place
        } else {
            0
        };
        slot.store(value, Ordering::Release);
    }

    /// Forgets where a unit is.
    pub fn clear(&self, unit: u64) {
        let Some((slot, tag)) = self.slot(unit) else {
            return;
        };
        // What belongs to another unit stays: its own slice's lock guards it.
        let value = slot.load(Ordering::Acquire);
        if value >> TAG_SHIFT == tag {
            let _ = slot.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_found_and_nothing_else() {
        let map = Map::new(1 << 30, 16);
        assert_eq!(map.find(0, 512, false), None);
        map.set(0, Place::Data(5 << 16), true);
        map.set(1, Place::Data(6 << 16), false);
        map.set(2, Place::Data(9 << 16), true);
        map.set(3, Place::Zero, false);
        map.set(4, Place::Below, false);
        map.set(5, Place::Below, false);
        assert_eq!(map.find(512, 512, true), Some(Found::Data((5 << 16) + 512)));
        assert_eq!(
            map.find(512, 1 << 16, false),
            Some(Found::Data((5 << 16) + 512))
        );
        assert_eq!(map.find(512, 1 << 16, true), None);
        assert_eq!(map.find(1 << 16, 2 << 16, false), None);
        assert_eq!(map.find(3 << 16, 512, false), Some(Found::Zero));
        assert_eq!(map.find(3 << 16, 512, true), None);
        assert_eq!(map.find(4 << 16, 2 << 16, false), Some(Found::Below));
        assert_eq!(map.find(3 << 16, 2 << 16, false), None);
        assert_eq!(map.find(0, 0, false), None);
        map.clear(0);
        assert_eq!(map.find(512, 512, false), None);
        map.set(1, Place::Compressed, false);
        assert_eq!(map.find(1 << 16, 512, false), None);
    }

    #[test]
    fn units_that_share_a_slot_are_told_apart() {
        let map = Map::new(1 << 44, 16);
        let other = MAX_SLOTS;
        map.set(7, Place::Data(1 << 16), true);
        map.set(7 + other, Place::Data(2 << 16), true);
        assert_eq!(map.find(7 << 16, 512, false), None);
        map.clear(7);
        let found = map.find((7 + other) << 16, 512, false);
        assert_eq!(found, Some(Found::Data(2 << 16)));
        // Beyond what a tag can tell: not remembered.
        let far = (MAX_TAG + 7) << 18;
        map.set(far, Place::Zero, false);
        assert_eq!(map.find(far << 16, 512, false), None);
    }
}

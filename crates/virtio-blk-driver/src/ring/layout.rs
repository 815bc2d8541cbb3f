// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the three areas of a split virtqueue lie.

use vm_memory::GuestAddress;

use super::LayoutError;

/// The largest queue size (virtio 1.4, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

const DESC: &str = "descriptor table";
const AVAIL: &str = "available ring";
const USED: &str = "used ring";

/// Size and addresses of a split virtqueue. Each value guarantees that the size is a power of two, the
/// areas are aligned, fit the address space and do not overlap. Nothing is said about memory there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitLayout {
    size: u16,
    desc: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
}

impl SplitLayout {
    /// Bytes the descriptor table's address must be a multiple of.
    pub const DESC_ALIGN: u64 = 16;
    /// Bytes the available ring's address must be a multiple of.
    pub const AVAIL_ALIGN: u64 = 2;
    /// Bytes the used ring's address must be a multiple of.
    pub const USED_ALIGN: u64 = 4;

    /// Bytes of the descriptor table of a queue of `size`.
    pub const fn desc_len(size: u16) -> u64 {
        16 * size as u64
    }

    /// Bytes of the available ring of a queue of `size`, with `used_event`.
    pub const fn avail_len(size: u16) -> u64 {
        6 + 2 * size as u64
    }

    /// Bytes of the used ring of a queue of `size`, with `avail_event`.
    pub const fn used_len(size: u16) -> u64 {
        6 + 8 * size as u64
    }

    /// Bytes that [`SplitLayout::contiguous`] takes for a queue of `size`.
    pub const fn footprint(size: u16) -> u64 {
        Self::used_offset(size) + Self::used_len(size)
    }

    const fn used_offset(size: u16) -> u64 {
        (Self::desc_len(size) + Self::avail_len(size)).next_multiple_of(Self::USED_ALIGN)
    }

    /// The three areas one after the other from `base` on, which must be a multiple of
    /// [`SplitLayout::DESC_ALIGN`].
    ///
    /// # Errors
    /// What is wrong with `size` or `base`.
    pub fn contiguous(size: u16, base: GuestAddress) -> Result<Self, LayoutError> {
        let at = |offset, area| match base.0.checked_add(offset) {
            Some(addr) => Ok(GuestAddress(addr)),
            None => Err(LayoutError::Wraps { area, addr: base.0 }),
        };
        Self::new(
            size,
            base,
            at(Self::desc_len(size), AVAIL)?,
            at(Self::used_offset(size), USED)?,
        )
    }

    /// The three areas at addresses of their own.
    ///
    /// # Errors
    /// What is wrong with `size` or the addresses.
    pub fn new(
        size: u16,
        desc: GuestAddress,
        avail: GuestAddress,
        used: GuestAddress,
    ) -> Result<Self, LayoutError> {
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(LayoutError::Size(size));
        }
        let areas = [
            (DESC, desc.0, Self::desc_len(size), Self::DESC_ALIGN),
            (AVAIL, avail.0, Self::avail_len(size), Self::AVAIL_ALIGN),
            (USED, used.0, Self::used_len(size), Self::USED_ALIGN),
        ];
        for (area, addr, len, align) in areas {
            if !addr.is_multiple_of(align) {
                return Err(LayoutError::Misaligned { area, addr, align });
            }
            if addr.checked_add(len).is_none() {
                return Err(LayoutError::Wraps { area, addr });
            }
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let ((first, start, len, _), (second, other, other_len, _)) = (areas[a], areas[b]);
            if start < other + other_len && other < start + len {
                return Err(LayoutError::Overlap(first, second));
            }
        }
        Ok(Self {
            size,
            desc,
            avail,
            used,
        })
    }

    /// Entries in each of the areas.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    pub const fn desc(&self) -> GuestAddress {
        self.desc
    }

    /// The available ring: flags, index, entries, `used_event`.
    pub const fn avail(&self) -> GuestAddress {
        self.avail
    }

    /// The used ring: flags, index, entries, `avail_event`.
    pub const fn used(&self) -> GuestAddress {
        self.used
    }

    /// Descriptor `index`, which must be below the size.
    pub(crate) const fn desc_at(&self, index: u16) -> GuestAddress {
        GuestAddress(self.desc.0 + 16 * index as u64)
    }

    pub(crate) const fn avail_flags(&self) -> GuestAddress {
        self.avail
    }

    pub(crate) const fn avail_idx(&self) -> GuestAddress {
        GuestAddress(self.avail.0 + 2)
    }

    /// The entry that available index `index` stands for.
    pub(crate) const fn avail_at(&self, index: u16) -> GuestAddress {
        GuestAddress(self.avail.0 + 4 + 2 * self.slot(index) as u64)
    }

    pub(crate) const fn used_event(&self) -> GuestAddress {
        GuestAddress(self.avail.0 + 4 + 2 * self.size as u64)
    }

    pub(crate) const fn used_flags(&self) -> GuestAddress {
        self.used
    }

    pub(crate) const fn used_idx(&self) -> GuestAddress {
        GuestAddress(self.used.0 + 2)
    }

    /// The entry that used index `index` stands for.
    pub(crate) const fn used_at(&self, index: u16) -> GuestAddress {
        GuestAddress(self.used.0 + 4 + 8 * self.slot(index) as u64)
    }

    pub(crate) const fn avail_event(&self) -> GuestAddress {
        GuestAddress(self.used.0 + 4 + 8 * self.size as u64)
    }

    /// The place of a free-running index in a ring.
    pub(crate) const fn slot(&self, index: u16) -> u16 {
        index & (self.size - 1)
    }
}

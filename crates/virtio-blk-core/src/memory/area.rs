// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One ring structure (descriptor table, available or used ring) at its host address.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::Permissions;

use super::{DeviceMemory, GuestMap, Unmapped, read_16};

/// A piece of an area that is not contiguous in host memory.
struct Piece {
    offset: usize,
    base: *mut u8,
    len: usize,
}

/// A ring structure resolved to host memory: one piece nearly always, several where the guest's memory
/// is fragmented below an IOMMU.
///
/// Every piece starts and ends at a multiple of the area's alignment, so an aligned element never
/// straddles two. Valid only while the [`GuestMap::keep`] of its resolution lives; the ring that owns it
/// holds that.
pub(crate) struct RingArea {
    addr: u64,
    base: *mut u8,
    first_len: usize,
    rest: Vec<Piece>,
}

// SAFETY: the addresses belong to memory that the owning ring keeps mapped for any thread.
unsafe impl Send for RingArea {}

impl RingArea {
    /// Resolves `len` bytes at guest address `addr`, all of whose pieces are aligned to `align`.
    pub(crate) fn resolve<M: DeviceMemory>(
        map: &GuestMap<M>,
        addr: u64,
        len: usize,
        access: Permissions,
        align: usize,
    ) -> Result<Self, Unmapped> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        let mut aligned = true;
        map.translate(addr, len, access, |base, piece_len| {
            aligned &= (base as usize).is_multiple_of(align) && offset % align == 0;
            pieces.push(Piece {
                offset,
                base,
                len: piece_len,
            });
            offset += piece_len;
        })?;
        let mut pieces = pieces.into_iter();
        match pieces.next() {
            Some(first) if aligned => Ok(Self {
                addr,
                base: first.base,
                first_len: first.len,
                rest: pieces.collect(),
            }),
            _ => Err(Unmapped {
                addr,
                len: len as u64,
            }),
        }
    }

    /// The guest address of byte `offset`.
    #[inline]
    pub(crate) fn guest_addr(&self, offset: usize) -> u64 {
        self.addr.wrapping_add(offset as u64)
    }

    /// The host address of `size` bytes at `offset`. The caller keeps offsets inside the area.
    #[inline]
    fn at(&self, offset: usize, size: usize) -> Option<*mut u8> {
        if offset + size <= self.first_len {
            return Some(self.base.wrapping_add(offset));
        }
        self.at_slowly(offset, size)
    }

    #[cold]
    fn at_slowly(&self, offset: usize, size: usize) -> Option<*mut u8> {
        let piece = self
            .rest
            .iter()
            .find(|p| offset >= p.offset && offset + size <= p.offset + p.len)?;
        Some(piece.base.wrapping_add(offset - piece.offset))
    }

    /// Loads a little-endian `u16` at an even `offset`. `None`: outside the area.
    #[inline]
    pub(crate) fn load_u16(&self, offset: usize, order: Ordering) -> Option<u16> {
        let ptr = self.at(offset, 2)?.cast::<u16>();
        debug_assert!(ptr.is_aligned());
        // SAFETY: `ptr` is mapped for two bytes and aligned (pieces and offset are even). The guest
        // accesses the field with atomics or volatile accesses of the same size, as the ring layout
        // demands; whatever it does, any value may be read.
        let field = unsafe { AtomicU16::from_ptr(ptr) };
        Some(u16::from_le(field.load(order)))
    }

    /// Stores a little-endian `u16` at an even `offset`. `None`: outside the area, nothing stored.
    #[inline]
    pub(crate) fn store_u16(&self, offset: usize, value: u16, order: Ordering) -> Option<()> {
        let ptr = self.at(offset, 2)?.cast::<u16>();
        debug_assert!(ptr.is_aligned());
        // SAFETY: as in `load_u16`; the area was resolved for writing where this is called.
        unsafe { AtomicU16::from_ptr(ptr) }.store(value.to_le(), order);
        Some(())
    }

    /// Stores two little-endian `u32` at an `offset` that is a multiple of four, without ordering. What lies
    /// outside the area is not stored.
    #[inline(always)]
    pub(crate) fn store_pair(&self, offset: usize, first: u32, second: u32) {
        if offset + 8 <= self.first_len {
            let ptr = self.base.wrapping_add(offset).cast::<u32>();
            debug_assert!(ptr.is_aligned());
            // SAFETY: as in `store_u32`, for both.
            unsafe {
                AtomicU32::from_ptr(ptr).store(first.to_le(), Ordering::Relaxed);
                AtomicU32::from_ptr(ptr.wrapping_add(1)).store(second.to_le(), Ordering::Relaxed);
            }
        } else {
            self.store_u32(offset, first);
            self.store_u32(offset + 4, second);
        }
    }

    /// Stores a little-endian `u32` at an `offset` that is a multiple of four, without ordering.
    /// `None`: outside the area, nothing stored.
    #[cold]
    pub(crate) fn store_u32(&self, offset: usize, value: u32) -> Option<()> {
        let ptr = self.at(offset, 4)?.cast::<u32>();
        debug_assert!(ptr.is_aligned());
        // SAFETY: as in `store_u16`, for areas whose pieces are aligned to four.
        unsafe { AtomicU32::from_ptr(ptr) }.store(value.to_le(), Ordering::Relaxed);
        Some(())
    }

    /// Copies 16 bytes at `offset` to private memory, each byte read once, as two little-endian numbers.
    /// `None`: outside the area.
    #[inline]
    pub(crate) fn read_16(&self, offset: usize) -> Option<[u64; 2]> {
        let ptr = self.at(offset, 16)?;
        // SAFETY: `ptr` is mapped for 16 bytes.
        Some(unsafe { read_16(ptr) })
    }
}

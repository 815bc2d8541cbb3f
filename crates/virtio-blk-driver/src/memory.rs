// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to guest memory, free of the traps on its edges.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

/// A piece of guest memory: an address the device understands (guest physical or I/O virtual) and a
/// length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: GuestAddress,
    /// Bytes. 0 is legal and makes an empty descriptor.
    pub len: u32,
}

impl Segment {
    /// A segment of `len` bytes from `addr` on.
    pub const fn new(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len }
    }
}

/// Why guest memory could not be accessed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The range does not fit the address space.
    #[error("{len} bytes at {addr:#x} reach beyond the end of the address space")]
    Wraps {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: usize,
    },
    /// The range, or a part of it, is not there; part of it may have been copied.
    #[error(
        "cannot access {len} bytes of guest memory at {addr:#x}; check that the range is mapped"
    )]
    Memory {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: usize,
        /// What vm-memory says.
        source: GuestMemoryError,
    },
}

/// The accesses a driver makes to guest memory, little-endian as virtio 1 wants it.
///
/// Every [`GuestMemory`] has it, plain or behind an IOMMU. Two things differ from using vm-memory
/// directly: a range that wraps around the address space is refused before an IOMMU sees it (the
/// lookup of vm-memory 0.18 overflows there), and the trait can be made an object, for code that is not
/// worth compiling once per kind of memory.
pub trait Memory {
    /// Copies `bytes` to `addr`.
    ///
    /// # Errors
    /// [`AccessError`] if the range is not entirely there; part of it may have been written.
    fn write_at(&self, addr: GuestAddress, bytes: &[u8]) -> Result<(), AccessError>;

    /// Fills `bytes` from `addr`.
    ///
    /// # Errors
    /// [`AccessError`] if the range is not entirely there; part of `bytes` may have been filled.
    fn read_at(&self, addr: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError>;

    /// Stores a 16-bit number atomically. `addr` must be even.
    ///
    /// # Errors
    /// [`AccessError`] if there is no memory, or `addr` is odd.
    fn store_u16(&self, addr: GuestAddress, value: u16, order: Ordering)
    -> Result<(), AccessError>;

    /// Loads a 16-bit number atomically. `addr` must be even.
    ///
    /// # Errors
    /// As for [`Memory::store_u16`].
    fn load_u16(&self, addr: GuestAddress, order: Ordering) -> Result<u16, AccessError>;

    /// Whether all `len` bytes from `addr` on can be read and written.
    fn is_mapped(&self, addr: GuestAddress, len: usize) -> bool;
}

/// Refuses a range whose end does not fit 64 bits.
fn check(addr: GuestAddress, len: usize) -> Result<(), AccessError> {
    match addr.0.checked_add(len as u64) {
        Some(_) => Ok(()),
        None => Err(AccessError::Wraps { addr: addr.0, len }),
    }
}

fn failed(addr: GuestAddress, len: usize) -> impl FnOnce(GuestMemoryError) -> AccessError {
    move |source| AccessError::Memory {
        addr: addr.0,
        len,
        source,
    }
}

impl<M: GuestMemory + ?Sized> Memory for M {
    #[inline]
    fn write_at(&self, addr: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        check(addr, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.write_slice(bytes, addr)
            .map_err(failed(addr, bytes.len()))
    }

    #[inline]
    fn read_at(&self, addr: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        let len = bytes.len();
        check(addr, len)?;
        if len == 0 {
            return Ok(());
        }
        self.read_slice(bytes, addr).map_err(failed(addr, len))
    }

    #[inline]
    fn store_u16(
        &self,
        addr: GuestAddress,
        value: u16,
        order: Ordering,
    ) -> Result<(), AccessError> {
        check(addr, 2)?;
        self.store(value.to_le(), addr, order)
            .map_err(failed(addr, 2))
    }

    #[inline]
    fn load_u16(&self, addr: GuestAddress, order: Ordering) -> Result<u16, AccessError> {
        check(addr, 2)?;
        self.load(addr, order)
            .map(u16::from_le)
            .map_err(failed(addr, 2))
    }

    fn is_mapped(&self, addr: GuestAddress, len: usize) -> bool {
        check(addr, len).is_ok() && self.check_range(addr, len, Permissions::ReadWrite)
    }
}

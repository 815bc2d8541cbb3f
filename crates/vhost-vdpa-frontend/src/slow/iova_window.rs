// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The shadow window: memory of our own that is mapped in the device while the slow path runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, Permissions};
use virtio_blk_driver::{AccessError, Memory};
use vm_memory::{GuestAddress, GuestMemoryError};

use crate::PathError;

/// A shared mapping of a file without a name: parents that pass descriptors on can share it.
struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the memory is mapped for all threads, and only reached by raw copies and atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> rustix::io::Result<Self> {
        let file = memfd_create("vdpa-shadow", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice; the file has `len` bytes.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        Ok(Self {
            base: base.cast(),
            len,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and every user of it holds the mapping.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

/// The window, by the addresses that the device knows it under. Cheap to clone.
#[derive(Clone)]
pub(super) struct IovaWindow {
    iova: u64,
    memory: Arc<Mapping>,
}

impl IovaWindow {
    /// `len` zero bytes at `iova`.
    pub(super) fn new(iova: u64, len: usize) -> Result<Self, PathError> {
        let memory = Mapping::new(len).map_err(|errno| PathError::System {
            what: "no memory for the shadow window",
            source: errno.into(),
        })?;
        Ok(Self {
            iova,
            memory: Arc::new(memory),
        })
    }

    /// Its first address.
    pub(super) const fn iova(&self) -> u64 {
        self.iova
    }

    /// Its last address.
    pub(super) fn last(&self) -> u64 {
        self.iova + (self.memory.len as u64 - 1)
    }

    /// What to map.
    pub(super) fn mapping(&self) -> Result<IotlbMapping, PathError> {
        let Mapping { base, len } = *self.memory;
        // SAFETY: the range is mapped for reading and writing as long as the mapping lives.
        let memory = unsafe { HostMemory::new(base, len, self.memory.clone()) };
        Ok(IotlbMapping::new(
            self.iova,
            memory,
            Permissions::ReadWrite,
        )?)
    }

    /// The host address of `len` bytes at `addr`.
    #[inline]
    pub(super) fn host(&self, addr: u64, len: usize) -> Option<*mut u8> {
        let offset = addr.wrapping_sub(self.iova);
        let room = (self.memory.len as u64).checked_sub(offset)?;
        (len as u64 <= room).then(|| self.memory.base.wrapping_add(offset as usize))
    }

    #[inline]
    fn at(&self, addr: GuestAddress, len: usize) -> Result<*mut u8, AccessError> {
        self.host(addr.0, len).ok_or(AccessError::Memory {
            addr: addr.0,
            len,
            source: GuestMemoryError::InvalidGuestAddress(addr),
        })
    }

    fn field(&self, addr: GuestAddress) -> Result<&AtomicU16, AccessError> {
        let at = self.at(addr, 2)?.cast::<u16>();
        if !at.is_aligned() {
            return Err(AccessError::Memory {
                addr: addr.0,
                len: 2,
                source: GuestMemoryError::InvalidGuestAddress(addr),
            });
        }
        // SAFETY: mapped and aligned while `self` lives; the device accesses ring fields as whole words.
        Ok(unsafe { AtomicU16::from_ptr(at) })
    }
}

impl Memory for IovaWindow {
    #[inline]
    fn write_at(&self, addr: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        let at = self.at(addr, bytes.len())?;
        // SAFETY: `at` is mapped for as many bytes, and `bytes` is private memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }

    #[inline]
    fn read_at(&self, addr: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        let at = self.at(addr, bytes.len())?;
        // SAFETY: as in `write_at`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(at.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    #[inline]
    fn store_u16(
        &self,
        addr: GuestAddress,
        value: u16,
        order: Ordering,
    ) -> Result<(), AccessError> {
        self.field(addr)?.store(value.to_le(), order);
        Ok(())
    }

    #[inline]
    fn load_u16(&self, addr: GuestAddress, order: Ordering) -> Result<u16, AccessError> {
        Ok(u16::from_le(self.field(addr)?.load(order)))
    }

    fn is_mapped(&self, addr: GuestAddress, len: usize) -> bool {
        self.host(addr.0, len).is_some()
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A range of host memory that stays mapped.

use std::fmt;
use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemoryRegion, MemoryRegionAddress};

use super::KeepAlive;

/// Bytes of host memory together with what keeps them mapped. Cheap to clone and to cut.
///
/// The memory may be shared with others that change it at any moment: it is only reached by raw copies
/// or handed to the kernel.
#[derive(Clone)]
pub struct HostMemory {
    base: *mut u8,
    len: usize,
    keep: Arc<dyn KeepAlive>,
}

// SAFETY: `keep` holds the memory mapped for any thread, and nothing but raw accesses are made to it.
unsafe impl Send for HostMemory {}
// SAFETY: as above; no method gives out a reference into the memory.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `len` bytes from `base` on.
    ///
    /// # Safety
    /// The range is mapped, readable and writable, from any thread, for as long as `keep` lives, and no
    /// reference into it exists meanwhile. (Memory that is mapped read-only may be given too, if it only
    /// ever enters an `IotlbMapping` without write permission.)
    pub unsafe fn new(base: *mut u8, len: usize, keep: Arc<dyn KeepAlive>) -> Self {
        Self { base, len, keep }
    }

    /// `len` bytes from `offset` of a region of guest memory. `None` if the region is shorter or has no
    /// host address.
    pub fn from_region<R>(region: Arc<R>, offset: u64, len: usize) -> Option<Self>
    where
        R: GuestMemoryRegion + Send + Sync + 'static,
    {
        let end = offset.checked_add(len as u64)?;
        if end > region.len() {
            return None;
        }
        let base = region
            .get_host_address(MemoryRegionAddress(0))
            .ok()?
            .wrapping_add(usize::try_from(offset).ok()?);
        Some(Self {
            base,
            len,
            keep: region,
        })
    }

    /// The regions of a plain memory map with their guest addresses, kept mapped by the map's guard.
    pub fn of_map<M>(space: &M) -> Vec<(u64, Self)>
    where
        M: super::DeviceMemory,
    {
        use std::ops::Deref;
        use vm_memory::{Address, GuestMemory, GuestMemoryBackend};

        let guard = Arc::new(GuestAddressSpace::memory(space));
        let Some(plain) = guard.deref().deref().physical_memory() else {
            return Vec::new();
        };
        plain
            .iter()
            .filter_map(|region| {
                let base = region.get_host_address(MemoryRegionAddress(0)).ok()?;
                let memory = Self {
                    base,
                    len: usize::try_from(region.len()).ok()?,
                    keep: guard.clone(),
                };
                Some((region.start_addr().raw_value(), memory))
            })
            .collect()
    }

    /// A part of it. `None` if it does not lie inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        (offset.checked_add(len)? <= self.len).then(|| Self {
            base: self.base.wrapping_add(offset),
            len,
            keep: self.keep.clone(),
        })
    }

    /// Its first byte.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What keeps it mapped.
    pub const fn keep(&self) -> &Arc<dyn KeepAlive> {
        &self.keep
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({:p}, {:#x} bytes)", self.base, self.len)
    }
}

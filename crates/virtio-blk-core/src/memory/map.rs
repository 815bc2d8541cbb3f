// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Translation of guest ranges to host memory.

#[cfg(feature = "iotlb")]
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::mem::size_of;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryRegion,
    MemoryRegionAddress, Permissions,
};

#[cfg(feature = "iotlb")]
use super::IotlbTable;
use super::{DeviceMemory, KeepAlive, Unmapped};

/// One contiguous piece of guest memory. `last` is inclusive so that a region may end at 2^64.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    last: u64,
    base: *mut u8,
    permissions: Permissions,
}

/// A region in the form in which looking into it is cheapest.
#[derive(Clone, Copy)]
struct Hint {
    start: u64,
    /// Bytes.
    len: u64,
    base: *mut u8,
}

impl Hint {
    /// A region that holds no range.
    const NONE: Self = Self {
        start: 0,
        len: 0,
        base: std::ptr::null_mut(),
    };
}

/// The memory map a queue works on: a snapshot of the guest's, held mapped.
pub struct GuestMap<M: GuestAddressSpace> {
    space: M,
    guard: Arc<M::T>,
    keep: Arc<dyn KeepAlive>,
    /// The regions of a plain memory map or an IOTLB, by address; empty when lookups go through
    /// translation.
    regions: Vec<Region>,
    translated: bool,
    /// The region that was hit last and may be both read and written.
    hint: Cell<Hint>,
    generation: u64,
    /// Whether writes are tracked now, if not always.
    tracking: Option<Arc<AtomicBool>>,
}

// SAFETY: the host addresses in `regions` belong to memory that `guard` keeps mapped for any thread.
unsafe impl<M: DeviceMemory> Send for GuestMap<M> {}

impl<M: DeviceMemory> GuestMap<M> {
    /// Whether writes are tracked at all: a bitmap without state tracks nothing.
    const TRACKS_DIRTY: bool = size_of::<<M::M as GuestMemory>::Bitmap>() != 0;

    /// Takes a snapshot of `space`.
    pub fn new(space: M) -> Self {
        let guard = Arc::new(space.memory());
        let keep: Arc<dyn KeepAlive> = guard.clone();
        let mut map = Self {
            space,
            guard,
            keep,
            regions: Vec::new(),
            translated: false,
            hint: Cell::new(Hint::NONE),
            generation: 1,
            tracking: None,
        };
        map.index();
        map
    }

    /// Makes [`GuestMap::mark_dirty`] do nothing while `tracking` is there and false.
    pub(crate) fn track_while(&mut self, tracking: Option<Arc<AtomicBool>>) {
        self.tracking = tracking;
    }

    /// Whether the address space has another memory map now than when the snapshot was taken. Cheap.
    /// A translation that changed inside the same map can't be seen: its owner calls
    /// [`GuestMap::renew`].
    #[inline]
    pub fn is_stale(&self) -> bool {
        let now = self.space.memory();
        !std::ptr::eq(now.deref(), self.guard.deref().deref())
    }

    /// Takes a new snapshot. Host addresses given out before stay mapped as long as their owner holds
    /// the [`KeepAlive`] of that time.
    pub fn renew(&mut self) {
        self.guard = Arc::new(self.space.memory());
        self.keep = self.guard.clone();
        self.generation += 1;
        self.index();
    }

    fn index(&mut self) {
        self.regions.clear();
        self.hint.set(Hint::NONE);
        self.translated = false;
        let memory: &M::M = self.guard.deref().deref();
        #[cfg(feature = "iotlb")]
        if let Some(table) = (memory as &dyn Any).downcast_ref::<IotlbTable>() {
            self.regions
                .extend(table.mappings().iter().map(|mapping| Region {
                    start: mapping.iova(),
                    last: mapping.last(),
                    base: mapping.memory().as_ptr(),
                    permissions: mapping.permissions(),
                }));
            return;
        }
        let Some(plain) = memory.physical_memory() else {
            self.translated = true;
            return;
        };
        for region in plain.iter() {
            // A region without a host address can't be used by a device: leave a hole there.
            if let Ok(base) = region.get_host_address(MemoryRegionAddress(0))
                && region.len() > 0
            {
                self.regions.push(Region {
                    start: region.start_addr().0,
                    last: region.last_addr().0,
                    base,
                    permissions: Permissions::ReadWrite,
                });
            }
        }
        self.regions.sort_unstable_by_key(|r| r.start);
    }

    /// Counts snapshots: differs after each [`GuestMap::renew`].
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What keeps every host address of this snapshot mapped.
    #[inline]
    pub fn keep(&self) -> &Arc<dyn KeepAlive> {
        &self.keep
    }

    /// Calls `f` with the host address and length of each contiguous piece of `len` bytes of guest memory
    /// from `addr` on, in order. The pieces add up to `len`. They stay mapped while [`GuestMap::keep`]'s
    /// present value lives.
    ///
    /// # Errors
    /// [`Unmapped`] if any part is not mapped for `access`, or the range wraps or, in translated memory, ends
    /// with the address space; `f` may have been called for pieces before that part.
    #[inline(always)]
    pub fn translate(
        &self,
        addr: u64,
        len: usize,
        access: Permissions,
        mut f: impl FnMut(*mut u8, usize),
    ) -> Result<(), Unmapped> {
        let unmapped = Unmapped {
            addr,
            len: len as u64,
        };
        if len == 0 {
            return Ok(());
        }
        let last = self.last(addr, len).ok_or(unmapped)?;
        if let Some(base) = self.host(addr, len) {
            f(base, len);
            return Ok(());
        }
        self.translate_slowly(addr, last, access, &mut f)
            .ok_or(unmapped)
    }

    /// The last byte of a range that is not empty and does not wrap.
    #[inline]
    fn last(&self, addr: u64, len: usize) -> Option<u64> {
        let last = addr.checked_add(len as u64 - 1)?;
        // vm-memory's IOTLB adds the whole length, which overflows at the very end.
        (last != u64::MAX || !self.translated).then_some(last)
    }

    /// The host address of a range that lies in the region that was hit last, as nearly all do. `None`
    /// says nothing: [`GuestMap::translate`] knows.
    #[inline(always)]
    pub(crate) fn host(&self, addr: u64, len: usize) -> Option<*mut u8> {
        let hint = self.hint.get();
        // An address below the region gives an offset beyond it.
        let offset = addr.wrapping_sub(hint.start);
        let found = offset < hint.len && len as u64 <= hint.len - offset;
        found.then(|| hint.base.wrapping_add(offset as usize))
    }

    #[cold]
    fn translate_slowly(
        &self,
        addr: u64,
        last: u64,
        access: Permissions,
        f: &mut dyn FnMut(*mut u8, usize),
    ) -> Option<()> {
        if self.translated {
            self.translate_indirectly(addr, (last - addr) as usize + 1, access, f)
        } else {
            self.translate_over_regions(addr, last, access, f)
        }
    }

    fn translate_over_regions(
        &self,
        mut addr: u64,
        last: u64,
        access: Permissions,
        f: &mut dyn FnMut(*mut u8, usize),
    ) -> Option<()> {
        let mut index = self
            .regions
            .partition_point(|r| r.start <= addr)
            .checked_sub(1)?;
        loop {
            let region = *self.regions.get(index)?;
            if region.permissions == Permissions::ReadWrite {
                self.hint.set(Hint {
                    start: region.start,
                    // No host has memory of 2^64 bytes.
                    len: (region.last - region.start).saturating_add(1),
                    base: region.base,
                });
            }
            if addr < region.start || addr > region.last || !region.permissions.allow(access) {
                return None;
            }
            let end = last.min(region.last);
            f(
                region.base.wrapping_add((addr - region.start) as usize),
                (end - addr) as usize + 1,
            );
            if end == last {
                return Some(());
            }
            addr = end + 1;
            index += 1;
        }
    }

    fn translate_indirectly(
        &self,
        addr: u64,
        len: usize,
        access: Permissions,
        f: &mut dyn FnMut(*mut u8, usize),
    ) -> Option<()> {
        let memory: &M::M = self.guard.deref().deref();
        let mut covered = 0usize;
        for slice in memory.get_slices(GuestAddress(addr), len, access).ok()? {
            let slice = slice.ok()?;
            covered = covered.checked_add(slice.len())?;
            f(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
        // vm-memory promises this, but an IOMMU of another's making may break it.
        (covered == len).then_some(())
    }

    /// Copies 16 bytes from guest memory, each read once, as two little-endian numbers. `None` says
    /// nothing, as for [`GuestMap::host`].
    #[inline(always)]
    pub(crate) fn read_16(&self, addr: u64) -> Option<[u64; 2]> {
        let base = self.host(addr, 16)?;
        // SAFETY: `base` is mapped for 16 bytes.
        Some(unsafe { read_16(base) })
    }

    /// Copies `N` bytes from guest memory.
    ///
    /// # Errors
    /// [`Unmapped`], as for [`GuestMap::translate`].
    #[inline]
    pub fn read_array<const N: usize>(&self, addr: u64) -> Result<[u8; N], Unmapped> {
        let mut bytes = [0; N];
        let mut done = 0;
        self.translate(addr, N, Permissions::Read, |base, len| {
            if let Some(part) = bytes.get_mut(done..done + len) {
                // SAFETY: `base` is mapped for `len` bytes; `part` is our own memory of `len` bytes.
                unsafe { std::ptr::copy_nonoverlapping(base.cast_const(), part.as_mut_ptr(), len) };
                done += len;
            }
        })?;
        Ok(bytes)
    }

    /// Notes that the device wrote `len` bytes from `addr` on. Ranges that are no longer mapped are
    /// passed over. Costs nothing where the memory tracks nothing.
    #[inline]
    pub fn mark_dirty(&self, addr: u64, len: usize) {
        if self.is_tracking() {
            self.mark_tracked(addr, len);
        }
    }

    /// Whether writes are tracked now.
    #[inline]
    pub(crate) fn is_tracking(&self) -> bool {
        Self::TRACKS_DIRTY
            && (self.tracking.as_ref()).is_none_or(|tracking| tracking.load(Ordering::Acquire))
    }

    fn mark_tracked(&self, addr: u64, len: usize) {
        if len != 0 && self.last(addr, len).is_some() {
            let memory: &M::M = self.guard.deref().deref();
            if let Ok(slices) = memory.get_slices(GuestAddress(addr), len, Permissions::Write) {
                for slice in slices.map_while(Result::ok) {
                    slice.bitmap().mark_dirty(0, slice.len());
                }
            }
        }
    }

    /// Whether [`GuestMap::mark_dirty`] has any effect.
    #[inline]
    pub const fn tracks_dirty(&self) -> bool {
        Self::TRACKS_DIRTY
    }
}

impl<M: GuestAddressSpace> fmt::Debug for GuestMap<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMap")
            .field("regions", &self.regions.len())
            .field("translated", &self.translated)
            .field("generation", &self.generation)
            .finish()
    }
}

/// Copies 16 bytes from `ptr`, of any alignment, each byte read exactly once, as two little-endian
/// numbers.
///
/// # Safety
/// `ptr` must be valid for reads of 16 bytes. Other writers are allowed: any mix of old and new bytes
/// may result.
#[inline]
pub(crate) unsafe fn read_16(ptr: *const u8) -> [u64; 2] {
    #[derive(Clone, Copy)]
    #[repr(C, packed)]
    struct Words([u64; 2]);
    // SAFETY: valid for 16 bytes by contract; `Words` has alignment 1. A volatile read is never repeated.
    let Words(words) = unsafe { ptr.cast::<Words>().read_volatile() };
    words.map(u64::from_le)
}

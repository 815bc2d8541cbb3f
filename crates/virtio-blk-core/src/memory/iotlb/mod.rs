// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! I/O virtual memory: which host memory lies at which address for a device (the kernel's
//! `vhost_iotlb`).

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryAtomic, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestMemoryResult, GuestRegionCollection, GuestUsize, Permissions,
    VolatileSlice,
};

use super::HostMemory;

/// Host memory at an I/O virtual address.
#[derive(Clone, Debug)]
pub struct IotlbMapping {
    iova: u64,
    permissions: Permissions,
    memory: HostMemory,
}

/// Why an I/O TLB was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IotlbError {
    /// There is nothing to map.
    #[error("a mapping of no bytes, or without permission, at {0:#x}")]
    Empty(u64),
    /// The range reaches beyond 2^64.
    #[error("{len:#x} bytes at {iova:#x} reach beyond the I/O address space")]
    Wraps {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
    },
    /// Part of the range is mapped: unmap it first.
    #[error("{len:#x} bytes at {iova:#x} overlap a mapping that exists: unmap that first")]
    Overlaps {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
    },
}

impl IotlbMapping {
    /// `memory` at `iova`, for `permissions`. The range may end at 2^64.
    ///
    /// # Errors
    /// Nothing to map, or the range wraps.
    pub fn new(
        iova: u64,
        memory: HostMemory,
        permissions: Permissions,
    ) -> Result<Self, IotlbError> {
        if memory.is_empty() || permissions == Permissions::No {
            return Err(IotlbError::Empty(iova));
        }
        let len = memory.len() as u64;
        if iova.checked_add(len - 1).is_none() {
            return Err(IotlbError::Wraps { iova, len });
        }
        Ok(Self {
            iova,
            permissions,
            memory,
        })
    }

    /// Its first address.
    pub const fn iova(&self) -> u64 {
        self.iova
    }

    /// Its last address.
    pub const fn last(&self) -> u64 {
        // `new` has checked that it does not wrap.
        self.iova + (self.memory.len() as u64 - 1)
    }

    /// What the device may do there.
    pub const fn permissions(&self) -> Permissions {
        self.permissions
    }

    /// The host memory there.
    pub const fn memory(&self) -> &HostMemory {
        &self.memory
    }
}

/// Mappings that do not overlap, by address: one address space of a device at one moment.
///
/// A table that queues use is never changed: another takes its place in the [`Iotlb`]. Queues go over to
/// it when they are next served; what is in flight keeps the old one, and with it the memory, until it
/// ends. A lookup is the same as in a plain memory map; a table of thousands of ranges costs a
/// binary search where neighbouring requests lie in different ranges.
#[derive(Clone, Debug, Default)]
pub struct IotlbTable {
    mappings: Vec<IotlbMapping>,
    intact: Option<Intact>,
}

/// How to ask whether memory is still there.
#[derive(Clone)]
struct Intact(Arc<AreIntact>);

/// Whether the memory of these segments is still there.
type AreIntact = dyn Fn(&[libc::iovec]) -> bool + Send + Sync;

impl fmt::Debug for Intact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intact")
    }
}

/// An [`IotlbTable`] that can be exchanged under the queues that use it.
pub type Iotlb = GuestMemoryAtomic<IotlbTable>;

impl IotlbTable {
    /// An empty table.
    pub const fn new() -> Self {
        Self {
            mappings: Vec::new(),
            intact: None,
        }
    }

    /// Says how to ask whether the memory at these host addresses is still there, where it can be taken away under
    /// its user: [`crate::disk::IoBuf::is_intact`] does. A buffer may keep memory mapped that it does not use;
    /// only its own segments are asked about. `intact` is called often, on any thread.
    pub fn ask_intact(&mut self, intact: impl Fn(&[libc::iovec]) -> bool + Send + Sync + 'static) {
        self.intact = Some(Intact(Arc::new(intact)));
    }

    /// Whether the memory of these segments is still there, as far as can be told.
    pub(crate) fn is_intact(&self, segments: &[libc::iovec]) -> bool {
        (self.intact.as_ref()).is_none_or(|Intact(intact)| intact(segments))
    }

    /// Adds a mapping.
    ///
    /// # Errors
    /// It overlaps one that is there; nothing was changed.
    pub fn insert(&mut self, mapping: IotlbMapping) -> Result<(), IotlbError> {
        let at = self
            .mappings
            .partition_point(|found| found.last() < mapping.iova);
        if self
            .mappings
            .get(at)
            .is_some_and(|next| next.iova <= mapping.last())
        {
            return Err(IotlbError::Overlaps {
                iova: mapping.iova,
                len: mapping.memory.len() as u64,
            });
        }
        self.mappings.insert(at, mapping);
        Ok(())
    }

    /// Removes every mapping that has an address in `first..=last`, whole, as the kernel does. Answers
    /// how many.
    pub fn remove(&mut self, first: u64, last: u64) -> usize {
        let range = self.overlapping(first, last);
        self.mappings.drain(range).count()
    }

    /// The mappings that have an address in `first..=last`.
    pub fn find(&self, first: u64, last: u64) -> &[IotlbMapping] {
        self.mappings
            .get(self.overlapping(first, last))
            .unwrap_or_default()
    }

    fn overlapping(&self, first: u64, last: u64) -> std::ops::Range<usize> {
        let from = self.mappings.partition_point(|found| found.last() < first);
        let to = self.mappings.partition_point(|found| found.iova <= last);
        from..to.max(from)
    }

    /// All mappings, by address.
    pub fn mappings(&self) -> &[IotlbMapping] {
        &self.mappings
    }

    /// Takes the place of what queues use now.
    pub fn publish(self, iotlb: &Iotlb) {
        match iotlb.lock() {
            Ok(guard) => guard.replace(self),
            // A thread that panicked with the lock had not exchanged anything yet, or had done so.
            Err(poisoned) => poisoned.into_inner().replace(self),
        }
    }
}

/// The pieces of a range, in order.
struct Slices<'a> {
    mappings: std::slice::Iter<'a, IotlbMapping>,
    at: u64,
    left: usize,
    access: Permissions,
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a, ()>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let found = self
            .mappings
            .next()
            .filter(|mapping| mapping.iova <= self.at && mapping.permissions.allow(self.access));
        let Some(mapping) = found else {
            self.left = 0;
            return Some(Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(
                self.at,
            ))));
        };
        // The table's search answered a mapping that ends at `at` or behind.
        let offset = (self.at - mapping.iova) as usize;
        let len = self.left.min(mapping.memory.len() - offset);
        self.left -= len;
        self.at = self.at.wrapping_add(len as u64);
        let base = mapping.memory.as_ptr().wrapping_add(offset);
        // SAFETY: `offset + len` lies inside the mapping's memory, which the table keeps mapped for 'a.
        Some(Ok(unsafe { VolatileSlice::new(base, len) }))
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

/// The region of the memory behind a table, which has none of its own.
#[derive(Debug)]
pub enum NoRegion {}

impl GuestMemoryRegion for NoRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        match *self {}
    }

    fn start_addr(&self) -> GuestAddress {
        match *self {}
    }

    fn bitmap(&self) -> BS<'_, ()> {
        match *self {}
    }
}

impl GuestMemoryRegionBytes for NoRegion {}

impl GuestMemory for IotlbTable {
    type PhysicalMemory = GuestRegionCollection<NoRegion>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.get_slices(addr, count, access)
            .is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let last = match count.checked_sub(1) {
            Some(span) => addr.0.checked_add(span as u64),
            None => Some(addr.0),
        };
        let last = last.ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        Ok(Slices {
            mappings: self.find(addr.0, last).iter(),
            at: addr.0,
            left: count,
            access,
        })
    }
}

#[cfg(test)]
mod tests;

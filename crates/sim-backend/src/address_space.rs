// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address spaces: the maps of the device, and those it was made with.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vdpa_bus::VdpaError;
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, NoRegion, Permissions};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryResult, GuestRegionCollection,
};

use crate::faults::FaultState;
use crate::lock;
use crate::options::SimOptionsError;

/// The address spaces of a device. A table that queues use is never changed: they hold it, and with it the
/// memory, until they are stopped.
pub(crate) struct AddressSpaces {
    tables: Box<[Mutex<Arc<IotlbTable>>]>,
    identity: Arc<IotlbTable>,
    max_mappings: usize,
}

impl AddressSpaces {
    /// `count` spaces, each with the memory that the embedder calls physical at its own addresses.
    pub(crate) fn new(
        count: u32,
        physical: &[(u64, HostMemory)],
        max_mappings: usize,
    ) -> Result<Self, SimOptionsError> {
        let mut identity = IotlbTable::new();
        for (address, memory) in physical {
            let mapping = IotlbMapping::new(*address, memory.clone(), Permissions::ReadWrite)?;
            identity.insert(mapping)?;
        }
        let identity = Arc::new(identity);
        Ok(Self {
            tables: (0..count).map(|_| Mutex::new(identity.clone())).collect(),
            identity,
            max_mappings,
        })
    }

    pub(crate) fn count(&self) -> u32 {
        self.tables.len() as u32
    }

    fn table(&self, asid: u32) -> Result<MutexGuard<'_, Arc<IotlbTable>>, VdpaError> {
        let table = self.tables.get(asid as usize).ok_or_else(|| {
            VdpaError::Invalid(format!(
                "address space {asid} of a device with {}",
                self.tables.len()
            ))
        })?;
        Ok(lock(table))
    }

    /// What is mapped now.
    pub(crate) fn get(&self, asid: u32) -> Result<Arc<IotlbTable>, VdpaError> {
        Ok(self.table(asid)?.clone())
    }

    /// Puts another table in place.
    pub(crate) fn set(&self, asid: u32, table: Arc<IotlbTable>) -> Result<(), VdpaError> {
        *self.table(asid)? = table;
        Ok(())
    }

    /// Adds a mapping. Copies the table only where somebody uses it.
    pub(crate) fn insert(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        let mut table = self.table(asid)?;
        if table.mappings().len() >= self.max_mappings {
            return Err(VdpaError::NoSpace(self.max_mappings));
        }
        Ok(Arc::make_mut(&mut table).insert(mapping)?)
    }

    /// Removes what has an address in `first..=last`.
    pub(crate) fn remove(&self, asid: u32, first: u64, last: u64) -> Result<(), VdpaError> {
        Arc::make_mut(&mut *self.table(asid)?).remove(first, last);
        Ok(())
    }

    /// The map at the device's making.
    pub(crate) fn identity(&self) -> Arc<IotlbTable> {
        self.identity.clone()
    }

    /// Refuses a table that is too large.
    pub(crate) fn check_room(&self, table: &IotlbTable) -> Result<(), VdpaError> {
        if table.mappings().len() > self.max_mappings {
            return Err(VdpaError::NoSpace(self.max_mappings));
        }
        Ok(())
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        for table in &self.tables {
            *lock(table) = Arc::default();
        }
    }
}

/// The last address of a range that is not empty and does not wrap.
pub(crate) fn last(iova: u64, size: u64) -> Result<u64, VdpaError> {
    size.checked_sub(1)
        .and_then(|span| iova.checked_add(span))
        .ok_or_else(|| {
            VdpaError::Invalid(format!(
                "no range: {size:#x} bytes at I/O address {iova:#x}"
            ))
        })
}

/// A table some of whose translations fail, by plan.
pub(crate) struct MissTable {
    table: Arc<IotlbTable>,
    faults: Arc<FaultState>,
    /// Not before the ring is resolved, which is no buffer.
    armed: AtomicBool,
    /// Translations to come that don't fail.
    spared: AtomicU32,
}

impl MissTable {
    pub(crate) fn new(table: Arc<IotlbTable>, faults: Arc<FaultState>, armed: bool) -> Self {
        Self {
            table,
            faults,
            armed: AtomicBool::new(armed),
            spared: AtomicU32::new(0),
        }
    }

    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }

    /// The table without misses.
    pub(crate) fn table(&self) -> &IotlbTable {
        &self.table
    }
}

impl GuestMemory for MissTable {
    type PhysicalMemory = GuestRegionCollection<NoRegion>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.table.check_range(addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let spared = self.spared.load(Ordering::Relaxed);
        if spared != 0 {
            // One thread at a time serves a queue, which has its own table.
            self.spared.store(spared - 1, Ordering::Relaxed);
        } else if self.armed.load(Ordering::Relaxed) && self.faults.iotlb.roll() {
            self.spared.store(self.faults.spared, Ordering::Relaxed);
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        self.table.get_slices(addr, count, access)
    }
}

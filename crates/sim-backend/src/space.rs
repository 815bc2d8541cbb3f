// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address spaces: what the device can reach, and what was given at its making.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vdpa_bus::VdpaError;
use virtio_blk_core::memory::{HostMemory, Iotlb, IotlbMapping, IotlbTable, NoRegion, Permissions};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryError, GuestMemoryResult,
    GuestRegionCollection,
};

use crate::faults::FaultState;
use crate::options::OptionsError;

/// The address spaces of a device.
pub(crate) struct Spaces {
    spaces: Box<[Iotlb]>,
    identity: IotlbTable,
    max_mappings: usize,
}

impl Spaces {
    /// `count` spaces, each with the memory that the embedder calls physical at its own addresses.
    pub(crate) fn new(
        count: u32,
        physical: &[(u64, HostMemory)],
        max_mappings: usize,
    ) -> Result<Self, OptionsError> {
        let mut identity = IotlbTable::new();
        for (address, memory) in physical {
            let mapping = IotlbMapping::new(*address, memory.clone(), Permissions::ReadWrite)?;
            identity.insert(mapping)?;
        }
        Ok(Self {
            spaces: (0..count).map(|_| Iotlb::new(identity.clone())).collect(),
            identity,
            max_mappings,
        })
    }

    pub(crate) fn count(&self) -> u32 {
        self.spaces.len() as u32
    }

    pub(crate) fn get(&self, asid: u32) -> Result<&Iotlb, VdpaError> {
        self.spaces.get(asid as usize).ok_or_else(|| {
            VdpaError::Invalid(format!(
                "address space {asid} of a device with {}",
                self.spaces.len()
            ))
        })
    }

    /// The map at the device's making.
    pub(crate) const fn identity(&self) -> &IotlbTable {
        &self.identity
    }

    /// Refuses a table that is too large.
    pub(crate) fn check_room(&self, table: &IotlbTable) -> Result<(), VdpaError> {
        if table.mappings().len() > self.max_mappings {
            return Err(VdpaError::NoSpace(self.max_mappings));
        }
        Ok(())
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
}

impl MissTable {
    pub(crate) fn new(iotlb: &Iotlb, faults: Arc<FaultState>, armed: bool) -> Self {
        Self {
            table: iotlb.memory().into_inner(),
            faults,
            armed: AtomicBool::new(armed),
        }
    }

    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
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
        if self.armed.load(Ordering::Relaxed) && self.faults.iotlb.roll() {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        self.table.get_slices(addr, count, access)
    }
}

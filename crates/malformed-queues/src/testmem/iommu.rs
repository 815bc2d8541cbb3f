// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An IOMMU with a page table that tests change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::iommu::{Error, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Iommu, Permissions};

/// Bytes of a page of the [`TestIommu`].
pub const PAGE: usize = 4096;

/// An IOMMU whose mappings are single pages. A translation that was begun continues with the table it
/// began with, as hardware may; a lock is never held while one is in use.
#[derive(Debug)]
pub struct TestIommu {
    state: Mutex<State>,
    naive: bool,
}

#[derive(Debug, Default)]
struct State {
    /// By I/O page.
    pages: BTreeMap<u64, (u64, Permissions)>,
    iotlb: Arc<Iotlb>,
}

impl State {
    fn rebuild(&mut self) {
        let mut iotlb = Iotlb::new();
        for (&iova, &(target, permissions)) in &self.pages {
            // Fails for no arguments.
            let _ = iotlb.set_mapping(GuestAddress(iova), GuestAddress(target), PAGE, permissions);
        }
        self.iotlb = Arc::new(iotlb);
    }
}

impl TestIommu {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            naive: false,
        }
    }

    pub(super) fn naive() -> Self {
        Self {
            naive: true,
            ..Self::new()
        }
    }

    /// A panic while the table was changed leaves nothing half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps pages for reading and writing: I/O address and address in the memory behind. Both are
    /// rounded down to a page. The last page of the address space can't be mapped.
    pub fn map_pages(&self, pages: impl IntoIterator<Item = (GuestAddress, GuestAddress)>) {
        let round = |addr: GuestAddress| addr.0 - addr.0 % PAGE as u64;
        let mut state = self.state();
        for (iova, target) in pages {
            if iova.0.checked_add(PAGE as u64).is_some() {
                let entry = (round(target), Permissions::ReadWrite);
                state.pages.insert(round(iova), entry);
            }
        }
        state.rebuild();
    }

    /// Sets what may be done with the mapped pages that `[iova, iova + len)` touches;
    /// [`Permissions::No`] unmaps them. Returns how many pages it were.
    pub fn protect(&self, iova: GuestAddress, len: usize, permissions: Permissions) -> usize {
        let first = iova.0 - iova.0 % PAGE as u64;
        let end = iova.0.saturating_add(len as u64);
        let mut state = self.state();
        let before = state.pages.len();
        let mut changed = 0;
        if permissions == Permissions::No {
            state.pages.retain(|page, _| *page < first || *page >= end);
            changed = before - state.pages.len();
        } else if first < end {
            for (_, entry) in state.pages.range_mut(first..end) {
                entry.1 = permissions;
                changed += 1;
            }
        }
        state.rebuild();
        changed
    }

    /// Where an I/O address lies in the memory behind, if it is mapped.
    pub fn target(&self, iova: GuestAddress) -> Option<GuestAddress> {
        let offset = iova.0 % PAGE as u64;
        let state = self.state();
        let (page, _) = state.pages.get(&(iova.0 - offset))?;
        Some(GuestAddress(page + offset))
    }
}

impl Iommu for TestIommu {
    type IotlbGuard<'a> = Arc<Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Arc<Iotlb>>, Error> {
        let fault = |reason: &str| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: reason.to_owned(),
        };
        if !self.naive && iova.0.checked_add(length as u64).is_none() {
            return Err(fault("wraps around the address space"));
        }
        let iotlb = Arc::clone(&self.state().iotlb);
        Iotlb::lookup(iotlb, iova, length, access).map_err(|_| fault("not mapped for this access"))
    }
}

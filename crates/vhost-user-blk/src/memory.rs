// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client's memory: mapped regions, and its own addresses for them.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestRegionCollection};

use crate::dirty_log::{DirtyLog, LogBitmap};
use crate::region::Region;
use crate::shared_file::{Alarm, SharedFile};

/// Most regions a client may add.
pub(crate) const MAX_SLOTS: u64 = 509;

type Regions = GuestRegionCollection<Region>;

/// Guest memory as queues use it.
pub(crate) type Memory = GuestMemoryAtomic<Regions>;

/// Why a memory table was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("memory region at {addr:#x} can't be used: {source}")]
    File { addr: u64, source: std::io::Error },
    #[error("memory region at {0:#x} reaches beyond the address space")]
    Range(u64),
    #[error("memory regions don't fit together: {0}")]
    Regions(vm_memory::GuestRegionCollectionError),
    #[error("more than {MAX_SLOTS} memory regions")]
    Slots,
    #[error("there is no memory region at {0:#x} with this size and client address")]
    Unknown(u64),
    #[error("the client's address {0:#x} is in no memory region")]
    Address(u64),
}

/// Where a region lies in the client.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mapping {
    user: u64,
    guest: u64,
    len: u64,
}

/// The memory table of one client.
pub(crate) struct MemoryTable {
    memory: Memory,
    mappings: Vec<Mapping>,
    log: Arc<DirtyLog>,
    alarm: Alarm,
}

impl MemoryTable {
    pub(crate) fn new(log: Arc<DirtyLog>, alarm: Alarm) -> Self {
        Self {
            memory: Memory::new(Regions::new()),
            mappings: Vec::new(),
            log,
            alarm,
        }
    }

    /// Guest memory; follows later changes of the table.
    pub(crate) fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Whether writes to the memory are logged, at any time.
    pub(crate) fn logging(&self) -> Arc<AtomicBool> {
        self.log.enabled().clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    fn map(&self, region: &VhostUserMemoryRegion, file: &File) -> Result<Arc<Region>, MemoryError> {
        let (addr, len) = (region.guest_phys_addr, region.memory_size);
        let bitmap = LogBitmap::new(self.log.clone(), addr);
        let shared = SharedFile::map(file, region.mmap_offset, len, &self.alarm)
            .map_err(|source| MemoryError::File { addr, source })?;
        Region::new(GuestAddress(addr), shared, bitmap)
            .map(Arc::new)
            .ok_or(MemoryError::Range(addr))
    }

    fn publish(&mut self, regions: Regions) {
        match self.memory.lock() {
            Ok(guard) => guard.replace(regions),
            Err(poisoned) => poisoned.into_inner().replace(regions),
        }
    }

    /// Replaces the whole table.
    pub(crate) fn set(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<(), MemoryError> {
        let mut regions = Vec::new();
        for (region, file) in table.iter().zip(files) {
            regions.push(self.map(region, &file)?);
        }
        let regions = Regions::from_arc_regions(regions).map_err(MemoryError::Regions)?;
        self.publish(regions);
        self.mappings = table.iter().map(Mapping::of).collect();
        Ok(())
    }

    /// Adds a region.
    pub(crate) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<(), MemoryError> {
        if self.mappings.len() as u64 >= MAX_SLOTS {
            return Err(MemoryError::Slots);
        }
        let mapped = self.map(region, &file)?;
        let regions = self
            .memory
            .memory()
            .insert_region(mapped)
            .map_err(MemoryError::Regions)?;
        self.publish(regions);
        self.mappings.push(Mapping::of(region));
        Ok(())
    }

    /// Removes a region that was added with exactly these addresses.
    pub(crate) fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), MemoryError> {
        let gone = Mapping::of(region);
        if !self.mappings.contains(&gone) {
            return Err(MemoryError::Unknown(gone.guest));
        }
        let regions = match self
            .memory
            .memory()
            .remove_region(GuestAddress(gone.guest), gone.len)
        {
            Ok((regions, _)) => regions,
            // The collection does not say that it may become empty.
            Err(_) if self.mappings == [gone] => Regions::new(),
            Err(error) => return Err(MemoryError::Regions(error)),
        };
        self.publish(regions);
        self.mappings.retain(|mapping| *mapping != gone);
        Ok(())
    }

    /// The guest address for an address of the client.
    pub(crate) fn guest_address(&self, user: u64) -> Result<u64, MemoryError> {
        self.mappings
            .iter()
            .find(|m| user >= m.user && user - m.user < m.len)
            .map(|m| m.guest + (user - m.user))
            .ok_or(MemoryError::Address(user))
    }
}

impl Mapping {
    fn of(region: &VhostUserMemoryRegion) -> Self {
        Self {
            user: region.user_addr,
            guest: region.guest_phys_addr,
            len: region.memory_size,
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client's memory: mapped regions, and its own addresses for them.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryRegion, GuestRegionCollection};

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

/// Regions, and where they lie in the client.
#[derive(Default)]
pub(crate) struct Table {
    regions: Regions,
    mappings: Vec<Mapping>,
}

impl Table {
    fn find(&self, user: u64) -> Option<&Mapping> {
        self.mappings
            .iter()
            .find(|m| user >= m.user && user - m.user < m.len)
    }

    /// The guest address for an address of the client, if `len` bytes from there are in one region.
    pub(crate) fn guest_range(&self, user: u64, len: u64) -> Option<u64> {
        let found = self.find(user)?;
        let offset = user - found.user;
        (len <= found.len - offset).then_some(found.guest + offset)
    }
}

/// The memory of one client. A change is prepared first, and comes into force with
/// [`MemoryTable::replace`].
pub(crate) struct MemoryTable {
    memory: Memory,
    table: Table,
    log: Arc<DirtyLog>,
    alarm: Alarm,
}

impl MemoryTable {
    pub(crate) fn new(log: Arc<DirtyLog>, alarm: Alarm) -> Self {
        Self {
            memory: Memory::new(Regions::new()),
            table: Table::default(),
            log,
            alarm,
        }
    }

    /// Guest memory; follows later changes of the table.
    pub(crate) fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// What is in force.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether writes to the memory are logged, at any time.
    pub(crate) fn logging(&self) -> Arc<AtomicBool> {
        self.log.enabled().clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.mappings.is_empty()
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

    /// Brings a change into force.
    pub(crate) fn replace(&mut self, table: Table) {
        match self.memory.lock() {
            Ok(guard) => guard.replace(table.regions.clone()),
            Err(poisoned) => poisoned.into_inner().replace(table.regions.clone()),
        }
        self.table = table;
    }

    /// Another table in place of this one.
    pub(crate) fn other(
        &self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<Table, MemoryError> {
        let mut regions = Vec::new();
        for (region, file) in table.iter().zip(files) {
            regions.push(self.map(region, &file)?);
        }
        // The protocol asks for no order.
        regions.sort_by_key(|region| region.start_addr());
        Ok(Table {
            regions: Regions::from_arc_regions(regions).map_err(MemoryError::Regions)?,
            mappings: table.iter().map(Mapping::of).collect(),
        })
    }

    /// The table with one region more.
    pub(crate) fn with(
        &self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<Table, MemoryError> {
        if self.table.mappings.len() as u64 >= MAX_SLOTS {
            return Err(MemoryError::Slots);
        }
        let mapped = self.map(region, &file)?;
        let mut mappings = self.table.mappings.clone();
        mappings.push(Mapping::of(region));
        Ok(Table {
            regions: (self.table.regions)
                .insert_region(mapped)
                .map_err(MemoryError::Regions)?,
            mappings,
        })
    }

    /// The table without a region that was added with exactly these addresses.
    pub(crate) fn without(&self, region: &VhostUserMemoryRegion) -> Result<Table, MemoryError> {
        let gone = Mapping::of(region);
        let mut mappings = self.table.mappings.clone();
        mappings.retain(|mapping| *mapping != gone);
        if mappings.len() == self.table.mappings.len() {
            return Err(MemoryError::Unknown(gone.guest));
        }
        let rest = (self.table.regions).remove_region(GuestAddress(gone.guest), gone.len);
        let regions = match rest {
            Ok((regions, _)) => regions,
            // The collection does not say that it may become empty.
            Err(_) if mappings.is_empty() => Regions::new(),
            Err(error) => return Err(MemoryError::Regions(error)),
        };
        Ok(Table { regions, mappings })
    }

    /// The guest address for an address of the client.
    pub(crate) fn guest_address(&self, user: u64) -> Result<u64, MemoryError> {
        self.table
            .find(user)
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

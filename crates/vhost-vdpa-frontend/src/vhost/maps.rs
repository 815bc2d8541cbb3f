// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which mappings the kernel holds, and the messages that make them others.

use std::io;

use vdpa_bus::VdpaError;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable, Permissions};

use super::abi::{ACCESS_READ, ACCESS_WRITE, Iotlb};
use super::fd::VhostFd;

/// One address space: what the kernel was told, and succeeded in.
#[derive(Default)]
pub(super) struct AddressSpace {
    table: IotlbTable,
    /// The parent forgot its copy in a reset although vhost still has it: everything must be sent again.
    stale: bool,
}

/// How to talk of one address space.
pub(super) struct Sender<'a> {
    pub(super) fd: &'a dyn VhostFd,
    pub(super) asid: u32,
    /// Messages of version 2.
    pub(super) v2: bool,
    /// Batches.
    pub(super) batch: bool,
}

impl Sender<'_> {
    fn send(&self, message: Iotlb) -> Result<(), VdpaError> {
        let bytes = message.to_bytes(self.v2, self.asid);
        self.fd
            .send(&bytes)
            .map_err(|source| refused(message, source))
    }

    /// Runs `f` inside a batch. Its end is sent also after an error: the parent must not stay in between.
    fn batch(&self, f: impl FnOnce() -> Result<(), VdpaError>) -> Result<(), VdpaError> {
        if !self.batch {
            return f();
        }
        self.send(Iotlb::BatchBegin)?;
        let result = f();
        let end = self.send(Iotlb::BatchEnd);
        result.and(end)
    }

    fn map(&self, mapping: &IotlbMapping) -> Result<(), VdpaError> {
        self.send(Iotlb::Update {
            iova: mapping.iova(),
            size: mapping.memory().len() as u64,
            uaddr: mapping.memory().as_ptr() as u64,
            permissions: match mapping.permissions() {
                Permissions::No => 0,
                Permissions::Read => ACCESS_READ,
                Permissions::Write => ACCESS_WRITE,
                Permissions::ReadWrite => ACCESS_READ | ACCESS_WRITE,
            },
        })
    }

    /// Removes exactly what was mapped: the kernel would take away whatever else the range touches.
    fn unmap(&self, mapping: &IotlbMapping) -> Result<(), VdpaError> {
        self.send(Iotlb::Invalidate {
            iova: mapping.iova(),
            size: mapping.memory().len() as u64,
        })
    }
}

fn refused(message: Iotlb, source: io::Error) -> VdpaError {
    match source.raw_os_error() {
        Some(libc::ENODEV) => VdpaError::Gone,
        // vhost returns EFAULT for any error of its handlers.
        _ => VdpaError::System {
            what: format!(
                "vhost-vdpa refused {message:x?}: check for an overlap, the device's address range \
                 (GET_IOVA_RANGE) and, as memory is pinned, RLIMIT_MEMLOCK"
            ),
            source,
        },
    }
}

/// Whether two mappings are the same to the kernel.
fn same(a: &IotlbMapping, b: &IotlbMapping) -> bool {
    a.iova() == b.iova()
        && a.permissions() == b.permissions()
        && a.memory().as_ptr() == b.memory().as_ptr()
        && a.memory().len() == b.memory().len()
}

/// Whether `table` holds the same mapping.
pub(crate) fn holds(table: &IotlbTable, mapping: &IotlbMapping) -> bool {
    table
        .find(mapping.iova(), mapping.last())
        .iter()
        .any(|found| same(found, mapping))
}

impl AddressSpace {
    /// Notes that a reset may have cleared the parent's copy.
    pub(super) fn forget(&mut self) {
        self.stale = !self.table.mappings().is_empty();
    }

    /// Sends again what a reset may have cleared.
    pub(super) fn refresh(&mut self, sender: &Sender<'_>) -> Result<(), VdpaError> {
        if self.stale {
            let table = self.table.clone();
            self.replace(sender, &table)?;
        }
        Ok(())
    }

    /// Makes `new` the map, with one batch of what differs.
    pub(super) fn replace(
        &mut self,
        sender: &Sender<'_>,
        new: &IotlbTable,
    ) -> Result<(), VdpaError> {
        let old = self.table.clone();
        let stale = self.stale;
        let gone = |mapping: &&IotlbMapping| stale || !holds(new, mapping);
        let fresh = |mapping: &&IotlbMapping| stale || !holds(&old, mapping);
        if old.mappings().iter().any(|m| gone(&m)) || new.mappings().iter().any(|m| fresh(&m)) {
            sender.batch(|| {
                for mapping in old.mappings().iter().filter(gone) {
                    sender.unmap(mapping)?;
                    self.table.remove(mapping.iova(), mapping.last());
                }
                for mapping in new.mappings().iter().filter(fresh) {
                    sender.map(mapping)?;
                    self.table.insert(mapping.clone())?;
                }
                Ok(())
            })?;
        }
        // The new table's memory is the same; what keeps it mapped may be newer.
        self.table = new.clone();
        self.stale = false;
        Ok(())
    }

    /// Adds a mapping.
    pub(super) fn map(
        &mut self,
        sender: &Sender<'_>,
        mapping: IotlbMapping,
    ) -> Result<(), VdpaError> {
        self.refresh(sender)?;
        let mut table = self.table.clone();
        table.insert(mapping)?;
        self.replace(sender, &table)
    }

    /// Removes every mapping with an address in `first..=last`, whole.
    pub(super) fn unmap(
        &mut self,
        sender: &Sender<'_>,
        first: u64,
        last: u64,
    ) -> Result<(), VdpaError> {
        self.refresh(sender)?;
        let mut table = self.table.clone();
        table.remove(first, last);
        self.replace(sender, &table)
    }
}

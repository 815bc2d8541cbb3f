// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk of the machine: the device that its transport drives, and what the machine wants of it besides.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use virtio_blk_core::device::{Device, SavedQueue, VirtioDevice};
use virtio_blk_core::disk::Disk;

use super::saved::{RestoredQueue, SavedBackend};
use super::vdpa::VdpaDisk;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// A disk of the machine.
pub trait MachineDisk: Send {
    /// What a transport drives.
    fn device(&self) -> &dyn VirtioDevice<Memory>;

    /// The disk to take into use before the first queue starts, where the device does not see to that.
    fn medium(&self) -> Option<Arc<dyn Disk>> {
        None
    }

    /// The state of a paused device, with the registers of its queues.
    fn save(&self, queues: Vec<SavedQueue>) -> Result<SavedBackend>;

    /// Takes over saved state, of a device whose driver wrote `status`. `queues` are those that it enabled.
    fn restore(&self, saved: &SavedBackend, status: u8, queues: Vec<RestoredQueue>) -> Result<()>;

    /// What it did.
    fn report(&self) -> Value;

    /// The vDPA device, if it is one.
    fn vdpa(&self) -> Option<&VdpaDisk> {
        None
    }

    /// In sectors of 512 bytes.
    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.device().read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// A disk behind our device model.
pub struct OwnDisk(pub Arc<Device>);

impl MachineDisk for OwnDisk {
    fn device(&self) -> &dyn VirtioDevice<Memory> {
        self.0.as_ref()
    }

    fn medium(&self) -> Option<Arc<dyn Disk>> {
        Some(self.0.disk().clone())
    }

    fn save(&self, queues: Vec<SavedQueue>) -> Result<SavedBackend> {
        Ok(SavedBackend::Own(self.0.save(queues)))
    }

    fn restore(
        &self,
        saved: &SavedBackend,
        _status: u8,
        _queues: Vec<RestoredQueue>,
    ) -> Result<()> {
        let SavedBackend::Own(saved) = saved else {
            return Err(other_kind());
        };
        let restored = self.0.restore(saved);
        restored.map_err(|error| Error::Snapshot(error.to_string()))
    }

    /// Counters of all queues together.
    fn report(&self) -> Value {
        let mut sums = BTreeMap::new();
        let queues = 0..self.0.options().queues;
        for queue in queues.filter_map(|queue| self.0.counters(queue)) {
            for (name, value) in queue.snapshot() {
                *sums.entry(name).or_insert(0) += value;
            }
        }
        json!(sums)
    }
}

/// The state is not one of this kind of disk.
pub fn other_kind() -> Error {
    Error::Snapshot("a disk of another kind".to_owned())
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device can reach.

use std::sync::{Arc, Mutex};

use vdpa_bus::{VdpaDevice, VdpaError};
use virtio_blk_core::memory::IotlbTable;

use crate::error::{DeviceStep, PathError, Step};
use crate::lock;
use crate::vhost::holds;

/// Address space 0 of a device, as it was told.
pub(crate) struct IotlbSync {
    device: Arc<dyn VdpaDevice>,
    table: Mutex<IotlbTable>,
}

impl IotlbSync {
    /// Of a device that was told nothing yet.
    pub(crate) fn new(device: Arc<dyn VdpaDevice>) -> Self {
        Self {
            device,
            table: Mutex::default(),
        }
    }

    /// Makes `new` the map, whatever kind of map the device takes.
    pub(crate) fn set(&self, new: IotlbTable) -> Result<(), PathError> {
        let mut table = lock(&self.table);
        match self.device.set_map(0, &new) {
            Ok(()) => {
                *table = new;
                return Ok(());
            }
            Err(VdpaError::NotSupported(_)) => {}
            Err(source) => {
                return Err(PathError::Device {
                    step: DeviceStep::SetMap,
                    source,
                });
            }
        }
        let old = table.clone();
        for mapping in old.mappings().iter().filter(|m| !holds(&new, m)) {
            let size = mapping.memory().len() as u64;
            let unmapped = self.device.dma_unmap(0, mapping.iova(), size);
            unmapped.step(DeviceStep::UnmapMemory)?;
            table.remove(mapping.iova(), mapping.last());
        }
        for mapping in new.mappings().iter().filter(|m| !holds(&old, m)) {
            let mapped = self.device.dma_map(0, mapping.clone());
            mapped.step(DeviceStep::MapMemory)?;
            table.insert(mapping.clone())?;
        }
        *table = new;
        Ok(())
    }
}

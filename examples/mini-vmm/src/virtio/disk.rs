// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who stands behind a transport's registers.

use std::sync::Arc;

use virtio_blk_core::device::Device;

use super::vdpa::VdpaDisk;

/// Our device model, or a device elsewhere.
pub enum Backend {
    Own(Arc<Device>),
    Vdpa(VdpaDisk),
}

impl Backend {
    /// Feature bits for the guest to choose from.
    pub fn offered(&self) -> u64 {
        match self {
            Self::Own(device) => device.offered(),
            Self::Vdpa(disk) => disk.switch.offered(),
        }
    }

    /// How many queues there are.
    pub fn queues(&self) -> u16 {
        match self {
            Self::Own(device) => device.options().queues,
            Self::Vdpa(disk) => disk.switch.queues(),
        }
    }

    /// The largest a queue can be.
    pub fn queue_size(&self) -> u16 {
        match self {
            Self::Own(device) => device.options().queue_size,
            // A split ring has a power of two.
            Self::Vdpa(disk) => match disk.switch.device().get_vq_num_max().checked_ilog2() {
                Some(log) => 1 << log,
                None => 0,
            },
        }
    }

    /// Changes when the configuration does.
    pub fn config_generation(&self) -> u32 {
        match self {
            Self::Own(device) => device.config_generation(),
            Self::Vdpa(disk) => disk.switch.device().get_generation(),
        }
    }

    /// The configuration space; 0 beyond it.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        match self {
            Self::Own(device) => device.read_config(offset, data),
            Self::Vdpa(disk) => {
                data.fill(0);
                let size = disk.switch.device().get_config_size() as u64;
                let len = size.saturating_sub(offset).min(data.len() as u64);
                let Some(inside) = data.get_mut(..len as usize) else {
                    return;
                };
                if let Err(error) = disk.switch.read_config(offset as usize, inside) {
                    log::debug!("the configuration can't be read: {error}");
                }
            }
        }
    }

    /// A write by the driver, who can't be told that it wrote where it must not.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        match self {
            Self::Own(device) => drop(device.write_config(offset, data)),
            Self::Vdpa(disk) => drop(disk.switch.write_config(offset as usize, data)),
        }
    }

    /// In sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

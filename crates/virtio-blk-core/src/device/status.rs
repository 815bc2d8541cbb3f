// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The status register (virtio 1.4, 2.1 and 2.2.2).

use super::Device;
use crate::spec::status::{DEVICE_NEEDS_RESET, DRIVER_OK, FEATURES_OK};

/// What a write to the status register asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// Nothing beyond the new value.
    None,
    /// Stop all queues, then [`Device::reset`]. The register already reads 0.
    Reset,
    /// The driver's features were refused: the register does not show FEATURES_OK.
    Refused,
    /// Start the enabled queues: the driver is ready.
    Start,
}

/// The status byte of one device, for transports that have such a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusRegister(u8);

impl StatusRegister {
    /// The value as the driver reads it.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether the driver set DRIVER_OK and the device does not need a reset.
    pub const fn is_live(self) -> bool {
        self.0 & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK
    }

    /// A write by the driver. `features` is what it acknowledged. Bits can only be added, except by
    /// writing 0; DRIVER_OK counts only after FEATURES_OK held.
    pub fn write(&mut self, value: u8, features: u64, device: &Device) -> StatusChange {
        self.write_with(value, || device.accept(features).is_ok())
    }

    /// As [`StatusRegister::write`], for any device: `accept` is called at FEATURES_OK, and returns whether the device
    /// accepts what the driver acknowledged.
    pub fn write_with(&mut self, value: u8, accept: impl FnOnce() -> bool) -> StatusChange {
        let old = self.0;
        if value == 0 {
            self.0 = 0;
            return StatusChange::Reset;
        }
        // DEVICE_NEEDS_RESET belongs to the device.
        let mut new = old | (value & !DEVICE_NEEDS_RESET);
        let mut change = StatusChange::None;
        if new & !old & FEATURES_OK != 0 && !accept() {
            new &= !FEATURES_OK;
            change = StatusChange::Refused;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        if new & !old & DRIVER_OK != 0 && old & DEVICE_NEEDS_RESET == 0 {
            change = StatusChange::Start;
        }
        self.0 = new;
        change
    }

    /// Sets DEVICE_NEEDS_RESET. Returns whether the driver must be told by a configuration change
    /// notification: it must once DRIVER_OK is set (virtio 1.4, 2.1.2).
    pub fn need_reset(&mut self) -> bool {
        let first = self.0 & DEVICE_NEEDS_RESET == 0;
        self.0 |= DEVICE_NEEDS_RESET;
        first && self.0 & DRIVER_OK != 0
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The status byte that a guest sees, and how it is told of changes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use vdpa_bus::Callback;
use virtio_blk_core::spec::status::{DEVICE_NEEDS_RESET, DRIVER_OK};

use crate::lock;

/// The status byte and the configuration interrupt. Shared with all that may find the device broken; nobody who reads
/// it waits for a switch.
#[derive(Default)]
pub(crate) struct GuestStatus {
    byte: AtomicU8,
    config_call: Mutex<Option<Callback>>,
}

impl GuestStatus {
    /// The byte.
    pub(crate) fn get(&self) -> u8 {
        self.byte.load(Ordering::Acquire)
    }

    /// Sets the byte, all of it.
    pub(crate) fn set(&self, byte: u8) {
        self.byte.store(byte, Ordering::Release);
    }

    /// The driver writes the byte, not 0. DEVICE_NEEDS_RESET is the device's: it stays as it is. A driver must not clear
    /// bits but by a reset (virtio 1.4, 2.1.1): the rings would still be the device's, and nobody would look at them.
    pub(crate) fn set_by_driver(&self, byte: u8) {
        let driver = byte & !DEVICE_NEEDS_RESET;
        self.byte.fetch_or(driver, Ordering::AcqRel);
    }

    /// Whether the driver runs.
    pub(crate) fn runs(&self) -> bool {
        self.get() & DRIVER_OK != 0
    }

    /// Tells a driver that runs that only a reset helps (virtio 1.4, 2.1.2): DEVICE_NEEDS_RESET and, the first time, a
    /// configuration interrupt.
    pub(crate) fn need_reset(&self) {
        let update = |old: u8| (old & DRIVER_OK != 0).then_some(old | DEVICE_NEEDS_RESET);
        let old = (self.byte).fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        if old.is_ok_and(|old| old & DEVICE_NEEDS_RESET == 0) {
            self.notify_config();
        }
    }

    /// Sets what interrupts the guest when the configuration or the status changes.
    pub(crate) fn set_config_call(&self, call: Option<Callback>) {
        *lock(&self.config_call) = call;
    }

    /// What interrupts the guest when the configuration changes.
    pub(crate) fn config_call(&self) -> Option<Callback> {
        lock(&self.config_call).clone()
    }

    /// Interrupts the guest: the configuration or the status changed.
    pub(crate) fn notify_config(&self) {
        if let Some(call) = self.config_call() {
            call.notify();
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest was told about the device, kept in the client's in-flight area for the next server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::device::{AbiError, Device};
use virtio_blk_core::runner::InFlightArea;

/// Keeps it up to date, from whatever thread changes it.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<InFlightArea>>);

impl Told {
    fn lock(&self) -> MutexGuard<'_, Option<InFlightArea>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is told changed, or may have.
    pub(crate) fn keep(&self, device: &Device) {
        if let Some(area) = self.lock().as_ref() {
            area.keep_guest_abi(&device.guest_abi());
        }
    }

    /// A client came with this area: the device keeps to what an earlier server told, if one did. Returns
    /// whether there is such a record.
    ///
    /// # Errors
    /// It can't keep to it.
    pub(crate) fn adopt(
        &self,
        device: &Arc<Device>,
        area: &InFlightArea,
    ) -> Result<bool, AbiError> {
        let told = area.guest_abi()?;
        if let Some(told) = &told {
            device.adopt(told)?;
        }
        self.keep_in(device, area);
        Ok(told.is_some())
    }

    /// Keeps it in this area from now on.
    pub(crate) fn keep_in(&self, device: &Device, area: &InFlightArea) {
        *self.lock() = Some(area.clone());
        self.keep(device);
    }

    /// The client is gone, and with it the area: nothing is kept there any more.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }
}

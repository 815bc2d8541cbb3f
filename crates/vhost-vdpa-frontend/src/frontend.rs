// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device behind a guest's registers: what the fast path and the path switch have in common.

use std::sync::{Arc, Mutex};

use vdpa_bus::{VdpaDevice, VdpaError, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::{feature, status};

use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, Guest, GuestQueue, GuestStatus};
use crate::iotlb_sync::IotlbSync;
use crate::lock;
use crate::virtio_init::{self, Ring};

/// A device, its memory map, and the registers that the guest sees of it, on whatever path its rings are served.
pub(crate) struct Frontend {
    device: Arc<dyn VdpaDevice>,
    iotlb: Arc<IotlbSync>,
    status: Arc<GuestStatus>,
    /// Feature bits that may be offered to the guest.
    honoured: u64,
    /// Whether the device starts rings in their middle. `None`: not asked yet.
    starts_midway: Mutex<Option<bool>>,
}

/// What a write of the status byte asks of the path, after [`Frontend::write_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusWrite {
    /// Nothing.
    Done,
    /// Reset the device.
    Reset,
    /// Start the guest's queues; then [`Frontend::commit_status`].
    Start,
}

impl Frontend {
    /// Takes a device over and resets it. The guest may be offered the bits of `honoured` that the device has.
    ///
    /// # Errors
    /// The device refused the reset.
    pub(crate) fn new(device: Arc<dyn VdpaDevice>, honoured: u64) -> Result<Self, PathError> {
        device.reset().step(DeviceStep::Reset)?;
        Ok(Self {
            iotlb: Arc::new(IotlbSync::new(device.clone())),
            device,
            status: Arc::default(),
            honoured,
            starts_midway: Mutex::default(),
        })
    }

    /// The state of a guest that has done nothing yet, with at most `queues` queues.
    pub(crate) fn new_guest(&self, queues: u16) -> Guest {
        Guest::new(queues, self.status.clone())
    }

    pub(crate) fn device(&self) -> &Arc<dyn VdpaDevice> {
        &self.device
    }

    pub(crate) fn iotlb(&self) -> &Arc<IotlbSync> {
        &self.iotlb
    }

    /// The status byte as the guest wrote it, with the device's request for a reset.
    pub(crate) fn guest_status(&self) -> &Arc<GuestStatus> {
        &self.status
    }

    /// The features to offer to the guest.
    pub(crate) fn offered(&self) -> u64 {
        self.device.get_device_features() & self.honoured
    }

    /// Records what the guest acknowledges.
    pub(crate) fn acknowledge(&self, guest: &mut Guest, features: u64) -> Result<(), PathError> {
        guest.acknowledge(features, self.offered())
    }

    /// The status byte that the guest reads. Does not wait for anything but the device.
    pub(crate) fn status(&self) -> u8 {
        match self.status.get() {
            0 => 0,
            byte => byte | self.device.get_status() & status::DEVICE_NEEDS_RESET,
        }
    }

    /// Carries out a write of the status byte as far as that does not depend on the path: FEATURES_OK negotiates, and
    /// does not stay if the device does not take the features.
    ///
    /// # Errors
    /// DRIVER_OK came without FEATURES_OK, or the device refused a step.
    pub(crate) fn write_status(&self, guest: &Guest, byte: u8) -> Result<StatusWrite, PathError> {
        if byte == 0 {
            return Ok(StatusWrite::Reset);
        }
        let old = self.status.get();
        let new = byte & !old;
        if new & status::FEATURES_OK != 0 {
            match self.negotiate_after_reset(guest) {
                Ok(()) => {}
                Err(error) if error.is_about_features() => {
                    self.commit_status(byte & !status::FEATURES_OK);
                    return Ok(StatusWrite::Done);
                }
                Err(error) => return Err(error),
            }
        }
        if new & status::DRIVER_OK != 0 {
            if (byte | old) & status::FEATURES_OK == 0 {
                return Err(PathError::Busy("DRIVER_OK before FEATURES_OK"));
            }
            return Ok(StatusWrite::Start);
        }
        self.commit_status(byte);
        Ok(StatusWrite::Done)
    }

    /// Makes `byte`, which is not 0, the one that the guest reads.
    pub(crate) fn commit_status(&self, byte: u8) {
        self.status.set_by_driver(byte);
    }

    fn negotiate_after_reset(&self, guest: &Guest) -> Result<(), PathError> {
        if guest.features & feature::VERSION_1 == 0 {
            return Err(PathError::Features(guest.features));
        }
        self.device.reset().step(DeviceStep::Reset)?;
        self.negotiate(guest)
    }

    /// Negotiates the guest's features on a device that was just reset. ACCESS_PLATFORM is the host's affair: I/O
    /// addresses are guest physical ones.
    fn negotiate(&self, guest: &Guest) -> Result<(), PathError> {
        let own = self.device.get_device_features() & feature::ACCESS_PLATFORM;
        virtio_init::negotiate(self.device.as_ref(), guest.features | own)?;
        let mut starts_midway = lock(&self.starts_midway);
        if starts_midway.is_none() {
            *starts_midway = virtio_init::starts_midway(self.device.as_ref(), guest.features);
        }
        Ok(())
    }

    /// Whether it is known that the device starts rings at their beginning only (vp_vdpa): what was stopped can't be
    /// started on it again.
    pub(crate) fn starts_at_zero_only(&self) -> bool {
        *lock(&self.starts_midway) == Some(false)
    }

    /// Starts the guest's rings at `positions`, or at their beginning where that names none, on a device on which the
    /// guest negotiated.
    pub(crate) fn start_rings(
        &self,
        guest: &Guest,
        positions: &[(u16, VqState)],
    ) -> Result<(), PathError> {
        let device = self.device.as_ref();
        guest.replay_config_writes(device)?;
        let rings: Vec<_> = guest
            .enabled()
            .map(|(index, queue)| {
                let found = positions.iter().find(|(found, _)| *found == index);
                Ring {
                    index,
                    size: queue.size,
                    state: found.map_or_else(|| guest.first_position(), |(_, state)| *state),
                    address: queue.address,
                    kick: Some(queue.kick.clone()),
                    callback: Some(queue.call.clone()),
                }
            })
            .collect();
        virtio_init::start(device, &rings, self.status.config_call())
    }

    /// Puts the guest onto a device that was just reset: its memory (and no other), its features, its rings at
    /// `positions`.
    pub(crate) fn restart_guest(
        &self,
        guest: &Guest,
        positions: &[(u16, VqState)],
    ) -> Result<(), PathError> {
        // A guest whose rings the device has can aim at whatever is mapped.
        self.iotlb.set(guest.memory.clone())?;
        self.negotiate(guest)?;
        self.start_rings(guest, positions)
    }

    /// Makes `memory` the guest's while the device has no other.
    pub(crate) fn set_memory(
        &self,
        guest: &mut Guest,
        memory: IotlbTable,
    ) -> Result<(), PathError> {
        self.iotlb.set(memory.clone())?;
        guest.memory = memory;
        Ok(())
    }

    /// The guest resets its device: forgets all but its memory. The status byte reads 0 also where the device fails.
    pub(crate) fn reset(&self, guest: &mut Guest) -> Result<(), PathError> {
        guest.reset();
        guest::reset(self.device.as_ref())
    }

    pub(crate) fn read_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), PathError> {
        self.device
            .get_config(offset, buf)
            .step(DeviceStep::ReadConfig)
    }

    pub(crate) fn write_config(
        &self,
        guest: &mut Guest,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), PathError> {
        self.device
            .set_config(offset, bytes)
            .step(DeviceStep::WriteConfig)?;
        guest.record_config_write(offset, bytes);
        Ok(())
    }

    /// The guest enables a queue.
    pub(crate) fn enable_queue(
        &self,
        guest: &mut Guest,
        index: u16,
        queue: GuestQueue,
    ) -> Result<(), PathError> {
        if guest.runs() {
            return Err(PathError::Busy("the driver runs already"));
        }
        let max = self.device.get_vq_size(index);
        let max = max.unwrap_or_else(|_| self.device.get_vq_num_max());
        guest.set_queue(index, queue, max)
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        if let Err(error) = guest::reset(self.device.as_ref())
            && !error.is_gone()
        {
            log::warn!("the device can't be reset, and is given up: {error}");
            self.device.free();
        }
        // The memory's owner may end it now.
        if let Err(error) = self.iotlb.set(IotlbTable::new()) {
            log::debug!("memory stays mapped in the device: {error}");
        }
    }
}

impl PathError {
    /// Whether the device is gone, and with it all that could be done for it.
    fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Device {
                source: VdpaError::Gone,
                ..
            }
        )
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both paths as a transport drives them: the same trait as the device model's.

use vdpa_bus::{Callback, VdpaDevice, VqAddress};
use virtio_blk_core::device::{
    DriveError, DriverInterrupt, QueueResources, StartedQueue, VirtioDevice,
};
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::spec::status;

use crate::{FastPath, GuestQueue, PathError, PathSwitch};

const DRIVER: u8 = status::ACKNOWLEDGE | status::DRIVER;
const NEGOTIATED: u8 = DRIVER | status::FEATURES_OK;

impl From<PathError> for DriveError {
    fn from(error: PathError) -> Self {
        Self::Device(Box::new(error))
    }
}

/// The interrupt as a vDPA device takes it.
fn callback(interrupt: DriverInterrupt) -> Callback {
    match interrupt {
        DriverInterrupt::EventFd(event) => Callback::Trigger(event),
        DriverInterrupt::Call(call) => Callback::Call(call),
    }
}

/// A queue at its beginning: one that continues elsewhere in its ring is restored with its device.
impl<M: DeviceMemory> From<QueueResources<M>> for GuestQueue {
    fn from(queue: QueueResources<M>) -> Self {
        Self {
            size: queue.state.size,
            address: VqAddress {
                desc: queue.state.desc_table,
                driver: queue.state.avail_ring,
                device: queue.state.used_ring,
            },
            kick: queue.kick,
            call: callback(queue.interrupt),
        }
    }
}

/// The largest split ring of `device`.
fn queue_size(device: &dyn VdpaDevice) -> u16 {
    let max = device.get_vq_num_max().checked_ilog2();
    max.map_or(0, |log| 1 << log)
}

/// Negotiates up to FEATURES_OK through the calls of a path, which all paths have.
fn accept(
    features: u64,
    set_status: impl Fn(u8) -> Result<(), PathError>,
    set_features: impl Fn(u64) -> Result<(), PathError>,
    get_status: impl Fn() -> u8,
) -> Result<(), DriveError> {
    set_status(status::ACKNOWLEDGE)?;
    set_status(DRIVER)?;
    set_features(features)?;
    set_status(NEGOTIATED)?;
    if get_status() & status::FEATURES_OK == 0 {
        return Err(PathError::Features(features).into());
    }
    Ok(())
}

/// The configuration space of `device` from `offset` on, 0 beyond its end.
fn read_config(
    device: &dyn VdpaDevice,
    offset: u64,
    data: &mut [u8],
    read: impl Fn(usize, &mut [u8]) -> Result<(), PathError>,
) {
    data.fill(0);
    let size = device.get_config_size() as u64;
    let len = size.saturating_sub(offset).min(data.len() as u64);
    let inside = data.get_mut(..len as usize).unwrap_or_default();
    // Inside the space the offset is small.
    if !inside.is_empty()
        && let Err(error) = read(offset as usize, inside)
    {
        log::debug!("the configuration can't be read: {error}");
    }
}

/// What both paths do alike; pausing differs.
macro_rules! forward {
    () => {
        fn offered(&self) -> u64 {
            self.offered()
        }

        fn accept(&self, features: u64) -> Result<(), DriveError> {
            accept(
                features,
                |byte| self.set_status(byte),
                |features| self.set_features(features),
                || self.status(),
            )
        }

        fn queue_size(&self) -> u16 {
            queue_size(self.device().as_ref())
        }

        fn config_generation(&self) -> u32 {
            self.device().get_generation()
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            let read = |offset, data: &mut [u8]| self.read_config(offset, data);
            read_config(self.device().as_ref(), offset, data, read);
        }

        fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), DriveError> {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            Ok(self.write_config(offset, data)?)
        }

        fn set_config_interrupt(&self, interrupt: DriverInterrupt) {
            self.set_config_call(Some(callback(interrupt)));
        }

        fn needs_reset(&self) -> bool {
            self.status() & status::DEVICE_NEEDS_RESET != 0
        }

        fn offloads(&self) -> bool {
            true
        }

        fn start_queue(
            &self,
            index: u16,
            queue: QueueResources<M>,
        ) -> Result<StartedQueue<M>, DriveError> {
            self.set_queue(index, queue.into())?;
            Ok(StartedQueue::Offloaded)
        }

        fn driver_ok(&self) -> Result<(), DriveError> {
            Ok(self.set_status(NEGOTIATED | status::DRIVER_OK)?)
        }

        fn reset(&self) -> Result<(), DriveError> {
            Ok(self.set_status(0)?)
        }
    };
}

impl<M: DeviceMemory + Clone + Sync> VirtioDevice<M> for PathSwitch<M> {
    forward!();

    fn queues(&self) -> u16 {
        self.queues()
    }

    fn pause(&self) -> Result<(), DriveError> {
        self.pause()
            .map_err(|error| DriveError::Device(Box::new(error)))
    }

    fn resume(&self) -> Result<(), DriveError> {
        self.resume()
            .map_err(|error| DriveError::Device(Box::new(error)))
    }
}

/// The device has the memory that [`FastPath::set_memory`] gave it, whatever memory a queue is started with.
impl<M: DeviceMemory> VirtioDevice<M> for FastPath {
    forward!();

    fn queues(&self) -> u16 {
        self.device().nvqs()
    }

    /// Waits at most two seconds; a caller that wants another limit has [`FastPath::pause`].
    fn pause(&self) -> Result<(), DriveError> {
        Ok(self.pause(PAUSE_TIMEOUT)?)
    }

    fn resume(&self) -> Result<(), DriveError> {
        Ok(self.resume()?)
    }
}

/// As [`crate::SwitchOptions::quiesce_timeout`] by default.
const PAUSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

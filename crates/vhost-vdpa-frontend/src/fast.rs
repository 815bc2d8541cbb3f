// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fast path: the guest's rings go straight into the device.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vdpa_bus::{Callback, VdpaDevice, VdpaError, backend_feature};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::spec::{feature, status};
use vmm_sys_util::eventfd::EventFd;

use crate::dirty::{self, Coverage, Seen};
use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, Guest, GuestQueue, QueuePositions, SavedGuest};
use crate::iotlb_sync::IotlbSync;
use crate::lock;
use crate::virtio_init;

/// A vDPA device of any class, given to a guest.
///
/// For a VMM's transport: it passes on what the guest does to features, status, configuration space and queues, and
/// the guest's memory. In the data path there is nothing: the device takes kicks from the ioeventfds and interrupts the
/// guest through the irqfds.
///
/// ACCESS_PLATFORM is hidden from the guest and negotiated with the device: I/O addresses are guest physical ones.
pub struct FastPath {
    device: Arc<dyn VdpaDevice>,
    map: IotlbSync,
    inner: Mutex<Inner>,
}

struct Inner {
    guest: Guest,
    paused: Option<Paused>,
    /// What the last look at the rings found.
    seen: Seen,
}

/// How the device stands while it is paused.
struct Paused {
    states: QueuePositions,
    /// It can be resumed; else it is started anew.
    suspended: bool,
}

impl FastPath {
    /// Takes a device over and resets it.
    ///
    /// # Errors
    /// The device refused the reset.
    pub fn new(device: Arc<dyn VdpaDevice>) -> Result<Self, PathError> {
        device.reset().step(DeviceStep::Reset)?;
        Ok(Self {
            map: IotlbSync::new(device.clone()),
            inner: Mutex::new(Inner {
                guest: Guest::new(device.nvqs()),
                paused: None,
                seen: Seen::default(),
            }),
            device,
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VdpaDevice> {
        &self.device
    }

    /// The features to offer to the guest.
    pub fn offered(&self) -> u64 {
        self.device.get_device_features() & !feature::ACCESS_PLATFORM
    }

    /// Notes what the guest acknowledges; the device is told at FEATURES_OK.
    ///
    /// # Errors
    /// Bits that were not offered; the guest set FEATURES_OK before.
    pub fn set_features(&self, features: u64) -> Result<(), PathError> {
        let offered = self.offered();
        lock(&self.inner).guest.acknowledge(features, offered)
    }

    /// The status byte that the guest reads.
    pub fn status(&self) -> u8 {
        lock(&self.inner).guest.status_on(self.device.as_ref())
    }

    /// The guest writes the status byte. 0 resets the device, whatever it is doing; FEATURES_OK negotiates, and does
    /// not stay if the device does not take the features; DRIVER_OK starts it.
    ///
    /// # Errors
    /// The device refused a step. After a failed reset it stays reset in the eyes of the guest.
    pub fn set_status(&self, byte: u8) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let Inner {
            guest,
            paused,
            seen,
        } = &mut *inner;
        let new = byte & !guest.status;
        if byte == 0 {
            guest.reset();
            *paused = None;
            *seen = Seen::default();
            return guest::reset(self.device.as_ref());
        }
        if new & status::FEATURES_OK != 0 {
            match self.negotiate(guest) {
                Ok(()) => {}
                Err(error) if error.is_about_features() => {
                    guest.status = byte & !status::FEATURES_OK;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        if new & status::DRIVER_OK != 0 {
            if (byte | guest.status) & status::FEATURES_OK == 0 {
                return Err(PathError::Busy("DRIVER_OK before FEATURES_OK"));
            }
            guest.start(self.device.as_ref(), &[])?;
            *seen = Seen::start();
        }
        guest.status = byte;
        Ok(())
    }

    fn negotiate(&self, guest: &Guest) -> Result<(), PathError> {
        self.device.reset().step(DeviceStep::Reset)?;
        let own = self.device.get_device_features() & feature::ACCESS_PLATFORM;
        virtio_init::negotiate(self.device.as_ref(), guest.features | own)
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// The range does not lie inside.
    pub fn read_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), PathError> {
        self.device
            .get_config(offset, buf)
            .step(DeviceStep::ReadConfig)
    }

    /// The guest writes the configuration space.
    ///
    /// # Errors
    /// The range does not lie inside, or can't be written.
    pub fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), PathError> {
        let device = self.device.as_ref();
        let guest = &mut lock(&self.inner).guest;
        guest.write_config(device, offset, bytes)
    }

    /// What interrupts the guest when the configuration changes. Before DRIVER_OK.
    pub fn set_config_call(&self, call: Option<Callback>) {
        lock(&self.inner).guest.config = call;
    }

    /// The guest enables a queue. Before DRIVER_OK.
    ///
    /// # Errors
    /// No such queue or size; the driver runs already.
    pub fn set_queue(&self, index: u16, queue: GuestQueue) -> Result<(), PathError> {
        let device = self.device.as_ref();
        lock(&self.inner).guest.enable(device, index, queue)
    }

    /// Makes `memory` the guest's, by guest physical address. May be called while the device runs.
    ///
    /// # Errors
    /// Ranges overlap, or the device refused.
    pub fn set_memory(&self, memory: &[(u64, HostMemory)]) -> Result<(), PathError> {
        let mut table = IotlbTable::new();
        for (at, memory) in memory {
            table.insert(IotlbMapping::new(
                *at,
                memory.clone(),
                Permissions::ReadWrite,
            )?)?;
        }
        self.replace(&mut lock(&self.inner).guest, table)
    }

    /// Adds memory (hot plug).
    ///
    /// # Errors
    /// It overlaps what is there, or the device refused.
    pub fn add_memory(&self, at: u64, memory: HostMemory) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let mut table = inner.guest.memory.clone();
        table.insert(IotlbMapping::new(at, memory, Permissions::ReadWrite)?)?;
        self.replace(&mut inner.guest, table)
    }

    /// Removes all memory that has an address in `len` bytes from `at` on. When it returns, the device does not use
    /// it any more.
    ///
    /// # Errors
    /// The device refused.
    pub fn remove_memory(&self, at: u64, len: u64) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let Some(last) = len.checked_sub(1).map(|span| at.saturating_add(span)) else {
            return Ok(());
        };
        let mut table = inner.guest.memory.clone();
        table.remove(at, last);
        self.replace(&mut inner.guest, table)
    }

    fn replace(&self, guest: &mut Guest, table: IotlbTable) -> Result<(), PathError> {
        self.map.set(table.clone())?;
        guest.memory = table;
        Ok(())
    }

    /// Stops the device at an instant at which nothing is in flight. A device that can't be suspended is reset once
    /// it is idle: for that the caller has stopped the guest's vCPUs.
    ///
    /// # Errors
    /// Requests did not end in time, or the device refused: it goes on.
    pub fn pause(&self, timeout: Duration) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        if inner.paused.is_some() || !inner.guest.runs() {
            return Ok(());
        }
        let (device, guest) = (self.device.as_ref(), &inner.guest);
        let deadline = Instant::now() + timeout;
        let suspends = device.get_backend_features() & backend_feature::SUSPEND != 0;
        let quiesced = if suspends {
            guest::suspend(device, guest, deadline, &mut 0)
        } else {
            guest::drain(device, guest, deadline)
                .and_then(|states| guest::reset(device).map(|()| states).map_err(Into::into))
        };
        match quiesced {
            Ok(states) => {
                inner.paused = Some(Paused {
                    states,
                    suspended: suspends,
                });
                Ok(())
            }
            Err(error) => {
                if !error.stuck {
                    guest::rebind_and_kick(device, guest)?;
                }
                Err(error.why)
            }
        }
    }

    /// Goes on after [`FastPath::pause`] or [`FastPath::restore`].
    ///
    /// # Errors
    /// The device refused: it is still paused.
    pub fn resume(&self) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let Some(paused) = &inner.paused else {
            return Ok(());
        };
        let device = self.device.as_ref();
        if paused.suspended && device.get_backend_features() & backend_feature::RESUME != 0 {
            device.resume().step(DeviceStep::Resume)?;
            guest::rebind_and_kick(device, &inner.guest)?;
        } else {
            guest::bind_kicks(device, &inner.guest, false)?;
            self.negotiate(&inner.guest)?;
            inner.guest.start(device, &paused.states)?;
            inner.guest.signal();
        }
        inner.paused = None;
        Ok(())
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        lock(&self.inner).paused.is_some()
    }

    /// The state of a paused device. Positions are the device's own, never made up.
    ///
    /// # Errors
    /// It is not paused though its driver runs.
    pub fn save(&self) -> Result<SavedGuest, PathError> {
        let inner = lock(&self.inner);
        let guest = &inner.guest;
        let states = match &inner.paused {
            Some(paused) => paused.states.as_slice(),
            None if !guest.runs() => &[],
            None => return Err(PathError::Busy("pause it first")),
        };
        Ok(guest.save(states))
    }

    /// Takes over what [`FastPath::save`] gave, on another device perhaps. `events` answers the kick eventfd and the
    /// callback of a queue, if there is one. It is paused then: memory comes next, then [`FastPath::resume`]. The data may be
    /// hostile.
    ///
    /// # Errors
    /// It does not fit this device; nothing was changed.
    pub fn restore(
        &self,
        saved: &SavedGuest,
        events: impl FnMut(u16) -> Option<(Arc<EventFd>, Callback)>,
    ) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let (device, offered) = (self.device.as_ref(), self.offered());
        let states = inner.guest.restore(device, saved, offered, events)?;
        inner.paused = inner.guest.runs().then_some(Paused {
            states,
            suspended: false,
        });
        inner.seen = Seen::default();
        Ok(())
    }

    /// Calls `mark` with each range of guest memory that a paused device may have written, as far as its rings
    /// still tell: see [`Coverage`], which says whether that is all.
    ///
    /// # Errors
    /// It is not paused; its rings are packed, or not in memory.
    pub fn mark_dirty(&self, mark: &mut dyn FnMut(u64, u64)) -> Result<Coverage, PathError> {
        let mut inner = lock(&self.inner);
        if inner.paused.is_none() {
            return Err(PathError::Busy("pause it first"));
        }
        if inner.guest.features & feature::RING_PACKED != 0 {
            return Err(PathError::Busy("packed rings don't tell what was written"));
        }
        let Inner { guest, seen, .. } = &mut *inner;
        dirty::walk(guest, seen, mark)
    }
}

impl Drop for FastPath {
    fn drop(&mut self) {
        if let Err(error) = self.device.reset()
            && !matches!(error, VdpaError::Gone)
        {
            log::warn!("the device can't be reset, and is given up: {error}");
            self.device.free();
        }
        // The memory's owner may end it now.
        if let Err(error) = self.map.set(IotlbTable::new()) {
            log::debug!("memory stays mapped in the device: {error}");
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fast path: the guest's rings go straight into the device.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vdpa_bus::{Callback, VdpaDevice, backend_feature};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::spec::{self, feature};
use vmm_sys_util::eventfd::EventFd;

use crate::dirty::{self, Coverage, Seen};
use crate::error::{DeviceStep, PathError, Step};
use crate::frontend::{Frontend, StatusWrite};
use crate::guest::{self, Guest, GuestQueue, QueuePositions, QuiesceError, SavedGuest};
use crate::lock;
use crate::slow::BLOCK_FEATURES;

/// Ring and transport features that need nothing of the VMM, or what this path has. RING_RESET, NOTIFICATION_DATA,
/// NOTIF_CONFIG_DATA, ADMIN_VQ, SR_IOV and SUSPEND are not among them: nobody would carry them out.
const HONOURED: u64 = feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::VERSION_1
    | feature::RING_PACKED
    | feature::IN_ORDER
    | ORDER_PLATFORM;
/// `VIRTIO_F_ORDER_PLATFORM`: how the driver orders its accesses, which it alone does.
const ORDER_PLATFORM: u64 = 1 << 36;
/// The bits of a device class (virtio 1.4, 2.2): between the guest and its device.
const CLASS: u64 = ((1 << 24) - 1) | (!0 << 50);
/// Those of a block device.
const BLOCK: u64 = BLOCK_FEATURES | feature::CONFIG_WCE | feature::GEOMETRY | feature::ZONED;

/// Classes whose devices have no state beyond their rings and what the driver wrote into the configuration space:
/// block and entropy devices.
const STATELESS: [u32; 2] = [spec::DEVICE_ID, 4];

/// A vDPA device of any class, given to a guest.
///
/// A VMM's transport passes on what the guest does to features, status, configuration space and queues, and the changes
/// of the guest's memory. The VMM has no part in the data path: the device takes kicks from the ioeventfds and interrupts
/// the guest through the irqfds.
///
/// ACCESS_PLATFORM is hidden from the guest and negotiated with the device: I/O addresses are guest physical ones.
pub struct FastPath {
    frontend: Frontend,
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
    positions: QueuePositions,
    /// It can be resumed; else it is started anew.
    suspended: bool,
}

impl FastPath {
    /// Takes a device over and resets it.
    ///
    /// # Errors
    /// The device refused the reset.
    pub fn new(device: Arc<dyn VdpaDevice>) -> Result<Self, PathError> {
        let class = match device.get_device_id() {
            spec::DEVICE_ID => BLOCK,
            _ => CLASS,
        };
        let frontend = Frontend::new(device, HONOURED | class)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                guest: frontend.new_guest(frontend.device().nvqs()),
                paused: None,
                seen: Seen::default(),
            }),
            frontend,
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VdpaDevice> {
        self.frontend.device()
    }

    /// The features to offer to the guest.
    pub fn offered(&self) -> u64 {
        self.frontend.offered()
    }

    /// Records what the guest acknowledges; the device is told at FEATURES_OK.
    ///
    /// # Errors
    /// Bits that were not offered; the guest set FEATURES_OK before.
    pub fn set_features(&self, features: u64) -> Result<(), PathError> {
        let guest = &mut lock(&self.inner).guest;
        self.frontend.acknowledge(guest, features)
    }

    /// The status byte that the guest reads.
    pub fn status(&self) -> u8 {
        self.frontend.status()
    }

    /// The guest writes the status byte. 0 resets the device, whatever it is doing; FEATURES_OK negotiates, and does
    /// not stay if the device does not take the features; DRIVER_OK starts it.
    ///
    /// # Errors
    /// The device refused a step. After a failed reset it stays reset in the eyes of the guest.
    pub fn set_status(&self, byte: u8) -> Result<(), PathError> {
        let inner = &mut *lock(&self.inner);
        match self.frontend.write_status(&inner.guest, byte)? {
            StatusWrite::Done => {}
            StatusWrite::Reset => {
                inner.paused = None;
                inner.seen = Seen::default();
                self.frontend.reset(&mut inner.guest)?;
            }
            StatusWrite::Start => {
                self.frontend.start_rings(&inner.guest, &[])?;
                inner.seen = Seen::start();
                self.frontend.commit_status(byte);
            }
        }
        Ok(())
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// The range does not lie inside.
    pub fn read_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), PathError> {
        self.frontend.read_config(offset, buf)
    }

    /// The guest writes the configuration space.
    ///
    /// # Errors
    /// The range does not lie inside, or can't be written.
    pub fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), PathError> {
        let guest = &mut lock(&self.inner).guest;
        self.frontend.write_config(guest, offset, bytes)
    }

    /// What interrupts the guest when the configuration changes. Before DRIVER_OK.
    pub fn set_config_call(&self, call: Option<Callback>) {
        self.frontend.guest_status().set_config_call(call);
    }

    /// The guest enables a queue. Before DRIVER_OK.
    ///
    /// # Errors
    /// No such queue or size; the driver runs already.
    pub fn set_queue(&self, index: u16, queue: GuestQueue) -> Result<(), PathError> {
        let guest = &mut lock(&self.inner).guest;
        self.frontend.enable_queue(guest, index, queue)
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
        self.frontend
            .set_memory(&mut lock(&self.inner).guest, table)
    }

    /// Adds memory (hot plug).
    ///
    /// # Errors
    /// It overlaps what is there, or the device refused.
    pub fn add_memory(&self, at: u64, memory: HostMemory) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let mut table = inner.guest.memory.clone();
        table.insert(IotlbMapping::new(at, memory, Permissions::ReadWrite)?)?;
        self.frontend.set_memory(&mut inner.guest, table)
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
        self.frontend.set_memory(&mut inner.guest, table)
    }

    /// Stops the device at an instant at which nothing is in flight. A device that can't be suspended is reset once
    /// it is idle: for that the caller has stopped the guest's vCPUs.
    ///
    /// A device with SUSPEND and RESUME can always be paused. Any other is started anew afterwards: only one that starts
    /// rings in their middle, of a class without state of its own (block, entropy), and without SUSPEND only with split
    /// rings.
    ///
    /// # Errors
    /// [`PathError::Unsupported`] for a device that can't be paused; nothing was changed. Requests did not end in time,
    /// or the device refused: it continues.
    pub fn pause(&self, timeout: Duration) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        if inner.paused.is_some() || !inner.guest.runs() {
            return Ok(());
        }
        let (device, guest) = (self.device().as_ref(), &inner.guest);
        let suspends = self.check_pause(guest)?;
        let deadline = Instant::now() + timeout;
        let quiesced = if suspends {
            guest::suspend(device, guest, deadline, &mut 0)
        } else {
            guest::drain(device, guest, deadline)
                .and_then(|positions| guest::reset(device).map(|()| positions).map_err(Into::into))
        };
        match quiesced {
            Ok(positions) => {
                inner.paused = Some(Paused {
                    positions,
                    suspended: suspends,
                });
                Ok(())
            }
            Err(error) => {
                if matches!(error, QuiesceError::Running(_)) {
                    guest::rebind_and_kick(device, guest)?;
                }
                Err(error.into_source())
            }
        }
    }

    /// Whether the device is paused by SUSPEND.
    fn check_pause(&self, guest: &Guest) -> Result<bool, PathError> {
        let device = self.device().as_ref();
        let has = |bit| device.get_backend_features() & bit != 0;
        let suspends = has(backend_feature::SUSPEND);
        if suspends && has(backend_feature::RESUME) {
            return Ok(true);
        }
        self.check_stateless()?;
        if self.frontend.starts_at_zero_only() {
            return Err(PathError::Unsupported(
                "it can't be suspended and resumed, and starts rings at their beginning only",
            ));
        }
        if !suspends && guest.features & feature::RING_PACKED != 0 {
            return Err(PathError::Unsupported(
                "it has no SUSPEND, and a packed ring does not tell whether requests are in flight",
            ));
        }
        Ok(suspends)
    }

    /// Refuses a class whose devices have state that a reset loses and nothing here can save.
    fn check_stateless(&self) -> Result<(), PathError> {
        if STATELESS.contains(&self.device().get_device_id()) {
            return Ok(());
        }
        Err(PathError::Unsupported(
            "a device of its class has state beyond its rings, which would be lost",
        ))
    }

    /// Resumes the device after [`FastPath::pause`] or [`FastPath::restore`]. Has no effect if it is not paused.
    ///
    /// # Errors
    /// The device refused: it is still paused.
    pub fn resume(&self) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let Some(paused) = &inner.paused else {
            return Ok(());
        };
        let device = self.device().as_ref();
        if paused.suspended && device.get_backend_features() & backend_feature::RESUME != 0 {
            device.resume().step(DeviceStep::Resume)?;
            guest::rebind_and_kick(device, &inner.guest)?;
        } else {
            guest::bind_kicks(device, &inner.guest, false)?;
            guest::reset(device)?;
            self.frontend
                .restart_guest(&inner.guest, &paused.positions)?;
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
    /// It is not paused though its driver runs; [`PathError::Unsupported`] for a class whose devices have state beyond
    /// their rings.
    pub fn save(&self) -> Result<SavedGuest, PathError> {
        self.check_stateless()?;
        let inner = lock(&self.inner);
        let guest = &inner.guest;
        let states = match &inner.paused {
            Some(paused) => paused.positions.as_slice(),
            None if !guest.runs() => &[],
            None => return Err(PathError::Busy("pause it first")),
        };
        Ok(guest.save(states))
    }

    /// Restores what [`FastPath::save`] returned, possibly of another device. `events` returns the kick eventfd and the
    /// callback of a queue, `None` if there is no such queue. The device is paused afterwards: call
    /// [`FastPath::set_memory`], then [`FastPath::resume`]. `saved` may come from a hostile source.
    ///
    /// # Errors
    /// It does not fit this device; nothing was changed.
    pub fn restore(
        &self,
        saved: &SavedGuest,
        events: impl FnMut(u16) -> Option<(Arc<EventFd>, Callback)>,
    ) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        let (device, offered) = (self.device().as_ref(), self.offered());
        let positions = inner.guest.restore(device, saved, offered, events)?;
        inner.paused = inner.guest.runs().then_some(Paused {
            positions,
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

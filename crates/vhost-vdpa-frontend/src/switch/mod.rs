// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moving a running guest between the fast path and the slow path.

mod failed_disk;
mod pause;
mod policy;
mod queue_executor;
mod recovery;
mod report;
mod setup;
mod transition;
mod vmm;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vdpa_bus::{Callback, VdpaDevice};
use virtio_blk_core::device::Device;
use virtio_blk_core::disk::{Caps, Disk};
use virtio_blk_core::memory::{DeviceMemory, HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::runner::Stop;
use virtio_blk_core::spec::config::NUM_QUEUES_OFFSET;
use virtio_blk_core::spec::{feature, status};

pub use policy::{Interception, OnFailure, SwitchPolicy};
pub use queue_executor::{QueueExecutor, ThreadExecutor};
pub use report::{Path, QuiesceMethod, SwitchError, SwitchPhases, SwitchReport, SwitchStep};
pub use vmm::Vmm;

use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, Guest, GuestQueue, QueuePositions};
use crate::iotlb_sync::IotlbSync;
use crate::lock;
use crate::slow::{BLOCK_FEATURES, SlowOptions, SlowPath};
use crate::virtio_init;
use policy::Interceptions;

/// How a switch is made.
#[derive(Clone, Debug)]
pub struct SwitchOptions {
    /// The slow path.
    pub slow: SlowOptions,
    /// Who decides on the path.
    pub policy: SwitchPolicy,
    /// What to do with requests when neither path works.
    pub on_failure: OnFailure,
    /// How long a device on the fast path may take to finish what it has, after SUSPEND or under stopped vCPUs. The
    /// guest waits meanwhile.
    pub quiesce_timeout: Duration,
    /// How long it is given, without kicks, before vCPUs are stopped. The guest waits for requests, but runs.
    pub settle_time: Duration,
    /// How long the slow path may take to finish what it has.
    pub drain_timeout: Duration,
    /// Bits never to offer to the guest.
    pub masked_features: u64,
}

impl Default for SwitchOptions {
    /// Manual, holding requests on failure; 2 s to quiesce, 2 ms to calm down, 5 s to drain.
    fn default() -> Self {
        Self {
            slow: SlowOptions::default(),
            policy: SwitchPolicy::Manual,
            on_failure: OnFailure::Hold,
            quiesce_timeout: Duration::from_secs(2),
            settle_time: Duration::from_millis(2),
            drain_timeout: Duration::from_secs(5),
            masked_features: 0,
        }
    }
}

/// Puts layers onto the slow path's disk, once: what comes back is what the guest's requests go to.
pub type Layers = Box<dyn FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk> + Send>;

/// What a switch is made of.
pub struct SwitchParts<M: DeviceMemory> {
    /// The device: a block device, with split rings.
    pub device: Arc<dyn VdpaDevice>,
    /// The guest's memory. Its changes are made known by [`PathSwitch::sync_memory`].
    pub memory: M,
    /// Who serves queues on the slow path.
    pub executor: Box<dyn QueueExecutor<M>>,
    /// The VMM.
    pub vmm: Arc<dyn Vmm>,
    /// What to put onto the slow path's disk.
    pub layers: Option<Layers>,
}

/// A vDPA block device for a guest, on the fast path or on the slow path, and moved between the two while the guest
/// runs and has requests in flight.
///
/// The guest sees one device: the same features, the same configuration, its rings where it put them. What changes is
/// who serves them. A switch happens only at an instant at which nothing is in flight, as a split ring can't tell
/// what is; at that instant the device is reset behind the guest's back and set up for the other path. If any step
/// fails, the path that was left is set up again at the same indices.
///
/// For a VMM's transport it looks like [`crate::FastPath`]. One lock is held by all methods: a switch, a write of the
/// status byte and a change of memory exclude each other.
pub struct PathSwitch<M: DeviceMemory + Clone> {
    device: Arc<dyn VdpaDevice>,
    map: Arc<IotlbSync>,
    memory: M,
    vmm: Arc<dyn Vmm>,
    options: SwitchOptions,
    slow: SlowPath,
    /// The slow path with its layers.
    disk: Arc<dyn Disk>,
    caps: Caps,
    /// Queues that the guest sees: no more than either path has.
    queues: u16,
    interceptions: Arc<Interceptions>,
    /// Interceptions that [`PathSwitch::set_interception`] noted.
    followed: Mutex<Vec<Interception>>,
    inner: Mutex<Inner<M>>,
}

struct Inner<M: DeviceMemory> {
    guest: Guest,
    path: Path,
    executor: Box<dyn QueueExecutor<M>>,
    /// The device model in front of `disk`; made when it is first needed.
    served: Option<Arc<Device>>,
    /// Where the queues stand while nobody serves them ([`Path::Failed`], [`Path::Paused`]); `None`: unknown.
    held: Option<QueuePositions>,
    /// The path to go on with after a pause.
    next: Path,
    /// The device has the guest's rings, and is suspended or hears no kicks ([`Path::Failed`]).
    stalled: bool,
    /// The device can't take rings over that were used.
    one_way: bool,
    last: Option<SwitchReport>,
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Takes a device over, and tells it of the guest's memory.
    ///
    /// # Errors
    /// It is no block device or can't be driven; memory reaches into the shadow window.
    pub fn new(parts: SwitchParts<M>, options: SwitchOptions) -> Result<Self, PathError> {
        let SwitchParts {
            device,
            memory,
            executor,
            vmm,
            layers,
        } = parts;
        device.reset().step(DeviceStep::Reset)?;
        let map = Arc::new(IotlbSync::new(device.clone()));
        let slow = SlowPath::idle(device.clone(), map.clone(), options.slow.clone(), false)?;
        let plain: Arc<dyn Disk> = Arc::new(slow.clone());
        let disk = match layers {
            Some(layers) => layers(plain),
            None => plain,
        };
        let caps = slow.caps();
        let queues = caps.max_queues.min(disk.caps().max_queues);
        let this = Self {
            caps,
            queues,
            followed: Mutex::default(),
            inner: Mutex::new(Inner {
                guest: Guest::new(queues),
                path: Path::Idle,
                executor,
                served: None,
                held: None,
                next: Path::Fast,
                stalled: false,
                one_way: false,
                last: None,
            }),
            device,
            map,
            memory,
            vmm,
            options,
            slow,
            disk,
            interceptions: Arc::default(),
        };
        this.sync_memory()?;
        Ok(this)
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VdpaDevice> {
        &self.device
    }

    /// The disk of the slow path, with its layers. It works while the path is slow.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Queues that the guest sees: those of the device, or fewer where a layer halves them.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Where requests go now.
    pub fn path(&self) -> Path {
        lock(&self.inner).path
    }

    /// What the last successful switch did.
    pub fn last_report(&self) -> Option<SwitchReport> {
        lock(&self.inner).last.clone()
    }

    /// The features to offer to the guest: what the device has and both paths honour.
    pub fn offered(&self) -> u64 {
        let both = BLOCK_FEATURES
            | feature::CONFIG_WCE
            | feature::GEOMETRY
            | feature::RING_INDIRECT_DESC
            | feature::RING_EVENT_IDX
            | feature::VERSION_1;
        self.device.get_device_features()
            & both
            & !(self.options.masked_features & !feature::VERSION_1)
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

    /// The guest writes the status byte. 0 resets the device, whatever it is doing and on whatever path; FEATURES_OK
    /// negotiates, and does not stay if the device does not take the features; DRIVER_OK starts the path that the policy
    /// wants.
    ///
    /// # Errors
    /// The device refused a step. After a failed reset it stays reset in the eyes of the guest.
    pub fn set_status(&self, byte: u8) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        if byte == 0 {
            return self.reset(&mut inner);
        }
        let new = byte & !inner.guest.status;
        if new & status::FEATURES_OK != 0 {
            match self.negotiate(&inner.guest) {
                Ok(()) => {}
                Err(error) if error.is_about_features() => {
                    inner.guest.status = byte & !status::FEATURES_OK;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        if new & status::DRIVER_OK != 0 {
            if (byte | inner.guest.status) & status::FEATURES_OK == 0 {
                return Err(PathError::Busy("DRIVER_OK before FEATURES_OK"));
            }
            self.begin(&mut inner)?;
        }
        inner.guest.status = byte;
        Ok(())
    }

    fn negotiate(&self, guest: &Guest) -> Result<(), PathError> {
        if guest.features & feature::VERSION_1 == 0 {
            return Err(PathError::Features(guest.features));
        }
        self.device.reset().step(DeviceStep::Reset)?;
        virtio_init::negotiate(self.device.as_ref(), self.fast_features(guest))
    }

    /// What is negotiated for the fast path.
    fn fast_features(&self, guest: &Guest) -> u64 {
        guest.features | self.device.get_device_features() & feature::ACCESS_PLATFORM
    }

    /// The guest resets its device.
    fn reset(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        self.vmm.unmap_doorbells();
        if !self.close_intakes(inner) && inner.path == Path::Slow {
            // The device is reset in any case: that ends what it has.
            self.slow.abandon();
        }
        self.stop_queues(inner, Stop::HandOver);
        let stopped = self.slow.stop();
        inner.guest.reset();
        inner.path = Path::Idle;
        inner.held = None;
        inner.stalled = false;
        guest::reset(self.device.as_ref())?;
        self.map.set(inner.guest.memory.clone())?;
        stopped
    }

    /// Reads the configuration space.
    ///
    /// # Errors
    /// The range does not lie inside.
    pub fn read_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), PathError> {
        let inner = lock(&self.inner);
        if inner.path == Path::Slow
            && let Err(error) = self.slow.refresh()
        {
            log::debug!("the slow path's capacity was not brought up to date: {error}");
        }
        self.device
            .get_config(offset, buf)
            .step(DeviceStep::ReadConfig)?;
        if self.offered() & feature::MQ != 0 {
            let field = self.queues.to_le_bytes();
            for (at, byte) in (NUM_QUEUES_OFFSET..).zip(field) {
                let place = at.checked_sub(offset).and_then(|at| buf.get_mut(at));
                if let Some(place) = place {
                    *place = byte;
                }
            }
        }
        Ok(())
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

    /// Looks at the guest's memory again after it changed (hot plug), and tells the device. May be called while it
    /// runs, on both paths.
    ///
    /// # Errors
    /// Memory reaches into the shadow window, or the device refused.
    pub fn sync_memory(&self) -> Result<(), PathError> {
        let mut table = IotlbTable::new();
        let (window, last) = self.slow.window();
        for (at, memory) in HostMemory::of_map(&self.memory) {
            let mapping = IotlbMapping::new(at, memory, Permissions::ReadWrite)?;
            if mapping.last() >= window {
                return Err(PathError::Window {
                    at: window,
                    len: last - window + 1,
                    why: "guest memory reaches there: give the window a place above it",
                });
            }
            table.insert(mapping)?;
        }
        let mut inner = lock(&self.inner);
        if inner.path == Path::Slow {
            self.slow.set_guest(&table)?;
        } else {
            self.map.set(table.clone())?;
        }
        inner.guest.memory = table;
        Ok(())
    }

    /// Moves the guest to `path`, `Fast` or `Slow`. Answers what was done, `None` if it is there already or if its
    /// driver does not run (then it starts there).
    ///
    /// # Errors
    /// It stays where it was ([`SwitchError::path`]), or nobody serves it any more.
    pub fn switch_to(&self, path: Path) -> Result<Option<SwitchReport>, SwitchError> {
        self.go(&mut lock(&self.inner), path)
    }

    /// Says that somebody needs to see requests. With [`SwitchPolicy::Auto`] the guest is on the slow path when this
    /// returns.
    ///
    /// # Errors
    /// It can't be brought there; nothing is noted then.
    pub fn intercept(&self, reason: &'static str) -> Result<Interception, SwitchError> {
        let mut inner = lock(&self.inner);
        let need = self.interceptions.add(reason);
        if self.options.policy == SwitchPolicy::Auto {
            self.go(&mut inner, Path::Slow)?;
        }
        Ok(need)
    }

    /// With [`SwitchPolicy::Auto`], brings the guest to the path that is wanted now: to be called after an
    /// [`Interception`] ended. A device that can't take used rings over stays slow.
    ///
    /// # Errors
    /// It stays where it was.
    pub fn apply_policy(&self) -> Result<Option<SwitchReport>, SwitchError> {
        let mut inner = lock(&self.inner);
        if self.options.policy == SwitchPolicy::Manual || inner.path == Path::Failed {
            return Ok(None);
        }
        let path = if self.interceptions.reasons().is_empty() {
            Path::Fast
        } else {
            Path::Slow
        };
        if path == Path::Fast && inner.one_way {
            return Ok(None);
        }
        self.go(&mut inner, path)
    }

    /// Notes whether somebody needs to see requests, under the name `reason`, and with [`SwitchPolicy::Auto`] brings the guest
    /// to the path that follows. For what has layers that come and go: to be called after each change of them, and
    /// before the guest's driver starts, with what `sees_requests` of virtio-blk-disks' `Stack` says (its `listen` does the
    /// former).
    ///
    /// # Errors
    /// It can't be brought there. A need is not noted then.
    pub fn set_interception(&self, reason: &'static str, needed: bool) -> Result<(), SwitchError> {
        let mut followed = lock(&self.followed);
        let known = followed.iter().position(|need| need.reason() == reason);
        match (known, needed) {
            (None, true) => followed.push(self.intercept(reason)?),
            (Some(at), false) => drop(followed.swap_remove(at)),
            _ => {}
        }
        self.apply_policy().map(drop)
    }

    /// Tries again to serve a guest that nobody serves ([`Path::Failed`]).
    ///
    /// # Errors
    /// It still fails; or where its queues stand is not known, and only a reset by the guest helps.
    pub fn retry(&self) -> Result<(), SwitchError> {
        self.try_again(&mut lock(&self.inner))
    }

    /// Who needs to see requests.
    pub fn reasons(&self) -> Vec<&'static str> {
        self.interceptions.reasons()
    }
}

impl<M: DeviceMemory + Clone> Drop for PathSwitch<M> {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        if self.reset(&mut inner).is_err() {
            self.device.free();
        }
        // The memory's owner may end it now.
        if let Err(error) = self.map.set(IotlbTable::new()) {
            log::debug!("memory stays mapped in the device: {error}");
        }
    }
}

impl<M: DeviceMemory + Clone> std::fmt::Debug for PathSwitch<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PathSwitch")
            .field("path", &self.path())
            .field("needs", &self.reasons())
            .finish_non_exhaustive()
    }
}

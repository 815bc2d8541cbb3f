// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moving a running guest between the fast path and the slow path.

mod enforcement;
mod failed_disk;
mod pause;
mod policy;
mod queue_executor;
mod recovery;
mod report;
mod setup;
mod slow_disk;
mod state;
mod transition;
mod vmm;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vdpa_bus::{Callback, VdpaDevice};
use virtio_blk_core::device::Device;
use virtio_blk_core::disk::{Caps, Disk};
use virtio_blk_core::memory::{DeviceMemory, HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::runner::{Medium, Stop};
use virtio_blk_core::spec::config::NUM_QUEUES_OFFSET;
use virtio_blk_core::spec::feature;

pub use policy::{Interception, OnFailure, SwitchPolicy};
pub use queue_executor::{QueueExecutor, ThreadExecutor};
pub use report::{
    DataPath, PathState, QuiesceMethod, SwitchError, SwitchPhases, SwitchReport, SwitchStep,
};
pub use vmm::Vmm;

use crate::error::PathError;
use crate::frontend::{Frontend, StatusWrite};
use crate::guest::{Guest, GuestQueue};
use crate::lock;
use crate::slow::{BLOCK_FEATURES, SlowOptions, SlowPath};
use policy::Interceptions;
use state::State;

/// Features that the slow path honours as the device does.
const HONOURED: u64 = BLOCK_FEATURES
    | feature::CONFIG_WCE
    | feature::GEOMETRY
    | feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::VERSION_1;

/// How a switch is made.
#[derive(Clone, Debug)]
pub struct SwitchOptions {
    /// The slow path.
    pub slow: SlowOptions,
    /// How the path is chosen.
    pub policy: SwitchPolicy,
    /// What to do with requests when neither path works.
    pub on_failure: OnFailure,
    /// How long a device on the fast path may take to finish what it has, after SUSPEND or under stopped vCPUs. The
    /// guest waits meanwhile.
    pub quiesce_timeout: Duration,
    /// How long the device may keep completing requests without kicks before vCPUs are paused, to keep that pause
    /// short. The guest waits for requests, but runs.
    pub settle_time: Duration,
    /// How long the slow path may take to complete the requests in flight before a move or a pause fails; and how long
    /// its disk may take, each time, to be taken into use or released ([`PathSwitch::disk`]).
    pub drain_timeout: Duration,
    /// With [`SwitchPolicy::Auto`]: a guest whose requests somebody needs to see is on the slow path, or its device is
    /// stopped and asks for a reset (DEVICE_NEEDS_RESET). Without, a guest that makes its device one that can't be
    /// stopped in order stays on the fast path, and [`PathSwitch::intercept`] fails.
    pub enforce: bool,
    /// Bits never to offer to the guest.
    pub masked_features: u64,
}

impl Default for SwitchOptions {
    /// Manual, enforcing interceptions, holding requests on failure; 2 s to quiesce, 2 ms to settle, 5 s to drain.
    fn default() -> Self {
        Self {
            slow: SlowOptions::default(),
            policy: SwitchPolicy::Manual,
            on_failure: OnFailure::Hold,
            quiesce_timeout: Duration::from_secs(2),
            settle_time: Duration::from_millis(2),
            drain_timeout: Duration::from_secs(5),
            enforce: true,
            masked_features: 0,
        }
    }
}

/// Puts layers onto the slow path's disk. Called once; the guest's requests go to the disk that it returns. On the fast
/// path they go past it: what it keeps of the content in memory must be stable once [`Disk::deactivate`] returns.
pub type Layers = Box<dyn FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk> + Send>;

/// What a [`PathSwitch`] is made from.
pub struct SwitchParts<M: DeviceMemory> {
    /// The device: a block device, with split rings.
    pub device: Arc<dyn VdpaDevice>,
    /// The guest's memory. Its changes are made known by [`PathSwitch::sync_memory`].
    pub memory: M,
    /// Serves the queues on the slow path.
    pub executor: Box<dyn QueueExecutor<M>>,
    /// The VMM.
    pub vmm: Arc<dyn Vmm>,
    /// Layers for the slow path's disk.
    pub layers: Option<Layers>,
}

/// A vDPA block device for a guest, on the fast path or on the slow path, and moved between the two while the guest
/// runs and has requests in flight.
///
/// The guest sees one device: the same features, the same configuration, its rings where it put them. A move takes
/// place only at an instant at which nothing is in flight, as a split ring can't tell what is. At that instant the
/// device is reset, which the guest does not notice, and set up for the other path. If a step fails, the path that was
/// left is set up again at the same indices.
///
/// A VMM's transport uses it like [`crate::FastPath`]. A lock is held by all methods but [`PathSwitch::status`],
/// [`PathSwitch::read_config`] and [`PathSwitch::offered`]: a move, a write of the status byte and a change of memory
/// exclude each other.
pub struct PathSwitch<M: DeviceMemory + Clone> {
    frontend: Frontend,
    memory: M,
    vmm: Arc<dyn Vmm>,
    options: SwitchOptions,
    slow: SlowPath,
    /// The slow path with its layers.
    disk: Arc<dyn Disk>,
    caps: Caps,
    /// `disk`, in use or not. Without layers nothing is kept in memory, and a move need not wait for the threads.
    medium: Option<Medium>,
    /// The device model in front of `disk`.
    model: Arc<Device>,
    /// Queues that the guest sees: no more than either path has.
    queues: u16,
    interceptions: Arc<Interceptions>,
    /// Those that [`PathSwitch::set_interception`] holds.
    held: Mutex<Vec<Interception>>,
    inner: Mutex<Inner<M>>,
}

struct Inner<M: DeviceMemory> {
    guest: Guest,
    state: State,
    executor: Box<dyn QueueExecutor<M>>,
    /// The queues that the executor serves.
    served: Vec<u16>,
    last_report: Option<SwitchReport>,
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Takes a device over, asks it for its serial number, and tells it of the guest's memory.
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
        let honoured = HONOURED & !(options.masked_features & !feature::VERSION_1);
        let frontend = Frontend::new(device, honoured)?;
        let slow = SlowPath::idle(
            frontend.device().clone(),
            frontend.iotlb().clone(),
            options.slow.clone(),
            false,
        )?;
        let serial = slow.serial_of_idle()?;
        let plain: Arc<dyn Disk> = Arc::new(slow.clone());
        let (disk, medium) = match layers {
            Some(layers) => {
                let disk = layers(plain);
                (disk.clone(), Some(Medium::new(disk, slow_disk::log_medium)))
            }
            None => (plain, None),
        };
        let caps = slow.caps();
        let queues = caps.max_queues.min(disk.caps().max_queues);
        let model = setup::new_model(&frontend, disk.clone(), queues, serial)?;
        let this = Self {
            caps,
            queues,
            held: Mutex::default(),
            inner: Mutex::new(Inner {
                guest: frontend.new_guest(queues),
                state: State::Idle,
                executor,
                served: Vec::new(),
                last_report: None,
            }),
            frontend,
            memory,
            vmm,
            options,
            slow,
            medium,
            disk,
            model,
            interceptions: Arc::default(),
        };
        this.sync_memory()?;
        Ok(this)
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VdpaDevice> {
        self.frontend.device()
    }

    /// The disk of the slow path, with its layers. It works while the path is slow, and is in use ([`Disk::activate`])
    /// only then: before a guest is served by the device itself, or is paused, it is released. If that fails the guest
    /// stays on the slow path.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Queues that the guest sees: those of the device, or fewer where a layer halves them.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Where requests go now.
    pub fn path(&self) -> PathState {
        lock(&self.inner).state.path()
    }

    /// What the last successful switch did.
    pub fn last_report(&self) -> Option<SwitchReport> {
        lock(&self.inner).last_report.clone()
    }

    /// The features to offer to the guest: what the device has and both paths honour.
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

    /// The status byte that the guest reads. Does not wait for a switch that is under way.
    pub fn status(&self) -> u8 {
        self.frontend.status()
    }

    /// The guest writes the status byte. 0 resets the device, whatever it is doing and on whatever path: what is in
    /// flight is cancelled, and the slow path's disk is waited for at most twice [`SwitchOptions::drain_timeout`].
    /// FEATURES_OK negotiates, and does not stay if the device does not take the features; DRIVER_OK starts the path
    /// that the policy wants.
    ///
    /// # Errors
    /// The device refused a step. After a failed reset it stays reset in the eyes of the guest.
    pub fn set_status(&self, byte: u8) -> Result<(), PathError> {
        let inner = &mut *lock(&self.inner);
        match self.frontend.write_status(&inner.guest, byte)? {
            StatusWrite::Done => Ok(()),
            StatusWrite::Reset => self.reset(inner),
            StatusWrite::Start => {
                self.begin(inner)?;
                self.frontend.commit_status(byte);
                Ok(())
            }
        }
    }

    /// The guest resets its device.
    fn reset(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        self.vmm.unmap_doorbells();
        if matches!(inner.state, State::Slow) && !self.is_at_rest(inner) {
            // The device is reset in any case: that ends what it has, in the time that it takes for that.
            self.slow.cancel_all();
        }
        self.stop_queues(inner, Stop::HandOver);
        self.forget_disk();
        let stopped = self.slow.stop();
        inner.state = State::Idle;
        self.frontend.reset(&mut inner.guest)?;
        self.frontend.iotlb().set(inner.guest.memory.clone())?;
        stopped
    }

    /// Reads the configuration space. Does not wait for a switch that is under way.
    ///
    /// # Errors
    /// The range does not lie inside.
    pub fn read_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), PathError> {
        if let Err(error) = self.slow.refresh_if_running() {
            log::debug!("the slow path's capacity was not brought up to date: {error}");
        }
        self.frontend.read_config(offset, buf)?;
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
        let guest = &mut lock(&self.inner).guest;
        self.frontend.write_config(guest, offset, bytes)
    }

    /// What interrupts the guest when the configuration or the status changes. Before DRIVER_OK.
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

    /// Updates the device's memory map after the guest's memory changed (hot plug). May be called while the guest runs,
    /// on both paths.
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
        let guest_and_state = &mut *lock(&self.inner);
        let guest = &mut guest_and_state.guest;
        if matches!(guest_and_state.state, State::Slow) {
            self.slow.set_guest(&table)?;
            guest.memory = table;
            return Ok(());
        }
        self.frontend.set_memory(guest, table)
    }

    /// Moves the guest to `path`. Returns what was done, `None` if it is there already or if its driver does not run
    /// (then it starts where the policy wants it).
    ///
    /// # Errors
    /// It stays where it was ([`SwitchError::path`]), or nobody serves it any more.
    pub fn switch_to(&self, path: DataPath) -> Result<Option<SwitchReport>, SwitchError> {
        self.move_to(&mut lock(&self.inner), path)
    }

    /// Records that somebody needs to see requests. With [`SwitchPolicy::Auto`] no request goes by unseen when this
    /// returns: the guest is on the slow path, or, if it can't be brought there in two attempts and
    /// [`SwitchOptions::enforce`] is set, its device was reset and asks for a reset by the guest
    /// ([`PathState::Failed`]). That takes at most twice [`SwitchOptions::settle_time`] and four times
    /// [`SwitchOptions::quiesce_timeout`], besides what the device and the VMM take for their calls.
    ///
    /// # Errors
    /// It can't be brought there, and that is not enforced; nothing is recorded then.
    pub fn intercept(&self, reason: &'static str) -> Result<Interception, SwitchError> {
        let mut inner = lock(&self.inner);
        let need = self.interceptions.add(reason);
        if self.options.policy == SwitchPolicy::Auto {
            self.intercept_now(&mut inner)?;
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
        if self.options.policy == SwitchPolicy::Manual || matches!(inner.state, State::Failed(_)) {
            return Ok(None);
        }
        if self.interceptions.any() {
            return self.intercept_now(&mut inner);
        }
        if self.frontend.starts_at_zero_only() {
            return Ok(None);
        }
        self.move_to(&mut inner, DataPath::Fast)
    }

    /// Records whether somebody needs to see requests, under the name `reason`, and with [`SwitchPolicy::Auto`] brings
    /// the guest to the path that follows. For what has layers that come and go: to be called after each change of
    /// them, and before the guest's driver starts, with what `sees_requests` of virtio-blk-disks' `Stack` says (its
    /// `listen` does the former).
    ///
    /// # Errors
    /// It can't be brought there. A need is not noted then.
    pub fn set_interception(&self, reason: &'static str, needed: bool) -> Result<(), SwitchError> {
        let mut held = lock(&self.held);
        let known = held.iter().position(|need| need.reason() == reason);
        match (known, needed) {
            (None, true) => held.push(self.intercept(reason)?),
            (Some(at), false) => drop(held.swap_remove(at)),
            _ => {}
        }
        self.apply_policy().map(drop)
    }

    /// Tries again to serve a guest that is not served ([`PathState::Failed`]). Does nothing in any other state.
    ///
    /// # Errors
    /// It still fails; or the position of its queues is not known, and only a reset by the guest helps.
    pub fn retry(&self) -> Result<(), SwitchError> {
        self.try_again(&mut lock(&self.inner))
    }

    /// Returns the reasons for which requests are intercepted.
    pub fn reasons(&self) -> Vec<&'static str> {
        self.interceptions.reasons()
    }
}

impl<M: DeviceMemory + Clone> Drop for PathSwitch<M> {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        if self.reset(&mut inner).is_err() {
            self.device().free();
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

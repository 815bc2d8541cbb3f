// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The simulator, of any profile.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState};
use virtio_blk_core::disk::{Disk, SECTOR_SIZE};
use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::FaultDisk;
use vmm_sys_util::eventfd::EventFd;

use crate::compat::{self, Compat};
use crate::faults::FaultCounts;
use crate::in_use::InUse;
use crate::lock;
use crate::model::{Model, Work};
use crate::notifier::Notifier;
use crate::options::{Execution, SimOptions, SimOptionsError, SimProfile};
use crate::strict::Strict;
use crate::worker::Worker;

/// A vDPA block device in this process, over any [`Disk`]. The disk is in use ([`Disk::activate`]) while a queue runs. If
/// what it keeps in memory can't be made stable after that, disabling the last queue and suspending the device fail.
///
/// Several may share one disk (the module parameter `shared_backend` of the kernel's simulator): give each
/// the same `Arc`.
pub struct BlkSim {
    model: Arc<dyn Model>,
    notifier: Arc<Notifier>,
    faulty: Option<Arc<FaultDisk>>,
    worker: Mutex<Option<Worker>>,
    gone: AtomicBool,
}

impl BlkSim {
    /// A device over `disk`.
    ///
    /// # Errors
    /// What is wrong with the options, or what the system did not give.
    pub fn new(disk: Arc<dyn Disk>, options: SimOptions) -> Result<Self, SimOptionsError> {
        let faulty = options
            .faults
            .disk
            .clone()
            .map(|plan| Arc::new(FaultDisk::new(disk.clone(), plan)));
        let top: Arc<dyn Disk> = match &faulty {
            Some(faulty) => faulty.clone(),
            None => disk.clone(),
        };
        let in_use = InUse::new(top, &disk);
        let model: Arc<dyn Model> = match &options.profile {
            SimProfile::Strict(strict) => Arc::new(Strict::new(in_use, strict, &options)?),
            SimProfile::Compat(compat) => Arc::new(Compat::new(in_use, compat, &options)?),
        };
        let worker = match options.execution {
            Execution::Thread => Some(Worker::spawn(model.clone())?),
            Execution::Stepped => None,
        };
        Ok(Self {
            notifier: model.notifier().clone(),
            model,
            faulty,
            worker: Mutex::new(worker),
            gone: AtomicBool::new(false),
        })
    }

    /// A device over memory of the size that the kernel's simulator has, 128 MiB.
    ///
    /// # Errors
    /// As [`BlkSim::new`].
    pub fn in_memory(options: SimOptions) -> Result<Self, SimOptionsError> {
        let disk = MemoryDisk::new(compat::CAPACITY * SECTOR_SIZE)?;
        Self::new(Arc::new(disk), options)
    }

    /// Serves each queue that was kicked or has requests in flight once, in order. Returns whether to call
    /// again: a queue has more, or something is in flight. For [`Execution::Stepped`]; harmless beside a worker.
    pub fn step(&self) -> bool {
        let mut more = false;
        for vq in 0..self.nvqs() {
            more |= self.step_queue(vq, STEP_BUDGET);
        }
        more
    }

    /// As [`BlkSim::step`] for one queue, taking at most `budget` new requests (a compat device: as many as
    /// the kernel does in a pass, five).
    pub fn step_queue(&self, vq: u16, budget: usize) -> bool {
        let model = &*self.model;
        let notifier = &*self.notifier;
        notifier.poll_now(|vq| model.kick_vq(vq));
        if !notifier.take(vq) && !model.is_busy(vq) {
            return false;
        }
        match model.work(vq, budget) {
            Work::Idle => false,
            Work::InFlight | Work::Until(_) => true,
            Work::More => {
                notifier.signal(vq);
                true
            }
        }
    }

    /// Steps until nothing is left to do.
    pub fn run(&self) {
        while self.step() {}
    }

    /// Switches all faults of the plan on (the default) or off; the disk's delays and order stay.
    pub fn arm_faults(&self, on: bool) {
        self.model.faults().arm(on);
        if let Some(faulty) = &self.faulty {
            faulty.arm(on);
        }
    }

    /// Returns how many faults of each kind were injected.
    pub fn fault_counts(&self) -> FaultCounts {
        self.model.faults().counts()
    }

    fn alive(&self) -> Result<&dyn Model, VdpaError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(VdpaError::Gone);
        }
        Ok(&*self.model)
    }
}

/// New requests per queue and step.
const STEP_BUDGET: usize = 64;

/// Operations that a device which is gone refuses.
macro_rules! forward {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> Result<$answer, VdpaError> {
            self.alive()?.$name($($arg),*)
        })*
    };
}

/// Operations that return 0 or nothing once the device is gone.
macro_rules! forward_or_default {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> $answer {
            self.alive().map(|model| model.$name($($arg),*)).unwrap_or_default()
        })*
    };
}

impl VdpaDevice for BlkSim {
    forward! {
        set_vq_address(vq: u16, address: VqAddress) -> ();
        set_vq_num(vq: u16, num: u32) -> ();
        set_vq_kick(vq: u16, kick: Option<Arc<EventFd>>) -> ();
        set_vq_cb(vq: u16, callback: Option<Callback>) -> ();
        set_vq_ready(vq: u16, ready: bool) -> ();
        set_vq_state(vq: u16, state: VqState) -> ();
        get_vq_state(vq: u16) -> VqState;
        get_vendor_vq_stats(vq: u16) -> Vec<(String, u64)>;
        get_vq_group(vq: u16) -> u32;
        get_vq_desc_group(vq: u16) -> u32;
        get_vq_size(vq: u16) -> u16;
        set_driver_features(features: u64) -> ();
        set_config_cb(callback: Option<Callback>) -> ();
        set_status(status: u8) -> ();
        reset() -> ();
        compat_reset(clean_map: bool) -> ();
        suspend() -> ();
        resume() -> ();
        get_config(offset: usize, buf: &mut [u8]) -> ();
        set_config(offset: usize, buf: &[u8]) -> ();
        set_group_asid(group: u32, asid: u32) -> ();
        set_map(asid: u32, table: &IotlbTable) -> ();
        dma_map(asid: u32, mapping: IotlbMapping) -> ();
        dma_unmap(asid: u32, iova: u64, size: u64) -> ();
        reset_map(asid: u32) -> ();
        bind_mm(mm: Arc<dyn KeepAlive>) -> ();
    }

    forward_or_default! {
        nvqs() -> u16;
        ngroups() -> u32;
        nas() -> u32;
        use_va() -> bool;
        get_vq_ready(vq: u16) -> bool;
        get_vq_align() -> u32;
        get_vq_num_max() -> u16;
        get_vq_num_min() -> u16;
        get_device_features() -> u64;
        get_backend_features() -> u64;
        get_driver_features() -> u64;
        get_device_id() -> u32;
        get_vendor_id() -> u32;
        get_status() -> u8;
        get_config_size() -> usize;
        get_generation() -> u32;
        unbind_mm() -> ();
    }

    fn kick_vq(&self, vq: u16) {
        // After the end there is no engine that it could start.
        self.model.kick_vq(vq);
    }

    fn get_iova_range(&self) -> RangeInclusive<u64> {
        self.alive().map_or(0..=0, |model| model.get_iova_range())
    }

    fn free(&self) {
        self.gone.store(true, Ordering::Release);
        // Ends the thread before the model, so that no pass is under way.
        let worker = lock(&self.worker).take();
        drop(worker);
        self.model.free();
    }
}

impl Drop for BlkSim {
    fn drop(&mut self) {
        self.free();
    }
}

impl std::fmt::Debug for BlkSim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlkSim")
            .field("queues", &self.nvqs())
            .field("status", &self.get_status())
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

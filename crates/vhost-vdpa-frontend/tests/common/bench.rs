// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest with a device that a switch moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::{
    DataPath, Layers, PathState, PathSwitch, QueueExecutor, SwitchOptions, SwitchParts,
    ThreadExecutor, Vmm,
};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::{FaultDisk, FaultPlan};
use vm_memory::GuestMemoryAtomic;

use super::device::{Profile, TestDevice};
use super::flaky::Flaky;
use super::guest::{Gate, Guest, Memory, disk_bytes};

pub type Switch = PathSwitch<GuestMemoryAtomic<Memory>>;

/// A VMM that stops vCPUs, if it is able to.
#[derive(Default)]
pub struct Vcpus {
    pub able: AtomicBool,
    gate: Arc<Gate>,
    pub paused: AtomicU64,
}

impl Vmm for Vcpus {
    fn pause_vcpus(&self) -> bool {
        let able = self.able.load(Ordering::SeqCst);
        if able {
            self.gate.close();
            self.paused.fetch_add(1, Ordering::SeqCst);
        }
        able
    }

    fn resume_vcpus(&self) {
        self.gate.open();
    }
}

/// Requests in flight, on all queues together.
pub const IN_FLIGHT: u16 = 32;

/// What to make a [`Bench`] of.
#[derive(Default)]
pub struct Setup {
    pub profile: Profile,
    /// Of the medium.
    pub plan: Option<FaultPlan>,
    pub options: SwitchOptions,
    /// Features that the guest does not take.
    pub declined: u64,
    pub layers: Option<Layers>,
    /// A [`ThreadExecutor`], if not given.
    pub executor: Option<Box<dyn QueueExecutor<GuestMemoryAtomic<Memory>>>>,
    /// All of the device, if not given.
    pub guest_queues: Option<u16>,
}

pub struct Bench {
    pub switch: Arc<Switch>,
    pub medium: Arc<MemoryDisk>,
    pub device: Arc<Flaky>,
    pub memory: GuestMemoryAtomic<Memory>,
    pub guest: Guest,
    pub vcpus: Arc<Vcpus>,
    declined: u64,
}

pub fn bench(setup: Setup) -> Bench {
    let queues = setup.guest_queues.unwrap_or(setup.profile.queues);
    let depth = IN_FLIGHT / queues;
    let medium = Arc::new(MemoryDisk::new(disk_bytes(queues, depth)).unwrap());
    let disk: Arc<dyn Disk> = match setup.plan {
        Some(plan) => Arc::new(FaultDisk::new(medium.clone(), plan)),
        None => medium.clone(),
    };
    let device = Flaky::new(TestDevice::new(disk, setup.profile));
    let features = device.get_device_features() & !setup.declined;
    let guest = Guest::new(queues, depth, features);
    let vcpus = Arc::new(Vcpus {
        gate: guest.gate.clone(),
        ..Vcpus::default()
    });
    let memory = GuestMemoryAtomic::from(guest.memory.clone());
    let parts = SwitchParts {
        device: device.clone(),
        memory: memory.clone(),
        executor: (setup.executor).unwrap_or_else(|| Box::new(ThreadExecutor::new(Duration::ZERO))),
        vmm: vcpus.clone(),
        layers: setup.layers,
    };
    let bench = Bench {
        switch: Arc::new(Switch::new(parts, setup.options).unwrap()),
        medium,
        device,
        memory,
        guest,
        vcpus,
        declined: setup.declined,
    };
    bench.load_driver();
    bench.device.window.store(1 << 46, Ordering::SeqCst);
    bench
}

impl Bench {
    /// What a driver does at start.
    pub fn load_driver(&self) {
        let switch = &self.switch;
        switch.set_status(0).unwrap();
        switch.set_status(1).unwrap();
        switch.set_status(3).unwrap();
        let features = switch.offered() & !self.declined;
        assert_eq!(features & feature::ACCESS_PLATFORM, 0);
        switch.set_features(features).unwrap();
        switch.set_status(11).unwrap();
        assert_eq!(switch.status(), 11);
        for (index, queue) in (0..).zip(&self.guest.queues) {
            switch.set_queue(index, queue.setup()).unwrap();
        }
        switch.set_status(15).unwrap();
    }

    /// A driver that is loaded again, after whatever happened.
    pub fn load_again(&mut self) {
        for queue in &mut self.guest.queues {
            queue.reset();
        }
        self.load_driver();
    }

    /// Runs the guest on threads while `work` is done.
    pub fn run<R>(&mut self, work: impl FnOnce(&Switch, &Flaky, &AtomicU64) -> R) -> (R, u64) {
        let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
        let (switch, device) = (self.switch.clone(), self.device.clone());
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .guest
                .queues
                .iter_mut()
                .map(|queue| scope.spawn(|| queue.run(&stop, &total)))
                .collect();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(&switch, &device, &total)
            }));
            stop.store(true, Ordering::SeqCst);
            let answered = threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum();
            match result {
                Ok(result) => (result, answered),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Whether the shadow window was in reach of the guest's rings.
    pub fn breached(&self) -> bool {
        self.device.breach.load(Ordering::SeqCst)
    }
}

/// Waits until the guest has seen some requests complete: the path works.
pub fn progress(total: &AtomicU64) {
    advances(|| total.load(Ordering::SeqCst));
}

/// Waits until `count` is 50 higher. After a move the guest's first completions may be those that
/// the other path gave, so who looks at one path counts there.
pub fn advances(count: impl Fn() -> u64) {
    let goal = count() + 50;
    let deadline = Instant::now() + Duration::from_secs(30);
    while count() < goal {
        assert!(Instant::now() < deadline, "the guest makes no progress");
        std::thread::yield_now();
    }
}

pub fn other(path: impl Into<PathState>) -> DataPath {
    match path.into() {
        PathState::Fast => DataPath::Slow,
        PathState::Slow => DataPath::Fast,
        other => panic!("{other:?}"),
    }
}

/// A medium that takes its time and completes in any order.
pub fn delays() -> FaultPlan {
    FaultPlan::new(11).delay_reaps(0..=6).reorder()
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that is moved between the fast path and the slow one, and resists, on a device whose calls fail.
//!
//! Each call returns in a bounded time. While somebody needs to see requests, none goes into the device. A guest that does
//! nothing hostile has each request completed once, whatever fails meanwhile, once the device is well again, unless its
//! device asks for a reset; and a guest that resets its device and behaves is served.

#[allow(clippy::unwrap_used, dead_code, missing_docs)]
#[path = "../../../crates/vhost-vdpa-frontend/tests/common/device.rs"]
mod device;
#[allow(clippy::unwrap_used, dead_code, missing_docs)]
#[path = "../../../crates/vhost-vdpa-frontend/tests/common/flaky.rs"]
mod flaky;
mod input;
pub mod seeds;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use device::{Profile, TestDevice};
use flaky::Flaky;
pub use input::{Input, Shape, Step};
use sim_backend::Faults;
use vdpa_bus::{Callback, VqAddress};
use vhost_vdpa_frontend::{
    DataPath, GuestQueue, Interception, PathState, PathSwitch, SwitchOptions, SwitchParts,
    SwitchPolicy, ThreadExecutor, Vmm,
};
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::drivers::{self, Drivers, Memory};
use crate::threads;

/// Steps, at most.
const STEPS: usize = 30;
const QUEUES: u16 = 2;
const SECTORS: u64 = 64;
/// How long a call may take, and what must happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the queues lie.
const AT: u64 = 0x1_0000;
/// Bits that a device sets which can't work any more.
const NEEDS_RESET: u8 = 64;

type Switch = PathSwitch<GuestMemoryAtomic<Memory>>;

/// The thread that runs the guest calls the switch: its vCPUs never run meanwhile.
struct Vcpus(AtomicBool);

impl Vmm for Vcpus {
    fn pause_vcpus(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A guest, its device and its VMM.
struct World {
    device: Arc<Flaky>,
    switch: Switch,
    memory: Arc<Memory>,
    drivers: Drivers,
    events: Vec<(Arc<EventFd>, Arc<EventFd>)>,
    needs: Vec<Interception>,
    /// The driver is loaded, and did nothing hostile since.
    loaded: bool,
    behaves: bool,
}

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("descriptors"))
}

/// Does something that must not take long.
fn timed<T>(what: &dyn std::fmt::Debug, act: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = act();
    let took = begun.elapsed();
    assert!(took < PATIENCE, "{what:?} took {took:?}");
    result
}

impl World {
    fn new(input: &Input) -> Self {
        let shape = &input.device;
        let queues = if shape.compat { 1 } else { QUEUES };
        let features = match shape.event_idx {
            true => u64::MAX,
            false => !feature::RING_EVENT_IDX,
        };
        let profile = Profile {
            queues,
            suspend: shape.suspend,
            resume: shape.resume,
            midway: shape.midway,
            features,
            compat: shape.compat,
            single_maps: shape.single_maps,
            faults: Faults::new(7).suspend_undrained(u32::from(shape.undrained) * 4),
            ..Profile::default()
        };
        let medium = MemoryDisk::new(SECTORS * 512).expect("memory");
        let device = Flaky::new(TestDevice::new(Arc::new(medium), profile));
        let len = AT + drivers::PART * u64::from(queues);
        let ranges = [(GuestAddress(0), len.next_multiple_of(1 << 16) as usize)];
        let memory = Arc::new(Memory::from_ranges(&ranges).expect("memory"));
        let parts = SwitchParts {
            device: device.clone(),
            memory: GuestMemoryAtomic::from(memory.clone()),
            executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
            vmm: Arc::new(Vcpus(AtomicBool::new(shape.pauses))),
            layers: None,
        };
        let options = SwitchOptions {
            policy: match input.auto {
                true => SwitchPolicy::Auto,
                false => SwitchPolicy::Manual,
            },
            quiesce_timeout: Duration::from_millis(20),
            settle_time: Duration::from_micros(200),
            drain_timeout: Duration::from_millis(500),
            enforce: input.enforce,
            ..SwitchOptions::default()
        };
        let switch = Switch::new(parts, options).expect("a device that works");
        // The kernel's simulator has a capacity of its own.
        let mut capacity = [0; 8];
        switch.read_config(0, &mut capacity).expect("a capacity");
        Self {
            drivers: Drivers::new(memory.clone(), queues.into(), u64::from_le_bytes(capacity)),
            events: (0..queues).map(|_| (event(), event())).collect(),
            device,
            switch,
            memory,
            needs: Vec::new(),
            loaded: false,
            behaves: false,
        }
    }

    /// What a driver does at its start. Returns whether the device took it.
    fn load(&mut self, nowhere: bool) -> bool {
        self.drivers.forget_all();
        (self.loaded, self.behaves) = (false, false);
        let switch = &self.switch;
        let say = |byte| switch.set_status(byte).is_ok();
        if ![0, 1, 3].into_iter().all(say) {
            return false;
        }
        let features = switch.offered();
        if switch.set_features(features).is_err() || !say(11) || switch.status() != 11 {
            return false;
        }
        let has = |bit| features & bit != 0;
        let rings = (
            has(feature::RING_EVENT_IDX),
            has(feature::RING_INDIRECT_DESC),
        );
        for (index, (kick, call)) in self.events.iter().enumerate() {
            let at = GuestAddress(AT + drivers::PART * index as u64);
            let state = self.drivers.set_up(index, at, 0, rings);
            let away = if nowhere && index + 1 == self.events.len() {
                1 << 40
            } else {
                0
            };
            let queue = GuestQueue {
                size: state.size,
                address: VqAddress {
                    desc: state.desc_table + away,
                    driver: state.avail_ring + away,
                    device: state.used_ring + away,
                },
                kick: kick.clone(),
                call: Callback::Trigger(call.clone()),
            };
            if switch.set_queue(index as u16, queue).is_err() {
                return false;
            }
        }
        self.loaded = say(15);
        self.behaves = self.loaded && !nowhere;
        self.loaded
    }

    fn take_step(&mut self, step: &Step) {
        let queue = |index: &u8| usize::from(*index) % self.events.len();
        match step {
            Step::Load { nowhere } => {
                self.load(*nowhere);
            }
            Step::Status { byte } => {
                if *byte == 0 {
                    self.drivers.forget_all();
                }
                self.behaves = false;
                let _ = self.switch.set_status(*byte);
            }
            Step::Config { at, value } => {
                let mut byte = [0];
                let _ = self.switch.read_config((*at).into(), &mut byte);
                let _ = self.switch.write_config((*at).into(), &[*value]);
            }
            Step::Request {
                index,
                kind,
                sector,
            } => {
                let index = queue(index);
                let kinds = [0, 1, 4, 8];
                let kind = kinds[usize::from(*kind) % kinds.len()];
                let sector = u64::from(*sector) % SECTORS;
                if self.drivers.request(index, kind, sector, self.behaves) {
                    self.kick(index);
                }
            }
            Step::Poll => self.drivers.poll(self.behaves),
            Step::Jump { index, by } => {
                self.behaves = false;
                let at = AT + drivers::PART * queue(index) as u64;
                // The available index lies behind the descriptors.
                let at = GuestAddress(at + 16 * u64::from(drivers::QUEUE_SIZE) + 2);
                let index: u16 = self.memory.read_obj(at).expect("memory");
                self.memory
                    .write_obj(index.wrapping_add(*by), at)
                    .expect("memory");
            }
            Step::Poke { at, value } => {
                self.behaves = false;
                let len = drivers::PART * self.events.len() as u64;
                let at = GuestAddress(AT + 8 * u64::from(*at) % len);
                self.memory.write_obj(*value, at).expect("memory");
            }
            Step::Kick { index } => self.kick(queue(index)),
            Step::Switch { slow } => {
                let path = if *slow {
                    DataPath::Slow
                } else {
                    DataPath::Fast
                };
                if let Err(error) = self.switch.switch_to(path) {
                    assert_eq!(error.path, self.switch.path());
                }
            }
            Step::Intercept => {
                if let Ok(need) = self.switch.intercept("fuzz") {
                    self.needs.push(need);
                }
            }
            Step::Release => {
                self.needs.pop();
                let _ = self.switch.apply_policy();
            }
            Step::Pause => {
                let _ = self.switch.pause();
            }
            Step::Resume => {
                let _ = self.switch.resume();
            }
            Step::Retry => {
                let _ = self.switch.retry();
            }
            Step::Memory => {
                let _ = self.switch.sync_memory();
            }
            Step::Fail { after, count } => self.device.fail((*after).into(), (*count).into()),
            Step::Heal => self.heal(),
            Step::Stuck => self.device.undrained.store(i64::MAX, Ordering::Relaxed),
            Step::Deaf => self.device.deaf.store(true, Ordering::Relaxed),
        }
    }

    fn kick(&self, index: usize) {
        // A full counter is a kick as well.
        let _ = self.events[index].0.write(1);
    }

    fn heal(&self) {
        self.device.heal();
        self.device.undrained.store(0, Ordering::Relaxed);
        self.device.deaf.store(false, Ordering::Relaxed);
    }

    /// Waits until nothing is in flight. Kicks again now and then: the kernel's simulator loses kicks around a SUSPEND.
    fn finish(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.drivers.in_flight() != 0 {
            self.drivers.poll(self.behaves);
            assert!(
                Instant::now() < deadline,
                "{what}: {} requests never complete on {:?}",
                self.drivers.in_flight(),
                self.switch
            );
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// What is in flight completes once the device is well, if the guest did nothing hostile.
    fn settle(&mut self) {
        let _ = self.switch.resume();
        if self.switch.path() == PathState::Failed && self.switch.retry().is_err() {
            // Only a reset helps, and the guest is told.
            assert_ne!(self.switch.status() & NEEDS_RESET, 0);
            return;
        }
        if self.loaded && self.behaves && self.switch.status() & NEEDS_RESET == 0 {
            self.finish("a guest that behaves");
        }
    }

    /// A guest that resets its device and behaves is served, on both paths.
    fn assert_serves(&mut self) {
        assert!(
            self.load(false),
            "a good driver is refused: {:?}",
            self.switch
        );
        self.drivers.forget_content();
        for path in [DataPath::Slow, DataPath::Fast] {
            if let Err(error) = self.switch.switch_to(path) {
                assert_eq!(error.path, self.switch.path());
                assert_ne!(error.path, PathState::Failed, "{error}");
            }
            for kind in [1, 0] {
                for index in 0..self.events.len() {
                    if self.drivers.request(index, kind, 8 + index as u64, true) {
                        self.kick(index);
                    }
                }
                self.finish("a good guest");
            }
        }
    }
}

/// Runs an input.
///
/// # Panics
/// The switch did what it must not.
pub fn run(input: &Input) {
    let mut world = World::new(input);
    for step in input.steps.iter().take(STEPS) {
        timed(step, || world.take_step(step));
        // Not by a resume, a retry, a reset or a move, either.
        assert!(
            !input.auto || world.needs.is_empty() || world.switch.path() != PathState::Fast,
            "requests go by unseen after {step:?}"
        );
    }
    world.heal();
    world.settle();
    world.needs.clear();
    world.assert_serves();
}

/// Runs an input where nothing else runs: no thread stays, either.
///
/// # Panics
/// As for [`run`].
pub fn run_alone(input: &Input) {
    threads::outlive(|| run(input));
}

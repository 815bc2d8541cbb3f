// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole device, and a driver that follows the rules of the ring and asks for anything.
//!
//! A script of what a driver, a transport and a disk may do runs against a device on a memory disk with
//! faults. A model says what each completion may be: status, used length, data. Overlapping requests in
//! flight may take effect in any order; everything else is exact, and all of it is the same for the
//! same input.

mod config_space;
mod input;
mod model;
mod queue;
mod relocate;
pub(crate) mod seeds;
mod spy;

use std::collections::BTreeMap;
use std::ops::ControlFlow::{self, Continue};
use std::sync::Arc;

use malformed_queues::testmem::Space;
use virtio_blk_core::device::{Device, DeviceOptions, SavedQueue};
use virtio_blk_core::disk::{Disk, Lifetime};
use virtio_blk_core::runner::{QueueSetup, Service, Stop};
use virtio_blk_core::spec::{config, feature};
use virtio_blk_disks::fault::{Kind as FaultKind, Rule};
use virtio_blk_disks::{FaultDisk, FaultPlan, MemoryDisk};
use vm_memory::GuestMemory;

use crate::image::{Image, OnMemory, with_memory};
pub use input::*;
use model::{Asked, Model, Rules};
use queue::Queue;
use spy::{Spy, Stability};

/// Pages of memory.
const PAGES: usize = 40;
/// Most steps that are taken.
const MAX_STEPS: usize = 160;
const SERIAL: &str = "fuzzed";
const WEAR: Lifetime = Lifetime {
    pre_eol_info: 1,
    device_lifetime_est_typ_a: 2,
    device_lifetime_est_typ_b: 11,
};

/// Does with a device what the input says.
///
/// # Panics
/// The device broke a rule.
pub fn run(input: &Input) {
    with_memory(&input.memory, PAGES, Run(input));
}

struct Run<'a>(&'a Input);

impl OnMemory for Run<'_> {
    fn call<M: GuestMemory + Send + Sync + 'static>(self, image: &Image<M>, space: Space) {
        let mut world = World::new(&self.0.setup, image, space);
        for step in self.0.steps.iter().take(MAX_STEPS) {
            if world.step(step).is_break() {
                return;
            }
            world.check();
        }
        world.finish();
    }
}

struct World<M: GuestMemory + Send + Sync + 'static> {
    mem: Arc<M>,
    spy: Arc<Spy>,
    faults: Option<Arc<FaultDisk>>,
    disk: Arc<dyn Disk>,
    options: DeviceOptions,
    device: Arc<Device>,
    queues: Vec<Queue<M>>,
    model: Model,
    /// By queue and token.
    open: BTreeMap<(usize, virtio_blk_driver::request::Token), Asked>,
    /// Faults may happen now.
    armed: bool,
    /// Some queue may break.
    breaks: bool,
    /// The cache mode, while it can be switched.
    writeback: bool,
    requests: u64,
}

fn plan(faults: &Faults) -> FaultPlan {
    let mut plan = FaultPlan::new(faults.seed.into()).poll();
    for fault in &faults.rules {
        let mut rule = if fault.unsupported {
            Rule::unsupported()
        } else {
            Rule::errno(5)
        };
        let kinds = [
            FaultKind::Read,
            FaultKind::Write,
            FaultKind::Flush,
            FaultKind::Discard,
            FaultKind::WriteZeroes,
            FaultKind::SecureErase,
        ];
        if let Some(kind) = kinds.get(usize::from(fault.kind)) {
            rule = rule.kind(*kind);
        }
        if fault.after_effect {
            rule = rule.after_effect();
        }
        plan = plan.rule(rule.per_mille(u32::from(fault.rate) * 4));
    }
    if !faults.delay.is_multiple_of(6) {
        plan = plan.delay_reaps(0..=u64::from(faults.delay % 6));
    }
    if faults.reorder {
        plan = plan.reorder();
    }
    if faults.break_after != 0 {
        plan = plan.break_after(faults.break_after.into());
    }
    plan.full_per_mille(faults.full.into())
}

impl<M: GuestMemory + Send + Sync + 'static> World<M> {
    fn new(setup: &Setup, image: &Image<M>, mut space: Space) -> Self {
        let flag = |bit: u8| setup.flags >> bit & 1 != 0;
        let block = 512_u32 << (setup.block % 4);
        let per_block = u64::from(block) / 512;
        let sectors = u64::from(setup.sectors) / per_block * per_block;
        let mut disk = MemoryDisk::new(sectors * 512)
            .and_then(|disk| disk.with_block_size(block))
            .unwrap();
        if flag(3) {
            disk = disk.with_lifetime(WEAR).unwrap();
        }
        if flag(0) {
            disk = disk.read_only().unwrap();
        }
        let spy = Arc::new(Spy::new(disk, !flag(4)));
        let (mut disk, mut fault_disk): (Arc<dyn Disk>, _) = (spy.clone(), None);
        let faults = &setup.faults;
        if !faults.none {
            let inner: Arc<dyn Disk> = spy.clone();
            let faulty: Arc<FaultDisk> = Arc::new(FaultDisk::new(inner, plan(faults)));
            fault_disk = Some(faulty.clone());
            disk = faulty;
        }
        let options = DeviceOptions {
            queues: u16::from(setup.queues % 2) + 1,
            queue_size: 4 << (setup.exponent % 4),
            seg_max: None,
            serial: SERIAL.into(),
            read_only: flag(1),
            config_wce: !flag(2),
            transport_features: 0,
            masked_features: setup.masked,
        };
        let device = Device::new(disk.clone(), options.clone()).unwrap();
        let queues = (0..options.queues)
            .map(|_| {
                Queue::new(
                    image.mem.clone(),
                    &mut space,
                    options.queue_size,
                    setup.start,
                )
            })
            .collect();
        let mut serial = SERIAL.as_bytes().to_vec();
        serial.resize(20, 0);
        let rules = Rules {
            capacity: sectors,
            block: block.into(),
            read_only: flag(0) || flag(1),
            features: 0,
            serial,
            lifetime: WEAR.to_bytes(),
        };
        let mut world = Self {
            mem: image.mem.clone(),
            spy,
            armed: fault_disk.is_some() && (!faults.rules.is_empty() || faults.break_after != 0),
            breaks: fault_disk.is_some() && faults.break_after != 0,
            faults: fault_disk,
            disk,
            options,
            device,
            queues,
            model: Model::new(rules),
            open: BTreeMap::new(),
            writeback: true,
            requests: 0,
        };
        world.negotiate(world.device.offered() & !setup.declined);
        world
    }

    fn pick(&self, queue: u8) -> usize {
        usize::from(queue) % self.queues.len()
    }

    fn step(&mut self, step: &Step) -> ControlFlow<()> {
        match step {
            Step::Submit { queue, request } => self.submit(self.pick(*queue), request),
            Step::Publish { queue } => {
                let index = self.pick(*queue);
                self.queues[index].publish();
            }
            Step::Service { queue, budget } => self.service(self.pick(*queue), (*budget).into()),
            Step::Poll { queue } => self.poll(self.pick(*queue)),
            Step::Settle => self.settle(),
            Step::Interrupts { queue, after } => {
                let index = self.pick(*queue);
                self.queues[index].interrupts((*after).into());
            }
            Step::ReadConfig { offset, width } => self.read_config(*offset, (*width).into()),
            Step::WriteConfig { offset, bytes } => self.write_config(*offset, bytes),
            Step::CacheMode { mode } => {
                self.write_config(config::WRITEBACK_OFFSET as u64, &[*mode]);
            }
            Step::Resize { sectors } => self.resize((*sectors).into()),
            Step::Negotiate {
                declined,
                extra,
                hand_over,
            } => {
                for index in 0..self.queues.len() {
                    self.stop(index, *hand_over);
                }
                self.open.clear();
                self.device.reset();
                self.negotiate(self.device.offered() & !declined | extra);
            }
            Step::Restart { queue, hand_over } => {
                let index = self.pick(*queue);
                let saved = self.stop(index, *hand_over);
                self.start(index, &saved);
            }
            Step::Move { hand_over, changes } => return self.relocate(*hand_over, changes),
            Step::Arm { on } => self.arm(*on),
            Step::Remap { queue } => {
                let index = self.pick(*queue);
                self.queues[index].runner().remap().unwrap();
            }
            Step::Intake { queue, open } => {
                let index = self.pick(*queue);
                self.queues[index].intake(*open);
            }
        }
        Continue(())
    }

    /// What must hold at any time.
    fn check(&mut self) {
        let busy = self.queues.iter().any(|queue| queue.in_flight() != 0);
        if !busy {
            self.spy.expect(self.stability());
        }
        assert_eq!(self.device.capacity(), self.model.rules.capacity);
        for queue in &mut self.queues {
            queue.check();
        }
    }

    /// How writes that begin now are to be.
    fn stability(&self) -> Stability {
        let has = |bit| self.model.rules.features & bit != 0;
        let cached = if has(feature::CONFIG_WCE) {
            self.writeback
        } else {
            has(feature::FLUSH)
        };
        if cached {
            Stability::Cached
        } else {
            Stability::Stable
        }
    }

    fn arm(&mut self, on: bool) {
        let Some(faults) = &self.faults else { return };
        faults.arm(on);
        self.armed = on;
        if on {
            self.open.values_mut().for_each(|asked| asked.faulty = true);
        }
    }

    /// A driver that asks for these features, and if it may not, for what it must have.
    fn negotiate(&mut self, features: u64) {
        let offered = self.device.offered();
        let allowed = features & !offered == 0 && features & feature::VERSION_1 != 0;
        let accepted = self.device.accept(features);
        assert_eq!(accepted.is_ok(), allowed, "{features:#x} of {offered:#x}");
        let features = if allowed {
            features
        } else {
            feature::VERSION_1
        };
        if !allowed {
            assert_eq!(self.device.accepted(), 0);
            self.device.accept(features).unwrap();
        }
        assert_eq!(self.device.accepted(), features);
        self.model.rules.features = features;
        let has = |bit| features & bit != 0;
        self.writeback =
            offered & feature::FLUSH != 0 && (has(feature::FLUSH) || !has(feature::CONFIG_WCE));
        self.spy.expect(self.stability());
        for index in 0..self.queues.len() {
            let state = self.queues[index].reset(features);
            self.start(index, &SavedQueue::new(&state, Vec::new()));
        }
    }

    fn start(&mut self, index: usize, saved: &SavedQueue) {
        let queue = &mut self.queues[index];
        let mut setup = QueueSetup::new(self.mem.clone(), queue.notifier());
        setup.replay.clone_from(&saved.in_flight);
        let runner = self
            .device
            .start_queue(index as u16, setup, saved.state)
            .unwrap();
        queue.started(runner);
    }

    fn stop(&mut self, index: usize, hand_over: bool) -> SavedQueue {
        let mode = if hand_over {
            Stop::HandOver
        } else {
            Stop::Drain
        };
        let stopped = self.queues[index].stop(mode);
        assert!(stopped.error.is_none() || self.breaks, "{stopped:?}");
        let state = &stopped.state;
        let taken = usize::from(state.next_avail.wrapping_sub(state.next_used));
        assert_eq!(taken, stopped.in_flight.len(), "{stopped:?}");
        if mode == Stop::Drain && stopped.error.is_none() {
            assert_eq!(taken, 0);
        }
        SavedQueue::new(state, stopped.in_flight)
    }

    fn service(&mut self, index: usize, budget: usize) {
        let answer = self.queues[index].service(budget);
        if answer == Service::Fatal {
            assert!(self.breaks, "{:?}", self.queues[index].runner().error());
            let saved = self.stop(index, true);
            self.start(index, &saved);
        }
    }

    fn submit(&mut self, index: usize, request: &Request) {
        self.requests += 1;
        let made = queue::Made::new(request, self.requests, &self.model.rules);
        let queue = &mut self.queues[index];
        let Some(token) = queue.submit(&made) else {
            return;
        };
        let (readable, writable) = made.streams();
        let mut asked = Asked::new(readable, writable, self.armed);
        self.model.submit(&mut asked, self.open.values_mut());
        let twice = self.open.insert((index, token), asked);
        assert!(twice.is_none());
    }

    fn poll(&mut self, index: usize) {
        while let Some((done, data)) = self.queues[index].poll() {
            let asked = self.open.remove(&(index, done.token)).unwrap();
            let rules = &self.model.rules;
            let answers = asked.answers(rules, self.breaks);
            if asked.writable == 0 {
                assert_eq!(done.len, 0);
                continue;
            }
            // The last writable byte, wherever it is.
            let (data, status) = data.split_at(data.len() - 1);
            let answer = (status[0], done.len);
            assert!(
                answers.contains(&answer),
                "{asked:?}: answered {answer:?}, may be {answers:?}"
            );
            let lost = self.breaks && done.len < asked.writable;
            if !lost {
                self.check_data(&asked, status[0], data);
            }
            self.model.complete(&asked, status[0], data);
        }
    }

    fn check_data(&self, asked: &Asked, status: u8, data: &[u8]) {
        use virtio_blk_driver::wire::{S_OK, T_GET_ID, T_GET_LIFETIME, T_IN};
        let rules = &self.model.rules;
        let known: &[u8] = match asked.kind() {
            Some(T_IN) if status != S_OK => {
                assert!(data.iter().all(|byte| *byte == 0), "data of a failed read");
                return;
            }
            Some(T_IN) => return,
            Some(T_GET_ID) => &rules.serial,
            Some(T_GET_LIFETIME) if status == S_OK => &rules.lifetime,
            _ => &[],
        };
        for (index, byte) in data.iter().enumerate() {
            let wanted = known.get(index).unwrap_or(&queue::UNTOUCHED);
            assert_eq!(byte, wanted, "byte {index} of {asked:?}");
        }
    }

    /// Lets everything that is under way come to an end.
    fn settle(&mut self) {
        for round in 0.. {
            for index in 0..self.queues.len() {
                self.queues[index].intake(true);
                self.queues[index].publish();
                self.service(index, 64);
                self.poll(index);
            }
            if self.open.is_empty() {
                break;
            }
            assert!(round < 2000, "no end: {:?}", self.open);
        }
    }

    /// The end of a script: all comes back, and the disk holds what it should.
    fn finish(mut self) {
        self.arm(false);
        self.settle();
        self.breaks = false;
        let rules = &self.model.rules;
        let per_block = (rules.block / 512) as u8;
        for sector in (0..rules.capacity as u8).step_by(per_block.into()) {
            let request = Request::read(sector, per_block);
            self.submit(0, &request);
            self.settle();
        }
        for index in 0..self.queues.len() {
            self.queues[index].audit();
            self.stop(index, false);
            let counters = self.device.counters(index as u16).unwrap();
            assert_eq!(counters.spurious_completions.get(), 0);
        }
    }
}

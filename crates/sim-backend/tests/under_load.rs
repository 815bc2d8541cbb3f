// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the control side does while requests are in flight: nothing is lost, repeated, or touched that is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;

use common::{MEMORY, Memory, Rig, mapping, memory};
use sim_backend::{BlkSim, Faults, SimOptions, SimProfile};
use vdpa_bus::VdpaDevice;
use virtio_blk_core::disk::Disk;
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::FaultPlan;
use virtio_blk_driver::request::{In, Request, Token};
use virtio_blk_driver::{Segment, wire};
use vm_memory::{Bytes, GuestAddress};

/// Suspends and resumes.
const SUSPENDS: u64 = 10_000;

/// A load on each queue: places are written with a number that grows, and read back.
struct Load {
    queues: Vec<Places>,
    answers: u64,
}

struct Places {
    vq: u16,
    written: [u8; 8],
    flying: HashMap<Token, (usize, bool)>,
    busy: [bool; 8],
}

impl Load {
    fn new(queues: u16) -> Self {
        let queues = (0..queues).map(|vq| Places {
            vq,
            written: [0; 8],
            flying: HashMap::new(),
            busy: [false; 8],
        });
        Self {
            queues: queues.collect(),
            answers: 0,
        }
    }

    /// Fills the queues and takes the completions that are there. Kicks only where the device asked for it.
    fn turn(&mut self, rig: &mut Rig, rng: &mut Rng) {
        for queue in &mut self.queues {
            for place in 0..8 {
                if queue.busy[place] {
                    continue;
                }
                let sector = u64::from(queue.vq) * 8 + place as u64;
                let write = rng.u64(..2) == 0;
                let token = if write {
                    queue.written[place] = queue.written[place].wrapping_add(1);
                    let data = [queue.written[place]; 512];
                    rig.queue(queue.vq).submit(&Request::write(sector, &data))
                } else {
                    rig.queue(queue.vq).submit(&Request::read(sector, 512))
                };
                queue.busy[place] = true;
                queue.flying.insert(token.unwrap(), (place, write));
            }
            rig.driver.publish(queue.vq).unwrap();
            self.answers += queue.collect(rig);
        }
    }

    /// Waits for everything in flight.
    fn finish(&mut self, rig: &mut Rig) {
        for queue in &mut self.queues {
            while !queue.flying.is_empty() {
                let done = rig.answer(queue.vq);
                queue.check(rig, done);
                self.answers += 1;
            }
        }
    }
}

impl Places {
    fn collect(&mut self, rig: &mut Rig) -> u64 {
        let mut answers = 0;
        while let Some(done) = rig.queue(self.vq).poll().unwrap() {
            self.check(rig, done);
            answers += 1;
        }
        answers
    }

    fn check(&mut self, rig: &mut Rig, done: virtio_blk_driver::request::Done) {
        let (place, write) = self.flying.remove(&done.token).expect("answered once");
        assert!(done.is_ok(), "{done:?}");
        self.busy[place] = false;
        if !write {
            let data = rig.data(self.vq, done.token, 512);
            assert!(data.iter().all(|byte| *byte == self.written[place]));
        }
    }
}

/// A disk whose completions come late and in another order.
fn late(options: SimOptions, seed: u64) -> SimOptions {
    options.faults(Faults::new(seed).disk(FaultPlan::new(seed).delay_reaps(0..=3).reorder()))
}

/// A ring's index in memory.
fn index(memory: &Memory, at: u64) -> u16 {
    memory.load(GuestAddress(at), Ordering::Acquire).unwrap()
}

/// Suspends and resumes with requests on their way to the worker. `kick`: the driver kicks after each resume.
fn suspends(options: SimOptions, queues: u16, kick: bool) {
    let mut rig = Rig::new(options, queues);
    let rings: Vec<_> = (0..queues)
        .map(|vq| rig.queue(vq).ring().layout().used().0 + 2)
        .collect();
    let (mut load, mut rng) = (Load::new(queues), Rng::with_seed(1));
    for round in 0..SUSPENDS {
        load.turn(&mut rig, &mut rng);
        for _ in 0..rng.u64(..2000) {
            std::hint::spin_loop();
        }
        rig.sim.suspend().unwrap();
        for (vq, used) in (0..).zip(&rings) {
            let used = index(&rig.memory, *used);
            assert_eq!(used, rig.state(vq), "nothing is in flight");
        }
        // These come while it is suspended.
        load.turn(&mut rig, &mut rng);
        rig.sim.resume().unwrap();
        for vq in (0..queues).filter(|_| kick) {
            rig.sim.kick_vq(vq);
        }
        // It continues, now and then looked at.
        let (before, patience) = (load.answers, Instant::now() + Duration::from_secs(60));
        while round % 4 == 0 && load.answers == before {
            load.turn(&mut rig, &mut rng);
            assert!(Instant::now() < patience, "it stands still");
            std::thread::yield_now();
        }
    }
    load.finish(&mut rig);
    assert!(load.answers >= SUSPENDS / 4, "{} answers", load.answers);
}

#[test]
fn suspend_and_resume_10000_times_strict() {
    suspends(SimOptions::strict_queues(2), 2, false);
}

#[test]
fn suspend_and_resume_10000_times_strict_with_a_late_disk() {
    suspends(late(SimOptions::strict_queues(2), 7), 2, false);
}

#[test]
fn suspend_and_resume_10000_times_compat_with_a_kick_after_each() {
    suspends(SimOptions::compat(), 1, true);
}

#[test]
fn every_queue_goes_on_after_a_resume_while_the_driver_never_stops() {
    let mut rig = Rig::new(SimOptions::strict_queues(2), 2);
    let (sim, memory) = (rig.sim.clone(), rig.memory.clone());
    let rings = [0, 1].map(|vq| rig.queue(vq).ring().layout().used().0 + 2);
    let control = std::thread::spawn(move || {
        for _ in 0..500 {
            sim.suspend().unwrap();
            let stood = rings.map(|used| index(&memory, used));
            sim.resume().unwrap();
            let patience = Instant::now() + Duration::from_secs(60);
            for (used, stood) in rings.into_iter().zip(stood) {
                while index(&memory, used) == stood {
                    assert!(Instant::now() < patience, "a queue stands still");
                    std::thread::yield_now();
                }
            }
        }
    });
    let (mut load, mut rng) = (Load::new(2), Rng::with_seed(1));
    while !control.is_finished() {
        load.turn(&mut rig, &mut rng);
    }
    control.join().unwrap();
    load.finish(&mut rig);
}

/// Stepped, at random moments; returns how often the device stood still until it was kicked.
fn stuck(options: SimOptions) -> u64 {
    let mut rig = Rig::new(options, 1);
    let mut rng = Rng::with_seed(3);
    let mut stuck = 0;
    for _ in 0..SUSPENDS {
        rig.send(0, &Request::flush());
        if rng.u64(..2) == 0 {
            rig.sim.step();
        }
        rig.sim.suspend().unwrap();
        rig.sim.run();
        rig.sim.resume().unwrap();
        rig.sim.run();
        if rig.queue(0).poll().unwrap().is_none() {
            stuck += 1;
            rig.sim.kick_vq(0);
            assert!(rig.answer(0).is_ok());
        }
    }
    stuck
}

#[test]
fn a_kick_is_needed_after_resume_in_compat_and_not_in_strict() {
    assert_eq!(stuck(SimOptions::strict().stepped()), 0);
    assert!(stuck(SimOptions::compat().stepped()) > SUSPENDS / 4);
}

/// Bytes of a window whose mapping changes; the rest of memory stays.
const WINDOW: usize = 1 << 20;
const WINDOW_AT: u64 = (MEMORY - WINDOW) as u64;

/// Fills the window in `memory`, and checks a while later that nobody wrote there.
fn watch_window(memory: &Memory, rng: &mut Rng) {
    let mark = 1 + rng.u64(..200) as u8;
    let at = GuestAddress(WINDOW_AT);
    memory.write_slice(&vec![mark; 64 << 10], at).unwrap();
    for _ in 0..3 {
        std::thread::yield_now();
    }
    let mut now = vec![0; 64 << 10];
    memory.read_slice(&mut now, at).unwrap();
    assert!(now.iter().all(|byte| *byte == mark), "it was written to");
}

/// Reads into the window while `change` runs on another thread. `fails`: some of them may.
fn reads_into_the_window(
    rig: &mut Rig,
    fails: bool,
    change: impl FnOnce(Arc<BlkSim>, Memory) + Send + 'static,
) {
    let (sim, memory) = (rig.sim.clone(), rig.memory.clone());
    let control = std::thread::spawn(move || change(sim, memory));
    let mut answers = [0u64; 2];
    let mut flying = 0;
    let mut rng = Rng::with_seed(9);
    while !control.is_finished() || flying != 0 {
        while flying < 8 && !control.is_finished() {
            let at = WINDOW_AT + rng.u64(..16) * 4096;
            let segments = [Segment::new(GuestAddress(at), 4096)];
            let read = Request::read(0, 0).with_input(In::Segments(&segments));
            rig.queue(0).submit(&read).unwrap();
            flying += 1;
        }
        rig.driver.publish(0).unwrap();
        while let Some(done) = rig.queue(0).poll().unwrap() {
            assert!(
                done.is_ok() || fails && done.status == wire::S_IOERR,
                "{done:?}"
            );
            answers[usize::from(done.is_ok())] += 1;
            flying -= 1;
        }
        std::thread::yield_now();
    }
    control.join().unwrap();
    assert!(answers[1] > 0, "{answers:?}");
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::new(128 << 20).unwrap())
}

#[test]
fn map_and_unmap_under_io() {
    for options in [SimOptions::strict(), late(SimOptions::strict(), 5)] {
        let mut rig = Rig::over(disk(), options, 1);
        reads_into_the_window(&mut rig, true, |sim, memory| {
            let mut rng = Rng::with_seed(4);
            let low = mapping(&memory, 0, 0, MEMORY - WINDOW);
            let window = mapping(&memory, WINDOW_AT, MEMORY - WINDOW, WINDOW);
            let mut without = IotlbTable::new();
            without.insert(low).unwrap();
            for round in 0..400 {
                if round % 2 == 0 {
                    sim.set_map(0, &without).unwrap();
                } else {
                    sim.dma_unmap(0, WINDOW_AT, 1).unwrap();
                }
                watch_window(&memory, &mut rng);
                sim.dma_map(0, window.clone()).unwrap();
                std::thread::sleep(Duration::from_micros(50));
            }
        });
    }
}

#[test]
fn an_unmapped_range_is_let_go_of() {
    let mut rig = Rig::over(disk(), late(SimOptions::strict(), 6), 1);
    let other = memory();
    let iova = 1 << 40;
    for _ in 0..50 {
        rig.sim
            .dma_map(0, mapping(&other, iova, 0, WINDOW))
            .unwrap();
        let segments = [Segment::new(GuestAddress(iova), 4096)];
        let read = Request::read(0, 0).with_input(In::Segments(&segments));
        for _ in 0..8 {
            rig.queue(0).submit(&read).unwrap();
        }
        rig.driver.publish(0).unwrap();
        rig.sim.dma_unmap(0, iova, 1).unwrap();
        assert_eq!(Arc::strong_count(&other), 1, "nothing holds it any more");
        for _ in 0..8 {
            rig.answer(0);
        }
    }
}

#[test]
fn set_map_under_io_compat() {
    let mut rig = Rig::over(disk(), SimOptions::compat(), 1);
    // With the buffers the ring stays mapped; buffers that are not are answered.
    reads_into_the_window(&mut rig, true, |sim, memory| {
        let mut rng = Rng::with_seed(4);
        let mut without = IotlbTable::new();
        without
            .insert(mapping(&memory, 0, 0, MEMORY - WINDOW))
            .unwrap();
        let all = common::table(&memory);
        for _ in 0..400 {
            sim.set_map(0, &without).unwrap();
            watch_window(&memory, &mut rng);
            sim.set_map(0, &all).unwrap();
            std::thread::sleep(Duration::from_micros(50));
        }
    });
}

#[test]
fn asid_switches_under_io() {
    for late_disk in [false, true] {
        let mut options = SimOptions::strict();
        if let SimProfile::Strict(strict) = &mut options.profile {
            strict.address_spaces = 2;
        }
        if late_disk {
            options = late(options, 8);
        }
        let mut rig = Rig::over(disk(), options, 1);
        reads_into_the_window(&mut rig, false, |sim, memory| {
            let mut rng = Rng::with_seed(4);
            let elsewhere = common::memory();
            let mut second = IotlbTable::new();
            second
                .insert(mapping(&memory, 0, 0, MEMORY - WINDOW))
                .unwrap();
            second
                .insert(mapping(&elsewhere, WINDOW_AT, MEMORY - WINDOW, WINDOW))
                .unwrap();
            sim.set_map(1, &second).unwrap();
            for _ in 0..300 {
                sim.set_group_asid(0, 1).unwrap();
                watch_window(&memory, &mut rng);
                sim.set_group_asid(0, 0).unwrap();
                watch_window(&elsewhere, &mut rng);
            }
        });
    }
}

#[test]
fn reset_with_io_in_flight() {
    for options in [
        SimOptions::strict(),
        late(SimOptions::strict(), 2),
        SimOptions::compat(),
    ] {
        let mut rig = Rig::over(disk(), options, 1);
        let mut rng = Rng::with_seed(5);
        for _ in 0..200 {
            let segments = [Segment::new(GuestAddress(WINDOW_AT), 64 << 10)];
            let read = Request::read(0, 0).with_input(In::Segments(&segments));
            for _ in 0..8 {
                rig.queue(0).submit(&read).unwrap();
            }
            rig.driver.publish(0).unwrap();
            for _ in 0..rng.u64(..4) {
                std::thread::yield_now();
            }
            rig.sim.reset().unwrap();
            let memory = rig.memory.clone();
            watch_window(&memory, &mut rng);
            assert_eq!(rig.sim.get_status(), 0);
            rig.restart();
            assert!(rig.ask(0, &Request::flush()).is_ok());
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver, a VMM and servers that do anything at any time, by seed: every write that is not cancelled by a reset is
//! answered once, and none is executed after its answer, or after the reset that cancelled it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::{Ledger, PATIENCE, Rig, StallDisk, info, newest};
use vduse_backend::fake::{FakeKernel, FakeRegion};
use vduse_backend::kernel::{Attribute, Kernel, VqInfo};
use vduse_backend::message::{Answer, Request as Ask};
use virtio_blk_core::disk::Caps;
use virtio_blk_core::testdisk::{Mode, WaitKind};
use virtio_blk_driver::request::{Request, Token};

const QUEUES: u16 = 2;
const SECTORS: u64 = 4096;
const STEPS: usize = 120;
/// Requests in flight on a queue: its descriptors are enough for these.
const DEPTH: usize = 8;

/// Xorshift.
struct Model {
    rig: Rig,
    random: fastrand::Rng,
    ledger: Arc<Mutex<Ledger>>,
    /// By queue: requests that were not answered, with their sectors.
    open: Vec<Vec<(Token, u64)>>,
    next: u64,
    more: FakeRegion,
    log: Vec<String>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let caps = Caps {
            flush: true,
            ..Caps::basic(SECTORS)
        };
        let disk = StallDisk::with_caps(caps).queueing(Mode::AtFlush, WaitKind::Fd);
        let ledger = Ledger::of(&disk);
        let kernel = match seed % 3 {
            0 => FakeKernel::new(0, 0),
            _ => newest(),
        };
        let mut rig = Rig::with(kernel, disk, QUEUES);
        // A fifth of it is what a message gets.
        rig.kernel
            .set_attribute(common::NAME, Attribute::MsgTimeout, 2)
            .unwrap();
        rig.start_index = seed.wrapping_mul(0x9e37) as u16;
        rig.start();
        let more = FakeRegion {
            file: Arc::new(common::memfd(1 << 16).into()),
            offset: 0,
            first: 0x10_0000,
            last: 0x10_ffff,
            ..rig.region()
        };
        Self {
            rig,
            random: fastrand::Rng::with_seed(seed),
            ledger,
            open: vec![Vec::new(); usize::from(QUEUES)],
            next: 0,
            more,
            log: Vec::new(),
        }
    }

    fn submit(&mut self) {
        let queue = self.random.usize(..usize::from(QUEUES));
        if self.open[queue].len() < DEPTH && self.next < SECTORS {
            let sector = self.next;
            self.next += 1;
            let data = [sector as u8; 512];
            let token = self.rig.submit(queue, &Request::write(sector, &data));
            self.open[queue].push((token, sector));
        }
    }

    /// Takes the completions there are.
    fn poll(&mut self) {
        for (queue, open) in self.rig.queues.iter_mut().zip(&mut self.open) {
            while let Some(done) = queue.poll().unwrap() {
                let at = open.iter().position(|(token, _)| *token == done.token);
                let (_, sector) = open.remove(at.expect("an answer to a request"));
                assert!(done.is_ok(), "{done:?}");
                self.ledger.lock().unwrap().answered(sector);
            }
        }
    }

    /// What hangs continues, mostly.
    fn let_go(&mut self) {
        if self.random.u8(..8) != 0 {
            self.rig.disk.inner().set_mode(Mode::AtFlush);
            self.rig.disk.inner().release(usize::MAX);
        }
    }

    fn ask(&self, ask: Ask) -> Option<Answer> {
        let answer = self.rig.bus.ask(ask);
        assert!(!self.rig.bus.is_broken(), "{ask:?}");
        answer
    }

    /// The states of all queues, if they can be told.
    fn states(&mut self) -> Option<Vec<u16>> {
        let mut states = Vec::new();
        for index in 0..u32::from(QUEUES) {
            match self.ask(Ask::GetVqState { index }) {
                Some(Answer::VqState { next_avail, .. }) => states.push(next_avail),
                _ => return None,
            }
        }
        Some(states)
    }

    /// A reset, after which nothing of before is executed.
    fn reset(&mut self) {
        self.poll();
        assert_eq!(self.ask(Ask::SetStatus(0)), Some(Answer::Ok));
        let mut ledger = self.ledger.lock().unwrap();
        for (_, sector) in self.open.iter_mut().flat_map(|open| open.drain(..)) {
            ledger.cancelled(sector);
        }
    }

    /// The VMM resets the device, and gives its queues back as they were.
    fn pause_and_resume(&mut self, states: &[u16]) {
        assert_eq!(self.ask(Ask::SetStatus(0)), Some(Answer::Ok));
        assert!(self.rig.bus.negotiate(self.rig.bus.device_features()));
        for (index, (queue, state)) in (0..).zip(self.rig.queues.iter().zip(states)) {
            let set = VqInfo {
                avail_index: *state,
                ..info(queue)
            };
            self.rig.bus.set_vq(index, set);
        }
        assert!(self.rig.bus.set_driver_ok());
    }

    fn next_server(&mut self, die: bool) {
        match die {
            true => self.rig.die(),
            false => {
                self.rig.stop().unwrap();
            }
        }
        self.rig.succeed();
    }

    fn step(&mut self) {
        let step = self.random.u8(..40);
        self.log.push(format!("{step}"));
        match step {
            0..14 => self.submit(),
            14..20 => self.poll(),
            20..22 => self.rig.disk.inner().set_mode(Mode::Held),
            22..24 => self.rig.disk.inner().set_mode(Mode::AtFlush),
            24..27 => {
                let held = self.rig.disk.inner().held();
                if held != 0 {
                    let index = self.random.usize(..held);
                    self.rig.disk.inner().release_at(index);
                }
            }
            27 => {
                self.reset();
                self.rig.start();
            }
            28 => {
                self.let_go();
                if let Some(states) = self.states() {
                    self.pause_and_resume(&states);
                }
            }
            // It only looks.
            29 => {
                self.let_go();
                self.states();
            }
            30 => {
                self.let_go();
                if self.ask(Ask::Suspend) == Some(Answer::Ok) {
                    if self.random.u8(..2) == 0 {
                        let die = self.random.u8(..2) == 0;
                        self.next_server(die);
                    }
                    let states = self.states().expect("suspended");
                    self.pause_and_resume(&states);
                }
            }
            31 => {
                let mut regions = vec![self.rig.region()];
                if self.random.u8(..2) == 0 {
                    regions.push(self.more.clone());
                }
                self.rig.map(regions);
            }
            32 => {
                let index = self.random.u32(..u32::from(QUEUES));
                self.let_go();
                for ready in [false, true] {
                    let set = Ask::SetVqReady { index, ready };
                    assert_eq!(self.ask(set), Some(Answer::Ok));
                }
            }
            33 => {
                self.let_go();
                self.next_server(false);
            }
            34 | 35 => self.next_server(true),
            // A message waits while the server dies.
            36 => {
                let pending = self.rig.bus.send(Ask::UpdateIotlb {
                    first: 0,
                    last: u64::MAX,
                });
                self.next_server(true);
                assert_eq!(pending.wait(), Some(Answer::Ok));
            }
            37 => {
                self.let_go();
                let pending = self.rig.bus.send(Ask::GetVqState { index: 0 });
                self.next_server(true);
                pending.wait();
            }
            // What was told holds under the next server.
            38 => {
                self.let_go();
                if let Some(states) = self.states() {
                    self.submit();
                    self.next_server(true);
                    // A kick lets them continue; without one nothing has changed.
                    if let Some(again) = self.states() {
                        self.pause_and_resume(&again);
                    }
                    let _ = states;
                }
            }
            _ => {
                self.rig.start_index = self.random.u16(..);
                self.reset();
                self.rig.start();
            }
        }
    }

    /// Everything is answered in the end.
    fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.rig.disk.inner().set_mode(Mode::AtFlush);
        while self.open.iter().any(|open| !open.is_empty()) {
            self.rig.disk.inner().release(usize::MAX);
            self.poll();
            assert!(Instant::now() < deadline, "lost: {:?}", self.open);
            std::thread::yield_now();
        }
        self.ledger.lock().unwrap().check();
    }
}

/// Runs one seed. What it did is shown if it fails.
fn run(seed: u64) {
    struct Shown<'a>(u64, &'a Mutex<Vec<String>>);
    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}: {}", self.0, self.1.lock().unwrap().join(" "));
            }
        }
    }
    let log = Mutex::new(Vec::new());
    let _shown = Shown(seed, &log);
    let mut model = Model::new(seed);
    for _ in 0..STEPS {
        model.step();
        log.lock().unwrap().append(&mut model.log);
    }
    model.finish();
}

#[test]
fn every_write_is_executed_and_answered_once_or_cancelled() {
    // More: VBLK_SEEDS=1000..2000.
    let seeds = std::env::var("VBLK_SEEDS").unwrap_or_default();
    let seeds = match seeds.split_once("..") {
        Some((first, last)) => first.parse().unwrap()..last.parse().unwrap(),
        None => 1..25,
    };
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    run(seed);
                }
            });
        }
    });
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each call of the kernel fails once: a message is refused, or the server ends, or it is tried again; the device is
//! never given up, no write is lost, and none is executed twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::{Ledger, PATIENCE, Rig, info};
use vduse_backend::Outcome;
use vduse_backend::fake::FakeRegion;
use vduse_backend::kernel::VqInfo;
use vduse_backend::message::{Answer, Request as Ask};
use virtio_blk_driver::request::Request;

const ERRORS: [i32; 2] = [libc::EIO, libc::EMFILE];

/// A VMM that starts another server whenever one ends, and repeats what is refused.
struct Vmm {
    rig: Rig,
    ledger: Arc<Mutex<Ledger>>,
    next: u64,
    revived: u32,
}

impl Vmm {
    fn new() -> Self {
        let rig = Rig::new(2);
        Self {
            ledger: Ledger::of(&rig.disk),
            rig,
            next: 0,
            revived: 0,
        }
    }

    /// Starts another server if there is none.
    fn revive(&mut self) {
        if !self.rig.has_ended() {
            return;
        }
        if let Some(result) = self.rig.result() {
            result.unwrap_err();
        }
        self.revived += 1;
        assert!(self.revived < 3, "it ends again and again");
        if self.rig.serve().is_err() {
            self.rig.serve().unwrap();
        }
    }

    fn ask(&mut self, ask: Ask) -> Answer {
        let pending = self.rig.bus.send(ask);
        while !pending.is_over() {
            self.revive();
            std::thread::yield_now();
        }
        pending.wait().expect("the device is given up")
    }

    /// A message that succeeds, at the second try at the latest.
    fn ok(&mut self, ask: Ask) {
        if self.ask(ask) == Answer::Failed {
            assert_ne!(self.ask(ask), Answer::Failed, "{ask:?}");
        }
    }

    fn state(&mut self, index: u32) -> u16 {
        for _ in 0..2 {
            if let Answer::VqState { next_avail, .. } = self.ask(Ask::GetVqState { index }) {
                return next_avail;
            }
        }
        panic!("the state of queue {index} is not told");
    }

    fn negotiate(&mut self) {
        for status in [0, 1, 3] {
            self.ok(Ask::SetStatus(status));
        }
        let features = self.rig.bus.device_features();
        self.rig.bus.set_driver_features(features);
        self.ok(Ask::SetStatus(11));
    }

    fn write(&mut self) {
        for queue in 0..2 {
            let sector = self.next;
            self.next += 1;
            let token = self.rig.submit(queue, &Request::write(sector, &[7; 512]));
            let deadline = Instant::now() + PATIENCE;
            let done = loop {
                if let Some(done) = self.rig.queues[queue].poll().unwrap() {
                    break done;
                }
                self.revive();
                assert!(Instant::now() < deadline, "a write is lost");
                std::thread::yield_now();
            };
            assert_eq!(done.token, token);
            assert!(done.is_ok(), "{done:?}");
            self.ledger.lock().unwrap().answered(sector);
        }
    }

    /// All that a device goes through.
    fn live(&mut self) {
        self.negotiate();
        self.rig.set_queues_up();
        self.ok(Ask::SetStatus(15));
        self.write();
        let anywhere = Ask::UpdateIotlb {
            first: 0,
            last: u64::MAX,
        };
        self.ok(anywhere);
        self.write();
        for ready in [false, true] {
            let index = 0;
            self.ok(Ask::SetVqReady { index, ready });
        }
        self.write();
        // A VMM that only looks.
        self.state(0);
        self.write();
        // One that takes the queues away and gives them back.
        let states = [self.state(0), self.state(1)];
        self.negotiate();
        for (index, state) in (0..).zip(states) {
            let set = VqInfo {
                avail_index: state,
                ..info(&self.rig.queues[usize::from(index)])
            };
            self.rig.bus.set_vq(index, set);
        }
        self.ok(Ask::SetStatus(15));
        self.write();
        // A server that ends in order, and the next.
        if !self.rig.has_ended() && self.rig.stop().is_ok() && self.rig.serve().is_err() {
            self.rig.serve().unwrap();
        }
        self.write();
        self.ok(Ask::Suspend);
        self.state(0);
        self.ok(Ask::SetStatus(0));
        self.ledger.lock().unwrap().check();
    }
}

#[test]
fn each_call_fails_once_in_the_life_of_a_device() {
    let mut dry = Vmm::new();
    let before = dry.rig.kernel.calls();
    dry.live();
    let calls = dry.rig.kernel.calls() - before;
    assert!(calls > 50, "{calls}");
    drop(dry);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= calls {
                        break;
                    }
                    let mut vmm = Vmm::new();
                    let errno = ERRORS[at as usize % ERRORS.len()];
                    vmm.rig.kernel.fail_after(at, errno);
                    vmm.live();
                }
            });
        }
    });
}

/// What could not be made is not left behind.
#[test]
fn each_call_fails_once_when_a_device_is_made_and_removed() {
    for at in 0.. {
        let mut rig = Rig::new(1);
        rig.bus.attach(false);
        assert_eq!(rig.stop().unwrap(), Outcome::Removed);
        let before = rig.kernel.calls();
        rig.kernel
            .fail_after(at, ERRORS[at as usize % ERRORS.len()]);
        let made = rig.serve();
        if rig.kernel.calls() - before <= at {
            // All were seen.
            break;
        }
        match made {
            Ok(taken_over) => assert!(!taken_over),
            Err(_) => assert!(!rig.serve().unwrap(), "call {at}"),
        }
        rig.bus.attach(true);
        rig.bus.set_regions(vec![rig.region()]);
        rig.start();
        rig.check();
    }
}

/// Memory that was taken away is not used any more, although looking at what is left failed at first.
#[test]
fn each_call_fails_once_when_memory_is_taken_away() {
    const AT: u64 = 0x10_0000;
    for call in 0..12 {
        let mut vmm = Vmm::new();
        let file = common::memfd(4096);
        let more = FakeRegion {
            file: Arc::new(file.try_clone().unwrap().into()),
            first: AT,
            last: AT + 4095,
            ..vmm.rig.region()
        };
        let regions = vec![vmm.rig.region(), more];
        vmm.rig.bus.set_regions(regions);
        vmm.rig.disk.inner().set_content(0, &[0xdd; 512]);
        vmm.rig.start();
        let read = |vmm: &mut Vmm| {
            let token = vmm.rig.read_into(AT);
            let done = vmm.rig.answer(0);
            assert_eq!(done.token, token);
            let mut found = [0; 512];
            file.read_exact_at(&mut found, 0).unwrap();
            file.write_all_at(&[0x77; 512], 0).unwrap();
            (done.is_ok(), found[0])
        };
        assert_eq!(read(&mut vmm), (true, 0xdd));
        vmm.rig.bus.set_regions(vec![vmm.rig.region()]);
        vmm.rig.kernel.fail_after(call, ERRORS[call as usize % 2]);
        // Refused or not: the kernel has taken it away.
        vmm.ask(Ask::UpdateIotlb {
            first: 0,
            last: u64::MAX,
        });
        vmm.ask(Ask::SetGroupAsid { group: 0, asid: 0 });
        vmm.revive();
        assert_eq!(read(&mut vmm), (false, 0x77), "call {call}");
        vmm.rig.check();
    }
}

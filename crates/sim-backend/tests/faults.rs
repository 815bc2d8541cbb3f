// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults by seed: what goes wrong repeats itself, and a driver gets over it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Rig, counter};
use sim_backend::{FaultCounts, Faults, SimOptions};
use std::sync::atomic::Ordering;

use fastrand::Rng;
use vdpa_bus::VdpaDevice;
use virtio_blk_core::spec::status::DEVICE_NEEDS_RESET;
use virtio_blk_disks::fault::{FaultPlan, Kind, Rule};
use virtio_blk_driver::request::Request;
use virtio_blk_driver::wire;
use vm_memory::{Bytes, GuestAddress};

fn plan(seed: u64) -> Faults {
    let disk = FaultPlan::new(seed)
        .delay_reaps(0..=4)
        .reorder()
        .poll()
        .rule(Rule::errno(libc::EIO).kind(Kind::Write).per_mille(50));
    Faults::new(seed)
        .drop_kicks(100)
        .drop_callbacks(100)
        .suspend_undrained(300)
        .disk(disk)
}

/// What a driver saw.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    answers: Vec<(u16, u32, u8)>,
    rekicks: u64,
    interrupts: u64,
    counts: FaultCounts,
}

/// 3000 requests under a plan, by a driver that kicks again when nothing happens.
fn run(options: SimOptions, queues: u16, seed: u64) -> Trace {
    let mut rig = Rig::new(options.stepped().faults(plan(seed)), queues);
    let (callback, interrupts) = counter();
    for vq in 0..queues {
        rig.sim.set_vq_cb(vq, Some(callback.clone())).unwrap();
    }
    let mut rng = Rng::with_seed(seed);
    let (mut answers, mut rekicks, mut sent) = (Vec::new(), 0, 0u32);
    let mut numbers = std::collections::HashMap::new();
    while sent < 3000 || !numbers.is_empty() {
        let before = answers.len();
        for vq in 0..queues {
            for _ in 0..rng.u64(..5) {
                if sent < 3000 && rig.queue(vq).in_flight() < 16 {
                    let sector = rng.u64(..1000);
                    let data = [sent as u8; 512];
                    let request = match rng.u64(..3) {
                        0 => Request::write(sector, &data),
                        1 => Request::read(sector, 512),
                        _ => Request::flush(),
                    };
                    let token = rig.queue(vq).submit(&request).unwrap();
                    numbers.insert((vq, token), sent);
                    sent += 1;
                }
            }
            rig.driver.publish(vq).unwrap();
        }
        rig.sim.step();
        if rng.u64(..10) == 0 {
            rig.sim.suspend().unwrap();
            rig.sim.step();
            rig.sim.resume().unwrap();
        }
        for vq in 0..queues {
            while let Some(done) = rig.queue(vq).poll().unwrap() {
                let number = numbers.remove(&(vq, done.token)).expect("answered once");
                answers.push((vq, number, done.status));
            }
            if answers.len() == before && !rig.sim.step() {
                rig.sim.kick_vq(vq);
                rekicks += 1;
            }
        }
    }
    Trace {
        answers,
        rekicks,
        interrupts: interrupts.load(Ordering::SeqCst),
        counts: rig.sim.fault_counts(),
    }
}

#[test]
fn strict_repeats_itself_and_every_kind_of_fault_happens() {
    let first = run(SimOptions::strict_queues(2), 2, 1);
    assert_eq!(first, run(SimOptions::strict_queues(2), 2, 1));
    assert_ne!(first, run(SimOptions::strict_queues(2), 2, 2));
    assert_eq!(first.answers.len(), 3000);
    let counts = first.counts;
    assert!(counts.kicks > 0 && counts.callbacks > 0, "{counts:?}");
    assert!(counts.undrained > 0 && first.rekicks > 0 && first.interrupts > 0);
    let with = |status| first.answers.iter().filter(|a| a.2 == status).count();
    assert!(with(wire::S_IOERR) > 0);
    assert!(with(wire::S_OK) > 2000);
    assert!(!first.answers.is_sorted_by_key(|a| a.1), "another order");
}

/// A translation that is missing for a moment: what can't be reached fails, and where not even the status can
/// be, the device stops. No request looks done that is not.
#[test]
fn a_missing_translation_is_an_error_or_stops_the_device() {
    let (mut failed, mut stopped) = (0, 0);
    for seed in 0..40 {
        let faults = Faults::new(seed).miss_iotlb(20);
        let mut rig = Rig::new(SimOptions::strict_queues(1).stepped().faults(faults), 1);
        for sector in 0..100 {
            rig.send(0, &Request::write(sector, &[sector as u8; 512]));
            rig.sim.run();
            match rig.queue(0).poll().unwrap() {
                Some(done) if done.status == wire::S_IOERR => failed += 1,
                Some(done) => assert_eq!(done.status, wire::S_OK),
                None => {
                    let status = rig.sim.get_status();
                    assert_eq!(status & DEVICE_NEEDS_RESET, DEVICE_NEEDS_RESET);
                    stopped += 1;
                    break;
                }
            }
        }
        assert!(rig.sim.fault_counts().iotlb > 0);
    }
    assert!(failed > 0 && stopped > 0, "{failed} {stopped}");
}

#[test]
fn compat_repeats_itself() {
    let plan = |seed| Faults::new(seed).drop_kicks(100).drop_callbacks(100);
    let run = |seed| {
        let mut rig = Rig::new(SimOptions::compat().stepped().faults(plan(seed)), 1);
        let (callback, interrupts) = counter();
        rig.sim.set_vq_cb(0, Some(callback)).unwrap();
        let mut rekicks = Vec::new();
        for number in 0..1000 {
            rig.send(0, &Request::flush());
            rig.sim.run();
            while rig.queue(0).poll().unwrap().is_none() {
                rekicks.push(number);
                rig.sim.kick_vq(0);
                rig.sim.run();
            }
        }
        (
            rekicks,
            interrupts.load(Ordering::SeqCst),
            rig.sim.fault_counts(),
        )
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
    assert!(
        (50..200).contains(&first.0.len()) && first.1 < 1000,
        "{first:?}"
    );
}

#[test]
fn compat_loses_what_it_can_not_reach() {
    let faults = Faults::new(3).miss_iotlb(100);
    let mut rig = Rig::new(SimOptions::compat().stepped().faults(faults), 1);
    let mut failed = 0;
    for _ in 0..500 {
        rig.send(0, &Request::read(0, 512));
        rig.sim.run();
        // It was consumed and returned, whatever was missing.
        let done = rig.queue(0).poll().unwrap().unwrap();
        failed += u64::from(!done.is_ok());
    }
    assert!(failed > 0 && failed < 500);
    rig.sim.arm_faults(false);
    for _ in 0..100 {
        assert!(rig.ask(0, &Request::read(0, 512)).is_ok());
    }
}

#[test]
fn a_suspend_may_leave_requests_in_flight() {
    let disk = FaultPlan::new(1).delay_reaps(2..=2).poll();
    let faults = Faults::new(1).suspend_undrained(1000).disk(disk);
    let mut rig = Rig::new(SimOptions::strict().stepped().faults(faults), 1);
    let used = GuestAddress(rig.queue(0).ring().layout().used().0 + 2);
    for _ in 0..4 {
        rig.queue(0).submit(&Request::flush()).unwrap();
    }
    rig.driver.publish(0).unwrap();
    rig.sim.step();
    rig.sim.suspend().unwrap();
    for _ in 0..10 {
        rig.sim.step();
    }
    let index: u16 = rig.memory.read_obj(used).unwrap();
    assert_eq!((rig.state(0), index), (4, 0), "taken and not returned");
    rig.sim.resume().unwrap();
    for _ in 0..4 {
        assert!(rig.answer(0).is_ok());
    }
}

#[test]
fn errors_of_the_disk_are_answered_in_both_profiles() {
    for options in [SimOptions::strict(), SimOptions::compat()] {
        let rule = Rule::errno(libc::EIO).kind(Kind::Read).times(3);
        let faults = Faults::new(1).disk(FaultPlan::new(1).rule(rule));
        let mut rig = Rig::new(options.faults(faults), 1);
        for number in 0..6 {
            let status = rig.ask(0, &Request::read(0, 512)).status;
            assert_eq!(
                status,
                if number < 3 {
                    wire::S_IOERR
                } else {
                    wire::S_OK
                }
            );
        }
    }
}

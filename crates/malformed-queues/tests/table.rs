// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of malformed queues, against a device that follows the rules and ones that don't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Flaw, Model};
use malformed_queues::testmem::{self, Space};
use malformed_queues::{
    Expect, Health, Mismatch, Options, Racer, Setup, Subject, Target, cases, on_each_memory, play,
};
use virtio_blk_driver::Memory;
use virtio_blk_driver::request::{ArenaConfig, Request};
use virtio_blk_driver::ring::RingConfig;

const LEN: usize = 128 * 1024;

/// What a device with this flaw does wrong: case and mismatch.
fn failures(flaw: Flaw, options: Options) -> Vec<(&'static str, Mismatch)> {
    cases()
        .filter_map(|case| {
            let (mem, space) = testmem::gapped(LEN).unwrap();
            let mut model = Model::new(&mem, flaw);
            let result = play(case, &mem, space, options, &mut model);
            result.err().map(|mismatch| (case.name, mismatch))
        })
        .collect()
}

#[test]
fn names_tell_cases_apart_and_every_answer_occurs() {
    let mut names = HashSet::new();
    let mut answers = HashSet::new();
    for case in cases() {
        assert!(names.insert(case.name), "twice: {}", case.name);
        answers.insert(format!("{:?}", case.expect));
    }
    assert!(names.len() >= 90, "{} cases", names.len());
    for expect in [
        Expect::LenZero,
        Expect::Latched,
        Expect::Refused,
        Expect::Survives,
        Expect::Status(0),
        Expect::Status(1),
        Expect::Status(2),
    ] {
        assert!(answers.contains(&format!("{expect:?}")), "{expect:?}");
    }
}

#[test]
fn the_rules_can_be_followed_on_every_memory() {
    for (size, start, event_idx) in [(16, 0, false), (16, 65_530, true), (64, 65_535, false)] {
        let options = Options {
            size,
            start,
            event_idx,
        };
        for case in cases() {
            on_each_memory!(LEN, |mem, space| {
                let mut model = Model::new(&*mem, Flaw::None);
                let space: &mut Space = &mut space;
                if let Err(mismatch) = play(case, &*mem, space.clone(), options, &mut model) {
                    panic!("{} ({options:?}): {mismatch}", case.name);
                }
            });
        }
    }
}

/// No access of ours wraps around the address space, so even an IOMMU that can't bear it is safe.
#[test]
fn the_rules_can_be_followed_behind_a_careless_iommu() {
    for case in cases() {
        let (mem, space) = testmem::fragmented_naive(LEN, 7).unwrap();
        let mut model = Model::new(&mem, Flaw::None);
        if let Err(mismatch) = play(case, &mem, space, Options::default(), &mut model) {
            panic!("{}: {mismatch}", case.name);
        }
    }
}

/// Each rule is checked by some case: a device that breaks it fails, and where one would think.
#[test]
fn every_broken_rule_is_caught() {
    for (flaw, by) in [
        (
            Flaw::ReadableAfterWritable,
            "a readable descriptor follows the writable ones",
        ),
        (
            Flaw::NestedIndirect,
            "an indirect table in an indirect table",
        ),
        (Flaw::IndirectAlways, "indirect is not negotiated"),
        (
            Flaw::IndirectThenNext,
            "a chain continues behind its indirect table",
        ),
        (
            Flaw::PartialTable,
            "an indirect table that ends within a descriptor",
        ),
        (
            Flaw::LimitsToQueueSize,
            "an indirect chain is longer than the queue",
        ),
        (Flaw::IgnoresBadHead, "a head is the queue size"),
        (Flaw::IgnoresIndexJump, "the available index goes back"),
        (
            Flaw::IgnoresDuplicate,
            "a head is made available again while in flight",
        ),
        (Flaw::NoRingCheck, "the used ring is not mapped"),
        (
            Flaw::StopsAtBrokenChain,
            "the status leads back to the header",
        ),
        (Flaw::SwallowsBrokenChain, "next is 65535"),
        (
            Flaw::NoStatusOnBrokenChain,
            "the status leads back to the header",
        ),
        (Flaw::ReturnsUnanswerable, "a descriptor is its own next"),
        (Flaw::LenOnError, "data in is mapped, then not"),
        (Flaw::LenTooSmall, "a header in two pieces"),
        (Flaw::StatusFirst, "data in and status in one buffer"),
        (Flaw::ShortHeader, "a header of 8 bytes"),
        (
            Flaw::RejectsEmpty,
            "empty descriptors lie everywhere, at addresses that don't exist",
        ),
        (Flaw::WritesHeader, "a read of nothing"),
        (Flaw::UnknownIsIoerr, "the type is unknown"),
    ] {
        let failed = failures(flaw, Options::default());
        assert!(
            failed.iter().any(|(name, _)| *name == by),
            "{flaw:?} failed only {failed:?}"
        );
    }
}

#[test]
fn used_flags_are_for_queues_without_event_index() {
    let with = |event_idx| Options {
        event_idx,
        ..Options::default()
    };
    assert!(failures(Flaw::SetsUsedFlags, with(false)).is_empty());
    let failed = failures(Flaw::SetsUsedFlags, with(true));
    assert!(!failed.is_empty());
    for (name, mismatch) in failed {
        assert!(
            matches!(mismatch, Mismatch::UsedFlags(1)),
            "{name}: {mismatch}"
        );
    }
}

#[test]
fn order_of_use_is_the_devices_business() {
    assert!(failures(Flaw::UsesInReverse, Options::default()).is_empty());
}

/// A device that never does anything fails every case that expects something.
#[test]
fn an_idle_device_is_caught() {
    struct Idle;
    impl Subject for Idle {
        fn start(&mut self, _: &Setup) -> Health {
            Health::Running
        }
        fn service(&mut self) -> Health {
            Health::Running
        }
    }
    for case in cases() {
        let (mem, space) = testmem::single(LEN).unwrap();
        let result = play(case, &mem, space, Options::default(), &mut Idle);
        assert_eq!(
            result.is_ok(),
            case.expect == Expect::Survives,
            "{}",
            case.name
        );
    }
}

/// The same seed takes the same steps, the steps change everything, and all can be put back.
#[test]
fn a_racer_follows_its_seed() {
    let (mem, mut space) = testmem::single(LEN).unwrap();
    let base = space.take(2112, 16).unwrap();
    let original: Vec<u8> = (0..2112).map(|i| i as u8).collect();
    let at = |offset| vm_memory::GuestAddress(base.0 + offset);
    let targets = [
        Target::Descriptors {
            addr: at(0),
            count: 16,
        },
        Target::Header { addr: at(1024) },
        Target::Bytes {
            addr: at(2048),
            len: 13,
        },
    ];
    let content = || {
        let mut bytes = vec![0; 2112];
        mem.read_at(base, &mut bytes).unwrap();
        bytes
    };
    let play = |seed, steps| {
        mem.write_at(base, &original).unwrap();
        let mut racer = Racer::new(&mem, &targets, seed).unwrap();
        let mut changed = vec![false; 2112];
        for _ in 0..steps {
            racer.step().unwrap();
            for (place, (a, b)) in changed.iter_mut().zip(content().iter().zip(&original)) {
                *place |= a != b;
            }
        }
        let end = content();
        racer.restore().unwrap();
        assert_eq!(content(), original);
        (end, changed)
    };
    let (end, changed) = play(1, 10_000);
    assert_eq!(end, play(1, 10_000).0);
    assert_ne!(end, play(2, 10_000).0);
    for (offset, changed) in changed.iter().enumerate() {
        let inside = matches!(offset, 0..256 | 1024..1040 | 2048..2061);
        assert_eq!(*changed, inside, "byte {offset}");
    }
    let outside = Target::Header { addr: space.edge() };
    assert!(Racer::new(&mem, &[outside], 0).is_err());
}

/// A device that reads everything once stays in one piece while memory changes under it.
#[test]
fn the_model_survives_a_racer() {
    let (mem, mut space) = testmem::fragmented(LEN, 5).unwrap();
    let ring = RingConfig {
        indirect: true,
        ..RingConfig::default()
    };
    let mut driver = space
        .driver(&mem, 16, ring, ArenaConfig::default())
        .unwrap();
    let setup = Setup {
        state: driver.state(),
        indirect: true,
        deferred: false,
    };
    let desc = driver.ring().layout().desc();
    let mut model = Model::new(&mem, Flaw::None);
    assert_eq!(model.start(&setup), Health::Running);
    for sector in 0..4 {
        driver.submit(&Request::read(sector, 512)).unwrap();
    }
    driver.publish().unwrap();
    let targets = [Target::Descriptors {
        addr: desc,
        count: 16,
    }];
    let mut racer = Racer::new(&mem, &targets, 9).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| racer.run(&stop).unwrap());
        model.service();
        // What comes back, if it comes back, came in by the rules of the ring.
        stop.store(true, Ordering::Relaxed);
        assert!(thread.join().unwrap() > 0);
    });
    assert_eq!(driver.ring().in_flight(), 4);
    let mut back = 0;
    while let Ok(Some(_)) = driver.poll() {
        back += 1;
    }
    assert!(back <= 4);
}

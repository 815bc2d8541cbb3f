// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `strict` profile, operation by operation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{MEMORY, Rig, counter, errno, mapping, memory, physical, table};
use sim_backend::{BlkSim, Options, Profile};
use vdpa_bus::{VdpaDevice, VdpaError, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::{config, feature, status};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{In, Out, Request};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver, negotiate};
use virtio_blk_driver::{Segment, wire};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;
/// What a driver must acknowledge, and nothing else.
const LEAST: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;

fn rig() -> Rig {
    Rig::new(Options::strict_queues(2).stepped(), 2)
}

fn bare(options: Options) -> BlkSim {
    BlkSim::in_memory(options.stepped()).unwrap()
}

/// Strict options with groups and address spaces.
fn grouped(queues: u16, groups: u32, spaces: u32) -> Options {
    let mut options = Options::strict_queues(queues).stepped();
    if let Profile::Strict(strict) = &mut options.profile {
        strict.groups = groups;
        strict.address_spaces = spaces;
    }
    options
}

#[test]
fn set_vq_address() {
    let sim = bare(Options::strict());
    let good = VqAddress {
        desc: 0x1000,
        driver: 0x2002,
        device: 0x3004,
    };
    sim.set_vq_address(0, good).unwrap();
    for bad in [
        VqAddress {
            desc: 0x1008,
            ..good
        },
        VqAddress {
            driver: 0x2001,
            ..good
        },
        VqAddress {
            device: 0x3002,
            ..good
        },
    ] {
        assert_eq!(errno(sim.set_vq_address(0, bad)), EINVAL);
    }
    assert_eq!(errno(sim.set_vq_address(1, good)), EINVAL, "no such queue");
}

#[test]
fn set_vq_address_takes_effect_when_the_queue_becomes_ready() {
    let mut rig = rig();
    rig.sim.set_vq_address(0, VqAddress::default()).unwrap();
    assert!(rig.ask(0, &Request::flush()).is_ok(), "it is ready already");
}

#[test]
fn set_vq_num() {
    let sim = bare(Options::strict());
    for good in [1, 2, 128, 256] {
        sim.set_vq_num(0, good).unwrap();
    }
    for bad in [0, 3, 512, 1 << 16, u32::MAX] {
        assert_eq!(errno(sim.set_vq_num(0, bad)), EINVAL, "{bad}");
    }
    assert_eq!(errno(sim.set_vq_num(1, 4)), EINVAL);
}

#[test]
fn kick_vq() {
    let mut rig = rig();
    rig.sim.kick_vq(7);
    rig.queue(1).submit(&Request::flush()).unwrap();
    rig.queue(1).publish().unwrap();
    rig.sim.run();
    assert_eq!(rig.queue(1).poll().unwrap(), None, "it was not kicked");
    rig.sim.kick_vq(0);
    rig.sim.run();
    assert_eq!(rig.queue(1).poll().unwrap(), None, "another queue was");
    rig.sim.kick_vq(1);
    rig.sim.run();
    assert!(rig.queue(1).poll().unwrap().unwrap().is_ok());
}

#[test]
fn set_vq_kick() {
    let mut rig = rig();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    rig.sim.set_vq_kick(0, Some(kick.clone())).unwrap();
    let submit = |rig: &mut Rig| {
        rig.queue(0).submit(&Request::flush()).unwrap();
        rig.queue(0).publish().unwrap();
    };
    for _ in 0..3 {
        submit(&mut rig);
        rig.no_answer(0);
        kick.write(1).unwrap();
        assert!(rig.answer(0).is_ok());
    }
    // Unbound, kicks collect in the eventfd, and count when it is bound again.
    rig.sim.set_vq_kick(0, None).unwrap();
    submit(&mut rig);
    kick.write(1).unwrap();
    rig.no_answer(0);
    rig.sim.set_vq_kick(0, Some(kick.clone())).unwrap();
    assert!(rig.answer(0).is_ok());
    assert_eq!(kick.read().unwrap(), 4, "the counter was never read");
    assert_eq!(errno(rig.sim.set_vq_kick(2, Some(kick))), EINVAL);
}

#[test]
fn set_vq_kick_survives_a_reset_and_may_be_shared() {
    let mut rig = rig();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    for vq in 0..2 {
        rig.sim.set_vq_kick(vq, Some(kick.clone())).unwrap();
    }
    rig.restart();
    rig.sim.run();
    for vq in 0..2 {
        rig.queue(vq).submit(&Request::flush()).unwrap();
        rig.queue(vq).publish().unwrap();
    }
    kick.write(1).unwrap();
    assert!(rig.answer(0).is_ok() && rig.answer(1).is_ok());
}

#[test]
fn set_vq_kick_wakes_the_worker() {
    let mut rig = Rig::new(Options::strict(), 1);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    rig.sim.set_vq_kick(0, Some(kick.clone())).unwrap();
    for _ in 0..100 {
        rig.queue(0).submit(&Request::flush()).unwrap();
        if rig.queue(0).publish().unwrap() {
            kick.write(1).unwrap();
        }
        assert!(rig.answer(0).is_ok());
    }
}

#[test]
fn set_vq_cb() {
    let mut rig = rig();
    let (first, first_count) = counter();
    let (second, second_count) = counter();
    rig.sim.set_vq_cb(0, Some(first)).unwrap();
    rig.ask(0, &Request::flush());
    assert_eq!(first_count.load(Ordering::SeqCst), 1);
    rig.sim.set_vq_cb(0, Some(second.clone())).unwrap();
    let (ring, mem) = rig.queue(0).ring_mut();
    ring.enable_interrupts(mem).unwrap();
    rig.ask(0, &Request::flush());
    rig.ask(1, &Request::flush());
    let counts = [&first_count, &second_count].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 1]);
    rig.restart();
    rig.ask(0, &Request::flush());
    assert_eq!(second_count.load(Ordering::SeqCst), 1, "a reset clears it");
    assert_eq!(errno(rig.sim.set_vq_cb(2, Some(second))), EINVAL);
}

#[test]
fn set_vq_ready_and_get_vq_ready() {
    let mut rig = rig();
    assert!(rig.sim.get_vq_ready(0) && rig.sim.get_vq_ready(1) && !rig.sim.get_vq_ready(2));
    assert!(rig.ask(0, &Request::flush()).is_ok());
    rig.sim.set_vq_ready(0, false).unwrap();
    assert!(!rig.sim.get_vq_ready(0));
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    assert!(
        rig.ask(1, &Request::flush()).is_ok(),
        "the other one goes on"
    );
    // After DRIVER_OK, and where it stood.
    rig.sim.set_vq_ready(0, true).unwrap();
    assert!(rig.answer(0).is_ok());
    assert_eq!(rig.state(0), 2);
    assert_eq!(errno(rig.sim.set_vq_ready(2, true)), EINVAL);
}

#[test]
fn set_vq_ready_of_an_unusable_ring_makes_a_queue_that_does_nothing() {
    let mut rig = rig();
    rig.sim.set_vq_ready(0, false).unwrap();
    rig.sim.set_map(0, &IotlbTable::new()).unwrap();
    rig.sim.set_vq_ready(0, true).unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    assert!(rig.sim.get_vq_ready(0));
    let memory = rig.memory.clone();
    rig.sim.set_map(0, &table(&memory)).unwrap();
    assert!(rig.answer(0).is_ok(), "once it can be used it is");
}

#[test]
fn set_vq_state_and_get_vq_state() {
    let mut rig = rig();
    assert_eq!(rig.state(0), 0);
    let busy = rig.sim.set_vq_state(0, VqState::Split { avail_index: 9 });
    assert_eq!(errno(busy), EBUSY);
    for requests in 1..4 {
        rig.ask(0, &Request::flush());
        assert_eq!(rig.state(0), requests, "also while it runs");
    }
    let packed = VqState::Packed {
        last_avail_counter: true,
        last_avail_idx: 0,
        last_used_counter: true,
        last_used_idx: 0,
    };
    rig.sim.reset().unwrap();
    assert_eq!(rig.state(0), 0);
    assert_eq!(errno(rig.sim.set_vq_state(0, packed)), EINVAL);
    assert_eq!(errno(rig.sim.get_vq_state(2)), EINVAL);
    // A ring that goes on in the middle, over the wrap of the index.
    let memory = rig.memory.clone();
    let setup = Setup {
        start: 0xfffe,
        maps: &[(0, table(&memory))],
        ..Setup::default()
    };
    rig.driver = VdpaDriver::start(rig.sim.clone(), memory.clone(), &setup).unwrap();
    for index in [0xffff, 0, 1] {
        assert!(rig.ask(0, &Request::flush()).is_ok());
        assert_eq!(rig.state(0), index);
    }
}

#[test]
fn get_vendor_vq_stats() {
    let mut rig = rig();
    rig.ask(1, &Request::write(0, &[1; 1024]));
    rig.ask(1, &Request::read(0, 512));
    rig.ask(1, &Request::new(77, 0));
    let value = |vq, name: &str| {
        let stats = rig.sim.get_vendor_vq_stats(vq).unwrap();
        stats.iter().find(|(n, _)| n == name).unwrap().1
    };
    assert_eq!(value(1, "writes"), 1);
    assert_eq!(value(1, "written_bytes"), 1024);
    assert_eq!(value(1, "read_bytes"), 512);
    assert_eq!(value(1, "errors"), 1);
    assert_eq!(value(0, "writes"), 0);
    assert_eq!(errno(rig.sim.get_vendor_vq_stats(2)), EINVAL);
}

#[test]
fn get_vq_align_num_and_size() {
    let rig = rig();
    assert_eq!(rig.sim.get_vq_align(), 16);
    assert_eq!(
        (rig.sim.get_vq_num_min(), rig.sim.get_vq_num_max()),
        (1, 256)
    );
    assert_eq!(rig.sim.get_vq_size(0).unwrap(), 256);
    let sim = bare(Options::strict());
    sim.set_vq_num(0, 8).unwrap();
    assert_eq!(
        sim.get_vq_size(0).unwrap(),
        256,
        "before DRIVER_OK the largest"
    );
    negotiate(&sim, u64::MAX).unwrap();
    sim.set_status(sim.get_status() | status::DRIVER_OK)
        .unwrap();
    assert_eq!(sim.get_vq_size(0).unwrap(), 8);
    assert_eq!(errno(sim.get_vq_size(1)), EINVAL);
}

#[test]
fn get_vq_group_and_counts() {
    let sim = bare(grouped(4, 3, 5));
    assert_eq!((sim.nvqs(), sim.ngroups(), sim.nas()), (4, 3, 5));
    let groups: Vec<_> = (0..4).map(|vq| sim.get_vq_group(vq).unwrap()).collect();
    assert_eq!(groups, [0, 1, 2, 0]);
    assert_eq!(errno(sim.get_vq_group(4)), EINVAL);
    assert_eq!(errno(sim.get_vq_desc_group(0)), EOPNOTSUPP);
}

#[test]
fn get_device_features() {
    let sim = bare(Options::strict_queues(2));
    let names = feature::names(sim.get_device_features());
    for name in [
        "SEG_MAX",
        "BLK_SIZE",
        "FLUSH",
        "TOPOLOGY",
        "CONFIG_WCE",
        "MQ",
        "DISCARD",
        "WRITE_ZEROES",
        "SECURE_ERASE",
        "RING_INDIRECT_DESC",
        "RING_EVENT_IDX",
        "VERSION_1",
        "ACCESS_PLATFORM",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
}

#[test]
fn get_backend_features() {
    let sim = bare(Options::strict());
    assert_eq!(sim.get_backend_features(), 0x17e);
}

#[test]
fn set_driver_features_and_get_driver_features() {
    let sim = bare(Options::strict());
    assert_eq!(sim.get_driver_features(), 0);
    sim.set_driver_features(LEAST).unwrap();
    assert_eq!(sim.get_driver_features(), LEAST);
    for bad in [
        LEAST | feature::RING_PACKED,
        feature::VERSION_1,
        feature::ACCESS_PLATFORM,
        0,
    ] {
        assert_eq!(errno(sim.set_driver_features(bad)), EINVAL, "{bad:#x}");
    }
    assert_eq!(
        sim.get_driver_features(),
        LEAST,
        "a refusal changes nothing"
    );
    assert_eq!(negotiate(&sim, LEAST).unwrap(), LEAST);
    assert_eq!(errno(sim.set_driver_features(LEAST)), EBUSY);
    sim.reset().unwrap();
    assert_eq!(sim.get_driver_features(), 0);
    sim.set_driver_features(LEAST).unwrap();
}

#[test]
fn set_config_cb_and_live_resize() {
    let disk = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let mut rig = Rig::over(disk.clone(), Options::strict().stepped(), 1);
    let (callback, count) = counter();
    rig.sim.set_config_cb(Some(callback)).unwrap();
    let capacity = |sim: &BlkSim| {
        let mut bytes = [0; 8];
        sim.get_config(0, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let generation = rig.sim.get_generation();
    assert_eq!(capacity(&rig.sim), 2048);
    assert_eq!(rig.ask(0, &Request::read(2048, 512)).status, wire::S_IOERR);
    disk.resize(4096).unwrap();
    assert_eq!(
        (capacity(&rig.sim), count.load(Ordering::SeqCst)),
        (4096, 1)
    );
    assert_ne!(rig.sim.get_generation(), generation);
    assert!(rig.ask(0, &Request::read(2048, 512)).is_ok());
    // While it is suspended nothing is said; then once.
    rig.sim.suspend().unwrap();
    disk.resize(6144).unwrap();
    disk.resize(8192).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
    rig.sim.resume().unwrap();
    assert_eq!(
        (capacity(&rig.sim), count.load(Ordering::SeqCst)),
        (8192, 2)
    );
    rig.sim.reset().unwrap();
    disk.resize(2048).unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 2, "a reset clears it");
}

#[test]
fn get_device_id_and_get_vendor_id() {
    let sim = bare(Options::strict());
    assert_eq!((sim.get_device_id(), sim.get_vendor_id()), (2, 0));
}

#[test]
fn set_status_and_get_status() {
    let sim = bare(Options::strict());
    assert_eq!(sim.get_status(), 0);
    sim.set_status(1).unwrap();
    sim.set_status(3).unwrap();
    assert_eq!(
        errno(sim.set_status(1)),
        EINVAL,
        "bits are only cleared by a reset"
    );
    sim.set_status(3 | status::FEATURES_OK).unwrap();
    assert_eq!(
        sim.get_status(),
        3,
        "without features there is no FEATURES_OK"
    );
    sim.set_status(3 | status::DRIVER_OK).unwrap();
    assert_eq!(sim.get_status(), 3, "nor DRIVER_OK without it");
    sim.reset().unwrap();
    negotiate(&sim, u64::MAX).unwrap();
    sim.set_status(15).unwrap();
    assert_eq!(sim.get_status(), 15);
    sim.set_status(0).unwrap();
    assert_eq!(sim.get_status(), 0);
}

#[test]
fn set_status_starts_queues_at_driver_ok_only() {
    let mut rig = rig();
    rig.sim.reset().unwrap();
    let memory = rig.memory.clone();
    let sim = rig.sim.clone();
    negotiate(&*sim, u64::MAX).unwrap();
    sim.set_map(0, &table(&memory)).unwrap();
    rig.driver = VdpaDriver::start(
        Arc::new(bare(Options::strict())),
        memory.clone(),
        &Setup {
            maps: &[(0, table(&memory))],
            ..Setup::default()
        },
    )
    .unwrap();
    virtio_blk_driver::vdpa::attach(&*sim, 0, rig.queue(0), None).unwrap();
    rig.queue(0).submit(&Request::flush()).unwrap();
    rig.queue(0).publish().unwrap();
    sim.kick_vq(0);
    rig.no_answer(0);
    sim.set_status(15).unwrap();
    assert!(rig.answer(0).is_ok());
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut rig = rig();
    let (callback, count) = counter();
    rig.sim.set_config_cb(Some(callback)).unwrap();
    let avail = rig.queue(0).ring().layout().avail().0;
    let index = GuestAddress(avail + 2);
    rig.memory.write_obj(1000u16, index).unwrap();
    rig.sim.kick_vq(0);
    rig.sim.run();
    assert_eq!(rig.sim.get_status(), 15 | status::DEVICE_NEEDS_RESET);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    rig.restart();
    assert!(rig.ask(0, &Request::flush()).is_ok());
}

#[test]
fn reset() {
    let mut rig = rig();
    let generation = rig.sim.get_generation();
    rig.ask(0, &Request::flush());
    rig.send(1, &Request::flush());
    rig.sim.reset().unwrap();
    rig.no_answer(1);
    assert_eq!(
        (rig.sim.get_status(), rig.sim.get_driver_features()),
        (0, 0)
    );
    assert!(!rig.sim.get_vq_ready(0));
    assert_eq!(rig.state(0), 0);
    assert_eq!(rig.sim.get_generation(), generation);
}

#[test]
fn compat_reset() {
    let memory = memory();
    let options = Options::strict().stepped().physical(physical(&memory));
    let mut rig = Rig::new(options, 1);
    // What the driver mapped survives a reset; clean, what the device was made with is back.
    for (clean, works) in [(false, true), (true, false)] {
        rig.sim.compat_reset(clean).unwrap();
        let setup = Setup::default();
        rig.driver = VdpaDriver::start(rig.sim.clone(), rig.memory.clone(), &setup).unwrap();
        rig.send(0, &Request::flush());
        rig.sim.run();
        assert_eq!(
            rig.queue(0).poll().unwrap().is_some(),
            works,
            "clean: {clean}"
        );
    }
}

#[test]
fn suspend_and_resume() {
    let mut rig = rig();
    rig.ask(0, &Request::flush());
    rig.sim.suspend().unwrap();
    rig.send(0, &Request::flush());
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    assert_eq!(rig.state(0), 1);
    assert_eq!(rig.sim.get_status(), 15);
    rig.sim.suspend().unwrap();
    rig.sim.resume().unwrap();
    assert!(
        rig.answer(0).is_ok() && rig.answer(0).is_ok(),
        "without another kick"
    );
    rig.sim.resume().unwrap();
    assert!(rig.ask(1, &Request::flush()).is_ok());
}

#[test]
fn suspend_before_driver_ok_does_nothing() {
    let mut rig = rig();
    rig.sim.reset().unwrap();
    rig.sim.suspend().unwrap();
    rig.restart();
    assert!(rig.ask(0, &Request::flush()).is_ok());
}

#[test]
fn suspended_queues_can_be_given_another_ring() {
    let mut rig = rig();
    rig.ask(0, &Request::write(3, &[9; 512]));
    rig.sim.suspend().unwrap();
    rig.sim.set_vq_ready(0, false).unwrap();
    let layout = virtio_blk_driver::ring::SplitLayout::contiguous(64, GuestAddress(0x70_0000));
    let arena = virtio_blk_driver::request::Arena::new(GuestAddress(0x71_0000), common::ARENA);
    let ring = virtio_blk_driver::ring::RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let memory = rig.memory.clone();
    let queue =
        virtio_blk_driver::request::Driver::new(memory, layout.unwrap(), ring, arena.unwrap());
    *rig.queue(0) = queue.unwrap();
    let sim = rig.sim.clone();
    virtio_blk_driver::vdpa::attach(&*sim, 0, rig.queue(0), None).unwrap();
    sim.resume().unwrap();
    assert_eq!(rig.read(0, 3, 512), [9; 512]);
    assert_eq!(rig.state(0), 1);
}

#[test]
fn get_config() {
    let sim = bare(Options::strict_queues(3));
    assert_eq!(sim.get_config_size(), config::SIZE);
    let mut whole = [0; config::SIZE];
    sim.get_config(0, &mut whole).unwrap();
    let parsed = config::Config::from_bytes(&whole);
    assert_eq!(
        (parsed.capacity, parsed.num_queues, parsed.blk_size),
        (0x4_0000, 3, 512)
    );
    let mut queues = [0; 2];
    sim.get_config(34, &mut queues).unwrap();
    assert_eq!(queues, [3, 0]);
    for (offset, len) in [(0, 0), (0, 97), (96, 1), (95, 2), (usize::MAX, 1)] {
        assert_eq!(errno(sim.get_config(offset, &mut vec![0; len])), EINVAL);
    }
}

#[test]
fn set_config() {
    let sim = bare(Options::strict());
    assert_eq!(
        errno(sim.set_config(config::WRITEBACK_OFFSET, &[0])),
        EINVAL,
        "not negotiated"
    );
    negotiate(&sim, u64::MAX).unwrap();
    sim.set_config(config::WRITEBACK_OFFSET, &[0]).unwrap();
    let mut writeback = [9];
    sim.get_config(config::WRITEBACK_OFFSET, &mut writeback)
        .unwrap();
    assert_eq!(writeback, [0]);
    assert_eq!(
        errno(sim.set_config(config::WRITEBACK_OFFSET, &[2])),
        EINVAL
    );
    assert_eq!(errno(sim.set_config(0, &[0; 8])), EINVAL, "read-only");
    assert_eq!(errno(sim.set_config(96, &[0])), EINVAL);
}

#[test]
fn get_iova_range() {
    let mut options = Options::strict();
    if let Profile::Strict(strict) = &mut options.profile {
        strict.iova_range = 0x1000..=0xffff;
    }
    let sim = bare(options);
    assert_eq!(sim.get_iova_range(), 0x1000..=0xffff);
    let memory = memory();
    sim.dma_map(0, mapping(&memory, 0x1000, 0, 0xf000)).unwrap();
    for (iova, len) in [(0x0, 0x1000), (0xf000, 0x2000)] {
        let outside = mapping(&memory, iova, 0, len);
        let mut table = IotlbTable::new();
        table.insert(outside.clone()).unwrap();
        assert_eq!(errno(sim.set_map(0, &table)), EINVAL);
        assert_eq!(errno(bare(Options::strict()).dma_map(1, outside)), EINVAL);
    }
}

#[test]
fn set_group_asid() {
    let mut rig = Rig::new(grouped(2, 2, 2), 2);
    // The second address space differs in its upper half.
    let (half, elsewhere) = (MEMORY / 2, memory());
    let mut second = IotlbTable::new();
    second.insert(mapping(&rig.memory, 0, 0, half)).unwrap();
    second
        .insert(mapping(&elsewhere, half as u64, half, half))
        .unwrap();
    rig.sim.set_map(1, &second).unwrap();
    assert!(rig.ask(0, &Request::write(0, &[5; 512])).is_ok());
    let upper = GuestAddress(half as u64);
    let segments = [Segment::new(upper, 512)];
    let read = Request::read(0, 0).with_input(In::Segments(&segments));
    let fills = |rig: &mut Rig, vq| {
        for memory in [&rig.memory, &elsewhere] {
            memory.write_slice(&[0; 512], upper).unwrap();
        }
        assert!(rig.ask(vq, &read).is_ok());
        [&rig.memory, &elsewhere].map(|memory| memory.read_obj::<u8>(upper).unwrap())
    };
    assert_eq!([fills(&mut rig, 0), fills(&mut rig, 1)], [[5, 0], [5, 0]]);
    rig.sim.set_group_asid(1, 1).unwrap();
    assert_eq!([fills(&mut rig, 0), fills(&mut rig, 1)], [[5, 0], [0, 5]]);
    rig.sim.set_group_asid(1, 0).unwrap();
    assert_eq!([fills(&mut rig, 0), fills(&mut rig, 1)], [[5, 0], [5, 0]]);
    assert_eq!(errno(rig.sim.set_group_asid(2, 0)), EINVAL);
    assert_eq!(errno(rig.sim.set_group_asid(0, 2)), EINVAL);
    // A reset gives all groups the first.
    rig.sim.set_group_asid(0, 1).unwrap();
    rig.restart();
    assert_eq!(fills(&mut rig, 0), [5, 0]);
}

#[test]
fn set_map() {
    let mut rig = rig();
    assert!(rig.ask(0, &Request::flush()).is_ok());
    // Only the lower half: buffers in the upper one are not reached, the ring is.
    let half = MEMORY / 2;
    let mut lower = IotlbTable::new();
    lower.insert(mapping(&rig.memory, 0, 0, half)).unwrap();
    rig.sim.set_map(0, &lower).unwrap();
    let upper = [Segment::new(GuestAddress(half as u64), 512)];
    let read = Request::read(0, 0).with_input(In::Segments(&upper));
    assert_eq!(rig.ask(0, &read).status, wire::S_IOERR);
    let all = table(&rig.memory);
    rig.sim.set_map(0, &all).unwrap();
    assert!(rig.ask(0, &read).is_ok());
    assert_eq!(
        errno(rig.sim.set_map(1, &all)),
        EINVAL,
        "no such address space"
    );
}

#[test]
fn set_map_of_too_many_ranges() {
    let mut options = Options::strict();
    options.max_mappings = 2;
    let sim = bare(options);
    let memory = memory();
    let mut table = IotlbTable::new();
    for page in 0..3 {
        let at = page * 0x2000;
        table
            .insert(mapping(&memory, at, at as usize, 0x1000))
            .unwrap();
        let answer = sim.set_map(0, &table);
        assert_eq!(answer.is_ok(), page < 2);
        assert!(page < 2 || errno(answer) == ENOSPC);
    }
}

#[test]
fn thousands_of_ranges_and_the_end_of_the_address_space() {
    const PAGES: u64 = 2048;
    let mut rig = rig();
    let high = memory();
    // The last pages of the address space, each somewhere else, one mapping after the other.
    let first = 0u64.wrapping_sub(PAGES * 4096);
    for page in 0..PAGES {
        let offset = (page * 1021 % PAGES) as usize * 4096;
        rig.sim
            .dma_map(0, mapping(&high, first + page * 4096, offset, 4096))
            .unwrap();
    }
    for sector in 0..8 {
        assert!(
            rig.ask(0, &Request::write(sector, &[sector as u8 + 1; 512]))
                .is_ok()
        );
    }
    // Buffers over the border of two pages, and up to the very end.
    let mut at = first + 4096 - 1024;
    for number in 0..200 {
        let segments = [Segment::new(GuestAddress(at), 4096)];
        let read = Request::read(0, 0).with_input(In::Segments(&segments));
        assert!(rig.ask(number % 2, &read).is_ok(), "{at:#x}");
        at += 4096 * 7;
    }
    let last = [Segment::new(GuestAddress(u64::MAX - 511), 512)];
    let read = Request::read(3, 0).with_input(In::Segments(&last));
    assert!(rig.ask(0, &read).is_ok());
    let offset = ((PAGES - 1) * 1021 % PAGES) * 4096 + 4096 - 512;
    assert_eq!(high.read_obj::<u8>(GuestAddress(offset)).unwrap(), 4);
    // One that wraps is refused, and nothing breaks.
    let wraps = [Segment::new(GuestAddress(u64::MAX - 511), 1024)];
    let read = Request::read(0, 0).with_input(In::Segments(&wraps));
    assert_eq!(rig.ask(0, &read).status, wire::S_IOERR);
    rig.sim.dma_unmap(0, first, PAGES * 4096).unwrap();
    assert_eq!(Arc::strong_count(&high), 1);
    assert!(rig.ask(0, &Request::flush()).is_ok());
}

#[test]
fn dma_map_and_dma_unmap() {
    let mut rig = rig();
    rig.sim.dma_unmap(0, 0, u64::MAX).unwrap();
    let (memory, half) = (rig.memory.clone(), MEMORY / 2);
    rig.sim.dma_map(0, mapping(&memory, 0, 0, half)).unwrap();
    assert!(
        rig.ask(0, &Request::flush()).is_ok(),
        "the ring is back, and goes on"
    );
    let upper = [Segment::new(GuestAddress(half as u64), 512)];
    let write = Request::write(0, &[]).with_out(Out::Segments(&upper));
    assert_eq!(rig.ask(0, &write).status, wire::S_IOERR);
    rig.sim
        .dma_map(0, mapping(&memory, half as u64, half, half))
        .unwrap();
    assert!(
        rig.ask(0, &write).is_ok(),
        "it is picked up without a restart"
    );
    let overlap = mapping(&memory, half as u64 - 1, 0, 2);
    assert_eq!(errno(rig.sim.dma_map(0, overlap)), EEXIST);
    assert_eq!(errno(rig.sim.dma_unmap(0, 0, 0)), EINVAL);
    assert_eq!(errno(rig.sim.dma_unmap(0, u64::MAX, 2)), EINVAL);
    assert_eq!(errno(rig.sim.dma_unmap(1, 0, 1)), EINVAL);
    // One byte of a mapping is enough to remove it, whole.
    rig.sim.dma_unmap(0, (MEMORY - 1) as u64, 1).unwrap();
    assert_eq!(rig.ask(0, &write).status, wire::S_IOERR);
    rig.sim.dma_unmap(0, u64::MAX, 1).unwrap();
}

#[test]
fn reset_map() {
    let memory = memory();
    let sim = Arc::new(
        BlkSim::in_memory(Options::strict().stepped().physical(physical(&memory))).unwrap(),
    );
    let mut driver = VdpaDriver::start(sim.clone(), memory, &Setup::default()).unwrap();
    let mut works = || {
        driver.queues()[0].submit(&Request::flush()).unwrap();
        driver.publish(0).unwrap();
        sim.run();
        driver.queues()[0].poll().unwrap().is_some()
    };
    assert!(works(), "what is physical is mapped at the making");
    sim.set_map(0, &IotlbTable::new()).unwrap();
    assert!(!works());
    sim.reset_map(0).unwrap();
    assert!(works());
    assert_eq!(errno(sim.reset_map(1)), EINVAL);
}

#[test]
fn bind_mm_and_unbind_mm() {
    let mut rig = rig();
    assert!(rig.sim.use_va());
    rig.sim.unbind_mm();
    assert!(rig.ask(0, &Request::flush()).is_ok(), "nothing was bound");
    let process = Arc::new(());
    rig.sim.bind_mm(process.clone()).unwrap();
    assert!(rig.ask(0, &Request::flush()).is_ok());
    assert_eq!(Arc::strong_count(&process), 2);
    rig.sim.unbind_mm();
    assert_eq!(Arc::strong_count(&process), 1);
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.bind_mm(process).unwrap();
    assert!(rig.answer(0).is_ok());
    let mut options = Options::strict();
    options.use_va = false;
    assert_eq!(errno(bare(options).bind_mm(Arc::new(()))), EOPNOTSUPP);
}

#[test]
fn free() {
    let mut rig = rig();
    let memory = Arc::new(());
    rig.sim.bind_mm(memory.clone()).unwrap();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    rig.sim.set_vq_kick(0, Some(kick)).unwrap();
    rig.send(0, &Request::flush());
    rig.sim.free();
    rig.no_answer(0);
    assert_eq!(Arc::strong_count(&memory), 1);
    assert_eq!(
        Arc::strong_count(&rig.memory),
        3,
        "two drivers and the test"
    );
    assert!(matches!(rig.sim.suspend(), Err(VdpaError::Gone)));
    assert_eq!(errno(rig.sim.set_vq_ready(0, true)), ENODEV);
    assert_eq!(errno(rig.sim.set_map(0, &IotlbTable::new())), ENODEV);
    assert_eq!(
        (
            rig.sim.nvqs(),
            rig.sim.get_status(),
            rig.sim.get_device_features()
        ),
        (0, 0, 0)
    );
    rig.sim.kick_vq(0);
    rig.sim.free();
}

#[test]
fn every_request_type_answers_as_the_specification_wants() {
    let mut rig = rig();
    let range = |sector, num_sectors, flags| wire::Range {
        sector,
        num_sectors,
        flags,
    };
    assert!(rig.ask(0, &Request::write(8, &[7; 4096])).is_ok());
    assert_eq!(rig.read(1, 8, 4096), [7; 4096]);
    assert!(rig.ask(0, &Request::flush()).is_ok());
    assert!(
        rig.ask(
            0,
            &Request::write_zeroes(&[range(9, 2, wire::RANGE_F_UNMAP)])
        )
        .is_ok()
    );
    let after = rig.read(0, 8, 4096);
    assert!(after[512..1536].iter().all(|b| *b == 0) && after[1536..].iter().all(|b| *b == 7));
    assert!(
        rig.ask(0, &Request::discard(&[range(8, 1, 0), range(0, 128, 0)]))
            .is_ok()
    );
    assert!(
        rig.ask(0, &Request::secure_erase(&[range(8, 8, 0)]))
            .is_ok()
    );
    let unsupported = [
        Request::new(77, 0),
        Request::get_lifetime(),
        Request::new(wire::T_FLUSH | 1 << 31, 0),
        Request::discard(&[wire::Range {
            sector: 0,
            num_sectors: 1,
            flags: 1,
        }]),
    ];
    for request in unsupported {
        assert_eq!(rig.ask(0, &request).status, wire::S_UNSUPP, "{request:?}");
    }
    let failing = [
        Request::read(0x4_0000, 512),
        Request::read(u64::MAX, 512),
        Request::read(0, 100),
        Request::write_zeroes(&[]),
    ];
    for request in failing {
        assert_eq!(rig.ask(0, &request).status, wire::S_IOERR, "{request:?}");
    }
    // The sector of other requests is ignored, and an identifier is cut to the room for it.
    assert!(rig.ask(0, &Request::new(wire::T_FLUSH, 99)).is_ok());
    let id = rig.ask(0, &Request::get_id());
    assert_eq!((id.is_ok(), id.len), (true, 21));
    let short = rig.ask(0, &Request::get_id().with_input(In::Len(10)));
    assert_eq!((short.is_ok(), short.len), (true, 11));
}

#[test]
fn shared_backend() {
    let disk = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let mut a = Rig::over(disk.clone(), Options::strict().stepped(), 1);
    let mut b = Rig::over(disk.clone(), Options::compat().stepped(), 1);
    let mut c = Rig::over(disk, Options::strict(), 1);
    assert!(a.ask(0, &Request::write(5, &[1; 512])).is_ok());
    assert_eq!(b.read(0, 5, 512), [1; 512]);
    assert!(b.ask(0, &Request::write(6, &[2; 512])).is_ok());
    assert_eq!(c.read(0, 6, 512), [2; 512]);
    a.sim.free();
    assert_eq!(c.read(0, 5, 512), [1; 512], "the others go on");
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `compat` profile, operation by operation: the behaviour of the kernel's `vdpa_sim_blk` (6.12).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{MEMORY, Rig, counter, errno, mapping, memory, physical, table};
use sim_backend::{BlkSim, Options, Profile};
use vdpa_bus::{VdpaDevice, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::config::Config;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{Framing, In, Out, Request};
use virtio_blk_driver::vdpa::{Setup, VdpaDriver, negotiate};
use virtio_blk_driver::{Segment, wire};
use vm_memory::{Bytes, GuestAddress};

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
const LEAST: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;

fn rig() -> Rig {
    Rig::new(Options::compat().stepped(), 1)
}

fn bare() -> BlkSim {
    BlkSim::in_memory(Options::compat().stepped()).unwrap()
}

/// With `batch_mapping=0`.
fn unbatched() -> Options {
    let mut options = Options::compat().stepped();
    if let Profile::Compat(compat) = &mut options.profile {
        compat.batch_mapping = false;
    }
    options
}

fn range(sector: u64, num_sectors: u32, flags: u32) -> wire::Range {
    wire::Range {
        sector,
        num_sectors,
        flags,
    }
}

#[test]
fn constants() {
    let sim = bare();
    assert_eq!((sim.nvqs(), sim.ngroups(), sim.nas()), (1, 1, 1));
    assert_eq!((sim.get_device_id(), sim.get_vendor_id()), (2, 0));
    assert_eq!((sim.get_vq_align(), sim.get_vq_num_max()), (4096, 256));
    assert_eq!(sim.get_device_features(), 0x3_0800_7646);
    assert_eq!(sim.get_backend_features(), 0x17e);
    assert_eq!(sim.get_iova_range(), 0..=u64::MAX);
    assert!(sim.use_va());
}

#[test]
fn set_vq_address_and_set_vq_num_are_not_validated() {
    let mut rig = rig();
    rig.sim
        .set_vq_address(
            0,
            VqAddress {
                desc: 3,
                driver: 5,
                device: 7,
            },
        )
        .unwrap();
    rig.sim.set_vq_num(0, 77).unwrap();
    assert!(
        rig.ask(0, &Request::flush()).is_ok(),
        "used when it becomes ready the next time"
    );
    assert_eq!(errno(rig.sim.set_vq_num(1, 4)), EINVAL, "only the queue");
}

#[test]
fn set_vq_num_that_can_not_be_fails_silently() {
    let mut rig = rig();
    rig.sim.set_vq_ready(0, false).unwrap();
    rig.sim.set_vq_num(0, 77).unwrap();
    rig.sim.set_vq_ready(0, true).unwrap();
    assert!(rig.sim.get_vq_ready(0));
    // The ring it had before goes on.
    assert!(rig.ask(0, &Request::flush()).is_ok());
    // After a reset there is one at address 0, where nothing is available.
    rig.sim.reset().unwrap();
    negotiate(&*rig.sim.clone(), u64::MAX).unwrap();
    rig.sim.set_vq_ready(0, true).unwrap();
    rig.sim.set_status(15).unwrap();
    rig.sim.kick_vq(0);
    rig.sim.run();
    assert_eq!(rig.state(0), 0);
}

#[test]
fn get_vq_size() {
    assert_eq!(
        errno(bare().get_vq_size(0)),
        EOPNOTSUPP,
        "with batch_mapping"
    );
    let sim = BlkSim::in_memory(unbatched()).unwrap();
    assert_eq!(sim.get_vq_size(0).unwrap(), 256);
    sim.set_vq_num(0, 64).unwrap();
    sim.set_status(4).unwrap();
    assert_eq!(sim.get_vq_size(0).unwrap(), 64);
}

#[test]
fn set_vq_ready_and_get_vq_ready() {
    let mut rig = rig();
    assert!(rig.sim.get_vq_ready(0) && !rig.sim.get_vq_ready(1));
    rig.sim.set_vq_ready(0, false).unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.set_vq_ready(0, true).unwrap();
    // The kick was for a queue that was not ready.
    rig.no_answer(0);
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
}

#[test]
fn set_vq_state_and_get_vq_state() {
    let mut rig = rig();
    rig.ask(0, &Request::flush());
    assert_eq!(rig.state(0), 1);
    rig.sim
        .set_vq_state(0, VqState::Split { avail_index: 9 })
        .unwrap();
    assert_eq!(rig.state(0), 9, "at any time");
    rig.sim.reset().unwrap();
    assert_eq!(rig.state(0), 0);
    let packed = VqState::from_vring_base(0x8000_8000, true).unwrap();
    assert_eq!(errno(rig.sim.set_vq_state(0, packed)), EINVAL);
    // In the middle of a ring, where what is used goes on too.
    let memory = rig.memory.clone();
    let setup = Setup {
        start: 0xffff,
        maps: &[(0, table(&memory))],
        ..Setup::default()
    };
    rig.driver = VdpaDriver::start(rig.sim.clone(), memory.clone(), &setup).unwrap();
    assert!(rig.ask(0, &Request::flush()).is_ok() && rig.ask(0, &Request::flush()).is_ok());
    assert_eq!(rig.state(0), 1);
}

#[test]
fn kick_vq_takes_five_requests_a_pass() {
    let mut rig = rig();
    for _ in 0..12 {
        rig.queue(0).submit(&Request::flush()).unwrap();
    }
    rig.driver.publish(0).unwrap();
    for (steps, done) in [(true, 5), (true, 10), (false, 12)] {
        assert_eq!(rig.sim.step(), steps);
        assert_eq!(rig.state(0), done);
    }
}

#[test]
fn set_vq_cb_is_called_for_each_request() {
    let mut rig = rig();
    let (callback, count) = counter();
    rig.sim.set_vq_cb(0, Some(callback)).unwrap();
    for _ in 0..3 {
        rig.queue(0).submit(&Request::flush()).unwrap();
    }
    rig.driver.publish(0).unwrap();
    rig.sim.run();
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let (ring, mem) = rig.queue(0).ring_mut();
    ring.disable_interrupts(mem).unwrap();
    rig.ask(0, &Request::flush());
    assert_eq!(
        count.load(Ordering::SeqCst),
        3,
        "unless it does not want to hear"
    );
}

#[test]
fn set_config_cb_does_nothing() {
    let disk = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let rig = Rig::over(disk.clone(), Options::compat().stepped(), 1);
    let (callback, count) = counter();
    rig.sim.set_config_cb(Some(callback)).unwrap();
    disk.resize(4096).unwrap();
    let mut capacity = [0; 8];
    rig.sim.get_config(0, &mut capacity).unwrap();
    assert_eq!(
        (u64::from_le_bytes(capacity), count.load(Ordering::SeqCst)),
        (2048, 0)
    );
}

#[test]
fn get_vq_group_and_set_group_asid() {
    let sim = bare();
    assert_eq!(sim.get_vq_group(0).unwrap(), 0);
    sim.set_group_asid(0, 0).unwrap();
    assert_eq!(errno(sim.set_group_asid(1, 0)), EINVAL);
    assert_eq!(errno(sim.set_group_asid(0, 1)), EINVAL);
}

#[test]
fn set_driver_features_are_masked_silently() {
    let sim = bare();
    assert_eq!(errno(sim.set_driver_features(feature::VERSION_1)), EINVAL);
    sim.set_driver_features(u64::MAX).unwrap();
    assert_eq!(sim.get_driver_features(), 0x3_0800_7646);
    // At any time, and nothing is checked at FEATURES_OK.
    sim.set_status(15).unwrap();
    sim.set_driver_features(feature::ACCESS_PLATFORM).unwrap();
    assert_eq!(sim.get_status(), 15);
}

#[test]
fn set_status_and_get_status_store() {
    let sim = bare();
    for status in [1, 0x87, 4, 2] {
        sim.set_status(status).unwrap();
        assert_eq!(sim.get_status(), status);
    }
    sim.set_status(0).unwrap();
    assert_eq!(sim.get_generation(), 1, "0 resets");
}

#[test]
fn reset_and_generation() {
    let mut rig = rig();
    let before = rig.sim.get_generation();
    rig.send(0, &Request::flush());
    rig.sim.reset().unwrap();
    rig.no_answer(0);
    assert_eq!(rig.sim.get_generation(), before + 1);
    assert_eq!(
        (rig.sim.get_status(), rig.sim.get_driver_features()),
        (0, 0)
    );
    assert!(!rig.sim.get_vq_ready(0));
}

#[test]
fn compat_reset() {
    let memory = memory();
    let mut rig = Rig::new(Options::compat().stepped().physical(physical(&memory)), 1);
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
fn suspend_and_resume_remember_kicks_that_came_while_suspended() {
    let mut rig = rig();
    rig.sim.suspend().unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.resume().unwrap();
    assert!(rig.answer(0).is_ok());
}

#[test]
fn suspend_loses_a_kick_whose_pass_came_after_it() {
    let mut rig = rig();
    rig.send(0, &Request::flush());
    rig.sim.suspend().unwrap();
    rig.no_answer(0);
    rig.sim.resume().unwrap();
    rig.no_answer(0);
    rig.sim.kick_vq(0);
    assert!(
        rig.answer(0).is_ok(),
        "after a resume each queue needs a kick"
    );
    // So is the rest of a pass.
    for _ in 0..7 {
        rig.queue(0).submit(&Request::flush()).unwrap();
    }
    rig.driver.publish(0).unwrap();
    rig.sim.step();
    rig.sim.suspend().unwrap();
    rig.sim.run();
    rig.sim.resume().unwrap();
    rig.sim.run();
    assert_eq!(rig.state(0), 6);
    // Where the pass comes after the resume, nothing is lost.
    rig.sim.kick_vq(0);
    rig.sim.suspend().unwrap();
    rig.sim.resume().unwrap();
    rig.sim.run();
    assert_eq!(rig.state(0), 8);
}

#[test]
fn resume_runs_a_device_that_was_never_started() {
    let mut rig = rig();
    rig.sim.set_status(11).unwrap();
    rig.send(0, &Request::flush());
    rig.sim.resume().unwrap();
    rig.no_answer(0);
    rig.sim.set_status(15).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
}

#[test]
fn a_pending_kick_survives_a_reset() {
    let mut rig = rig();
    rig.sim.suspend().unwrap();
    rig.sim.kick_vq(0);
    rig.restart();
    rig.sim.run();
    rig.queue(0).submit(&Request::flush()).unwrap();
    rig.queue(0).publish().unwrap();
    rig.no_answer(0);
    rig.sim.resume().unwrap();
    assert!(rig.answer(0).is_ok(), "of the life before");
}

#[test]
fn get_config() {
    let sim = bare();
    let mut bytes = [0; 96];
    sim.get_config(0, &mut bytes).unwrap();
    let expected = Config {
        capacity: 0x4_0000,
        size_max: 0x1000,
        seg_max: 32,
        blk_size: 512,
        min_io_size: 1,
        opt_io_size: 1,
        num_queues: 1,
        max_discard_sectors: u32::MAX,
        max_discard_seg: 1,
        discard_sector_alignment: 512,
        max_write_zeroes_sectors: u32::MAX,
        max_write_zeroes_seg: 1,
        ..Config::default()
    };
    assert_eq!(Config::from_bytes(&bytes), expected);
    let mut beyond = [9; 2];
    sim.get_config(95, &mut beyond).unwrap();
    sim.get_config(usize::MAX, &mut beyond).unwrap();
    assert_eq!(beyond, [9; 2], "what does not fit leaves the buffer alone");
}

#[test]
fn set_config_is_lost() {
    let sim = bare();
    sim.set_config(0, &[1; 8]).unwrap();
    sim.set_config(95, &[1; 8]).unwrap();
    let mut capacity = [0; 8];
    sim.get_config(0, &mut capacity).unwrap();
    assert_eq!(u64::from_le_bytes(capacity), 0x4_0000);
}

#[test]
fn set_map() {
    let mut rig = rig();
    let all = table(&rig.memory);
    assert!(rig.ask(0, &Request::flush()).is_ok());
    rig.sim.set_map(0, &IotlbTable::new()).unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.set_map(0, &all).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
    assert_eq!(errno(rig.sim.set_map(1, &all)), EINVAL);
    let page = mapping(&rig.memory, 0, 0, 0x1000);
    assert_eq!(errno(rig.sim.dma_map(0, page)), EOPNOTSUPP);
    assert_eq!(errno(rig.sim.dma_unmap(0, 0, 1)), EOPNOTSUPP);
}

#[test]
fn set_map_that_fails_leaves_an_empty_map() {
    let mut options = Options::compat().stepped();
    options.max_mappings = 1;
    let mut rig = Rig::new(options, 1);
    let mut two = IotlbTable::new();
    for page in [0, 0x2000] {
        two.insert(mapping(&rig.memory, page, 0, 0x1000)).unwrap();
    }
    assert_eq!(errno(rig.sim.set_map(0, &two)), 28);
    rig.send(0, &Request::flush());
    rig.no_answer(0);
}

#[test]
fn dma_map_and_dma_unmap() {
    let memory = memory();
    let sim = Arc::new(BlkSim::in_memory(unbatched().physical(physical(&memory))).unwrap());
    let mut driver = VdpaDriver::start(sim.clone(), memory.clone(), &Setup::default()).unwrap();
    let mut works = || {
        driver.queues()[0].submit(&Request::flush()).unwrap();
        driver.publish(0).unwrap();
        sim.kick_vq(0);
        sim.run();
        let mut answers = 0;
        while driver.queues()[0].poll().unwrap().is_some() {
            answers += 1;
        }
        answers
    };
    assert_eq!(works(), 1, "the identity map");
    // The first mapping takes its place.
    let high = 1 << 40;
    sim.dma_map(0, mapping(&memory, high, 0, 0x1000)).unwrap();
    assert_eq!(works(), 0);
    sim.dma_map(0, mapping(&memory, 0, 0, MEMORY)).unwrap();
    assert_eq!(works(), 2);
    assert_eq!(
        errno(sim.dma_map(0, mapping(&memory, high + 1, 0, 1))),
        EEXIST
    );
    sim.dma_unmap(0, 5, 1).unwrap();
    assert_eq!(works(), 0, "whole");
    sim.reset_map(0).unwrap();
    assert_eq!(works(), 2);
    // So does the removal of nothing.
    sim.dma_unmap(0, high, 1).unwrap();
    assert_eq!(works(), 0);
    assert_eq!(errno(sim.set_map(0, &IotlbTable::new())), EOPNOTSUPP);
    assert_eq!(errno(sim.dma_map(1, mapping(&memory, 0, 0, 1))), EINVAL);
    assert_eq!(errno(sim.dma_unmap(1, 0, 1)), EINVAL);
}

#[test]
fn reset_map() {
    let memory = memory();
    let mut rig = Rig::new(Options::compat().stepped().physical(physical(&memory)), 1);
    // Its driver's memory is not the one it was made with: nothing is found there.
    rig.sim.reset_map(0).unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.reset_map(0).unwrap();
    assert_eq!(errno(rig.sim.reset_map(1)), EINVAL);
    let all = table(&rig.memory);
    rig.sim.set_map(0, &all).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
}

#[test]
fn bind_mm_and_unbind_mm() {
    let mut rig = rig();
    let process = Arc::new(());
    rig.sim.bind_mm(process.clone()).unwrap();
    assert!(rig.ask(0, &Request::flush()).is_ok());
    rig.sim.unbind_mm();
    assert_eq!(Arc::strong_count(&process), 1);
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.bind_mm(process).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
}

#[test]
fn get_vendor_vq_stats() {
    assert_eq!(errno(bare().get_vendor_vq_stats(0)), EOPNOTSUPP);
}

#[test]
fn free() {
    let mut rig = rig();
    rig.send(0, &Request::flush());
    rig.sim.free();
    rig.no_answer(0);
    assert_eq!(errno(rig.sim.resume()), ENODEV);
    assert_eq!(Arc::strong_count(&rig.memory), 2, "driver and test");
}

#[test]
fn in_and_out_take_any_length_up_to_64_mib() {
    let mut rig = rig();
    assert!(rig.ask(0, &Request::write(8, &[1; 8192])).is_ok());
    // No whole number of sectors.
    assert!(rig.ask(0, &Request::write(8, &[2; 700])).is_ok());
    let odd = rig.ask(0, &Request::read(8, 1000));
    assert_eq!((odd.is_ok(), odd.len), (true, 1001));
    let data = rig.data(0, odd.token, 1000);
    assert!(data[..700].iter().all(|b| *b == 2) && data[700..].iter().all(|b| *b == 1));
    // 131072 sectors, and one more. The same memory again and again.
    let mut segments = vec![Segment::new(GuestAddress(0x40_0000), 4 << 20); 16];
    let done = rig.ask(0, &Request::read(0, 0).with_input(In::Segments(&segments)));
    assert_eq!((done.status, done.len), (wire::S_OK, (64 << 20) + 1));
    segments.push(Segment::new(GuestAddress(0x40_0000), 512));
    let done = rig.ask(0, &Request::read(0, 0).with_input(In::Segments(&segments)));
    assert_eq!((done.status, done.len), (wire::S_IOERR, 1));
}

#[test]
fn in_and_out_outside_the_disk_are_refused() {
    let mut rig = rig();
    let end = 0x4_0000;
    for sector in [end, end + 1, end + 2, 1 << 55, u64::MAX] {
        assert_eq!(
            rig.ask(0, &Request::read(sector, 512)).status,
            wire::S_IOERR,
            "{sector:#x}"
        );
        assert_eq!(
            rig.ask(0, &Request::write(sector, &[1; 512])).status,
            wire::S_IOERR
        );
    }
    assert!(rig.ask(0, &Request::read(end - 1, 512)).is_ok());
    // The kernel reads and writes up to 511 bytes behind its buffer.
    assert_eq!(
        rig.ask(0, &Request::read(end - 1, 513)).status,
        wire::S_IOERR
    );
    assert_eq!(
        rig.ask(0, &Request::write(end, &[1; 100])).status,
        wire::S_IOERR
    );
}

#[test]
fn other_requests_need_sector_0() {
    let mut rig = rig();
    for kind in [wire::T_FLUSH, wire::T_GET_ID, wire::T_DISCARD, 77] {
        let done = rig.ask(0, &Request::new(kind, 1));
        assert_eq!((done.status, done.len), (wire::S_IOERR, 1), "{kind}");
    }
    assert!(rig.ask(0, &Request::flush()).is_ok());
}

#[test]
fn unknown_types_fail() {
    let mut rig = rig();
    for kind in [2, 9, wire::T_GET_LIFETIME, wire::T_SECURE_ERASE, u32::MAX] {
        assert_eq!(
            rig.ask(0, &Request::new(kind, 0)).status,
            wire::S_IOERR,
            "{kind}"
        );
    }
}

#[test]
fn get_id_pushes_20_bytes_whatever_the_room() {
    let mut rig = rig();
    let done = rig.ask(0, &Request::get_id());
    assert_eq!((done.status, done.len), (wire::S_OK, 21));
    assert_eq!(
        rig.data(0, done.token, 20),
        *b"vdpa_blk_sim\0\0\0\0\0\0\0\0"
    );
    let done = rig.ask(0, &Request::get_id().with_input(In::Len(512)));
    assert_eq!((done.status, done.len), (wire::S_OK, 21));
    // Over the status, and without a notification.
    let (callback, count) = counter();
    rig.sim.set_vq_cb(0, Some(callback)).unwrap();
    let done = rig.ask(0, &Request::get_id().with_input(In::Len(10)));
    assert_eq!((done.status, done.len), (b'i', 11));
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn discard_is_forgotten_and_write_zeroes_zeroes() {
    let mut rig = rig();
    assert!(rig.ask(0, &Request::write(0, &[3; 4096])).is_ok());
    assert!(rig.ask(0, &Request::discard(&[range(0, 8, 0)])).is_ok());
    assert_eq!(rig.read(0, 0, 4096), [3; 4096]);
    for (flags, sector) in [(0, 1), (wire::RANGE_F_UNMAP, 3)] {
        assert!(
            rig.ask(0, &Request::write_zeroes(&[range(sector, 1, flags)]))
                .is_ok()
        );
    }
    let sums: Vec<u64> = rig
        .read(0, 0, 4096)
        .chunks(512)
        .map(|s| s.iter().map(|b| u64::from(*b)).sum())
        .collect();
    assert_eq!(sums, [1536, 0, 1536, 0, 1536, 1536, 1536, 1536]);
    assert_eq!(
        rig.ask(0, &Request::discard(&[range(0, 1, 1)])).status,
        wire::S_UNSUPP
    );
    assert_eq!(
        rig.ask(0, &Request::write_zeroes(&[range(0, 1, 2)])).status,
        wire::S_UNSUPP
    );
    let bad: [&[wire::Range]; 5] = [
        &[],
        &[range(0, 1, 0), range(1, 1, 0)],
        &[range(0x4_0000, 1, 0)],
        &[range(0x3_ffff, 2, 0)],
        &[range(u64::MAX, 1, 0)],
    ];
    for ranges in bad {
        for request in [Request::discard(ranges), Request::write_zeroes(ranges)] {
            assert_eq!(rig.ask(0, &request).status, wire::S_IOERR, "{request:?}");
        }
    }
    // To the last sector, all of it.
    assert!(
        rig.ask(0, &Request::write_zeroes(&[range(0, 0x4_0000, 0)]))
            .is_ok()
    );
    assert_eq!(rig.read(0, 0, 512), [0; 512]);
}

#[test]
fn a_request_without_header_or_status_ends_the_pass() {
    let mut rig = rig();
    let (callback, count) = counter();
    rig.sim.set_vq_cb(0, Some(callback)).unwrap();
    let no_status = Request {
        status: false,
        ..Request::flush()
    };
    let short_header = Request {
        header_len: 15,
        ..Request::flush()
    };
    // The last writable buffer is empty.
    let empty_status = Request::flush().framed(Framing::Cut {
        readable: &[],
        writable: &[1, 0],
    });
    assert!(
        rig.ask(0, &empty_status).is_ok(),
        "where nothing is cut off nothing changes"
    );
    let interrupts = count.load(Ordering::SeqCst);
    for request in [no_status, short_header] {
        rig.send(0, &request);
        rig.queue(0).submit(&Request::flush()).unwrap();
        rig.driver.publish(0).unwrap();
        rig.sim.run();
        let done = rig.queue(0).poll().unwrap().unwrap();
        assert_eq!(
            (done.status, done.len),
            (wire::S_UNWRITTEN, 0),
            "{request:?}"
        );
        assert_eq!(
            rig.queue(0).poll().unwrap(),
            None,
            "the one behind waits for a kick"
        );
        assert_eq!(count.load(Ordering::SeqCst), interrupts);
        rig.sim.kick_vq(0);
        rig.sim.run();
        assert!(rig.queue(0).poll().unwrap().unwrap().is_ok());
        let now = count.swap(interrupts, Ordering::SeqCst);
        assert_eq!(now, interrupts + 1);
    }
}

#[test]
fn a_chain_that_can_not_be_read_is_swallowed() {
    let mut rig = rig();
    let desc = rig.queue(0).ring().layout().desc();
    rig.queue(0).submit(&Request::flush()).unwrap();
    // Its first descriptor goes on at itself.
    rig.memory
        .write_obj(1u16, GuestAddress(desc.0 + 12))
        .unwrap();
    rig.memory
        .write_obj(0u16, GuestAddress(desc.0 + 14))
        .unwrap();
    rig.driver.publish(0).unwrap();
    rig.no_answer(0);
    assert_eq!(rig.state(0), 1, "taken, and never returned");
    assert!(rig.ask(0, &Request::read(0, 512)).is_ok());
}

#[test]
fn indirect_tables_are_taken_although_not_offered() {
    let mut rig = rig();
    rig.sim.reset().unwrap();
    let sim = rig.sim.clone();
    negotiate(&*sim, LEAST).unwrap();
    let layout = virtio_blk_driver::ring::SplitLayout::contiguous(64, GuestAddress(0x1000));
    let arena = virtio_blk_driver::request::Arena::new(GuestAddress(0x1_0000), common::ARENA);
    let ring = virtio_blk_driver::ring::RingConfig {
        event_idx: false,
        indirect: true,
        start: 0,
    };
    let memory = rig.memory.clone();
    *rig.queue(0) =
        virtio_blk_driver::request::Driver::new(memory, layout.unwrap(), ring, arena.unwrap())
            .unwrap();
    virtio_blk_driver::vdpa::attach(&*sim, 0, rig.queue(0), None).unwrap();
    sim.set_status(15).unwrap();
    assert!(
        rig.ask(0, &Request::write(7, &[4; 512]).indirect(true))
            .is_ok()
    );
    assert_eq!(rig.read(0, 7, 512), [4; 512]);
}

#[test]
fn data_that_is_not_mapped() {
    let mut rig = rig();
    let (callback, count) = counter();
    rig.sim.set_vq_cb(0, Some(callback)).unwrap();
    let good = Segment::new(GuestAddress(0x40_0000), 512);
    let bad = Segment::new(GuestAddress(1 << 40), 512);
    // The first buffer: answered as it should be.
    let done = rig.ask(
        0,
        &Request::read(0, 0).with_input(In::Segments(&[bad, good])),
    );
    assert_eq!((done.status, done.len), (wire::S_IOERR, 1));
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let done = rig.ask(
        0,
        &Request::write(0, &[]).with_out(Out::Segments(&[good, bad])),
    );
    assert_eq!((done.status, done.len), (wire::S_IOERR, 1));
    // A later one: the status lands nowhere, and nobody is told.
    let before = count.load(Ordering::SeqCst);
    let done = rig.ask(
        0,
        &Request::read(0, 0).with_input(In::Segments(&[good, bad])),
    );
    assert_eq!((done.status, done.len), (wire::S_UNWRITTEN, 0));
    assert_eq!(count.load(Ordering::SeqCst), before);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Features, status, configuration, and what ends a device.

use super::*;

#[test]
fn get_device_features() {
    let sim = bare(SimOptions::strict_queues(2));
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
    let sim = bare(SimOptions::strict());
    assert_eq!(sim.get_backend_features(), 0x17e);
}

#[test]
fn set_driver_features_and_get_driver_features() {
    let sim = bare(SimOptions::strict());
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
    let mut rig = Rig::over(disk.clone(), SimOptions::strict().stepped(), 1);
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
    let sim = bare(SimOptions::strict());
    assert_eq!((sim.get_device_id(), sim.get_vendor_id()), (2, 0));
}

#[test]
fn set_status_and_get_status() {
    let sim = bare(SimOptions::strict());
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
        Arc::new(bare(SimOptions::strict())),
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
    common::compat_reset(SimOptions::strict());
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
fn get_config() {
    let sim = bare(SimOptions::strict_queues(3));
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
    let sim = bare(SimOptions::strict());
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
    let mut a = Rig::over(disk.clone(), SimOptions::strict().stepped(), 1);
    let mut b = Rig::over(disk.clone(), SimOptions::compat().stepped(), 1);
    let mut c = Rig::over(disk, SimOptions::strict(), 1);
    assert!(a.ask(0, &Request::write(5, &[1; 512])).is_ok());
    assert_eq!(b.read(0, 5, 512), [1; 512]);
    assert!(b.ask(0, &Request::write(6, &[2; 512])).is_ok());
    assert_eq!(c.read(0, 6, 512), [2; 512]);
    a.sim.free();
    assert_eq!(c.read(0, 5, 512), [1; 512], "the others go on");
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues, features, status, configuration, and what ends a device.

use super::*;

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
    // The ring it had before continues.
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
    // In the middle of a ring, where what is used continues too.
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
    let rig = Rig::over(disk.clone(), SimOptions::compat().stepped(), 1);
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
    common::compat_reset(SimOptions::compat());
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

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations on queues.

use super::*;

#[test]
fn set_vq_address() {
    let sim = bare(SimOptions::strict());
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
    let sim = bare(SimOptions::strict());
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
    let mut rig = Rig::new(SimOptions::strict(), 1);
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
    // A ring that continues in the middle, over the wrap of the index.
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
    let sim = bare(SimOptions::strict());
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

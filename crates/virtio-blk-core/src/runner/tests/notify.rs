// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the driver is told, and when it has to tell.

use malformed_queues::on_each_memory;
use virtio_blk_driver::request::Framing;

use super::*;

#[test]
fn a_queue_that_is_not_serviced_does_nothing() {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    let mut rig = Rig::new(
        &Arc::new(mem),
        &mut space,
        disk(Mode::Inline, WaitKind::Inline),
    );
    rig.queue(&Request::read(0, 512));
    assert_eq!(rig.irqs(), 1, "that of the start");
    assert!(rig.answers().is_empty());
    assert!(rig.disk.take_ops().is_empty());
    let irqs = rig.irqs.clone();
    let mut driver = rig.driver;
    drop(rig.runner);
    assert_eq!(irqs.load(Ordering::SeqCst), 1);
    assert!(driver.poll().unwrap().is_none());
}

/// Also at index 0: the indices wrap, and the interrupt for what an earlier owner returned may be lost.
#[test]
fn every_start_tells_the_driver_once() {
    for start in [0, 1, 65_535] {
        let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
        let disk = disk(Mode::Inline, WaitKind::Inline);
        let mut rig = Rig::with(&Arc::new(mem), &mut space, disk, true, start);
        assert_eq!(rig.irqs(), 1);
        assert_eq!(rig.runner.counters().interrupts.get(), 1);
        rig.settle();
        assert_eq!(rig.irqs(), 1);
    }
}

#[test]
fn the_driver_is_told_when_it_asked_for_it() {
    for event_idx in [false, true] {
        for (mode, wait) in [
            (Mode::Inline, WaitKind::Inline),
            (Mode::AtFlush, WaitKind::Fd),
        ] {
            on_each_memory!(MEMORY, |mem, space| {
                let mut rig = Rig::with(&mem, &mut space, disk(mode, wait), event_idx, 65_530);
                for round in 0..60u16 {
                    // After this many more: with EVENT_IDX, else after each.
                    let (ring, mem) = rig.driver.ring_mut();
                    ring.interrupt_after(mem, round % 7).unwrap();
                    let before = rig.runner.counters().interrupts.get();
                    let heard = rig.irqs();
                    for sector in 0..1 + round % 5 {
                        rig.queue(&Request::read(sector.into(), 512));
                    }
                    rig.run();
                    let (ring, mem) = rig.driver.ring_mut();
                    let due = ring.interrupt_due(mem).unwrap();
                    assert_eq!(rig.irqs() > heard, due, "round {round}");
                    // What is counted is what was raised; the start told once as well.
                    let raised = rig.runner.counters().interrupts.get() - before;
                    assert_eq!(rig.irqs() - heard, raised);
                    rig.answers();
                }
            });
        }
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    for event_idx in [false, true] {
        on_each_memory!(MEMORY, |mem, space| {
            let disk = disk(Mode::AtFlush, WaitKind::Fd);
            let mut rig = Rig::with(&mem, &mut space, disk, event_idx, 0);
            for sector in 0..200 {
                let (ring, mem) = rig.driver.ring_mut();
                ring.disable_interrupts(mem).unwrap();
                rig.queue(&Request::read(sector % SECTORS, 512));
                rig.run();
                assert_eq!(rig.answers().len(), 1);
            }
            assert_eq!(rig.irqs(), 1, "that of the start");
        });
    }
}

#[test]
fn kicks_are_needed_when_the_device_rests_and_only_then() {
    for event_idx in [false, true] {
        on_each_memory!(MEMORY, |mem, space| {
            let disk = disk(Mode::Held, WaitKind::Fd);
            let mut rig = Rig::with(&mem, &mut space, disk, event_idx, 65_530);
            let kick = |rig: &mut Rig<_>| {
                rig.driver.submit(&Request::flush().indirect(true)).unwrap();
                rig.driver.publish().unwrap()
            };
            assert_eq!(rig.settle(), Service::Idle);
            assert!(kick(&mut rig), "it rests");
            kick(&mut rig);
            kick(&mut rig);
            // It stopped in the middle and comes back by itself.
            assert_eq!(rig.runner.service(1), Service::More);
            assert!(!kick(&mut rig), "it does not rest");
            assert_eq!(rig.settle(), Service::Idle);
            assert!(kick(&mut rig), "it rests");
            // A kick for nothing, and one that came twice.
            for _ in 0..3 {
                assert_eq!(rig.settle(), Service::Idle);
            }
            assert_eq!(rig.runner.in_flight(), 5);
        });
    }
}

#[test]
fn large_requests_use_a_pass_up_sooner() {
    let (mem, mut space) = malformed_queues::testmem::single(2 << 20).unwrap();
    let mem = Arc::new(mem);
    let device = device(&disk(Mode::Inline, WaitKind::Inline));
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 0,
    };
    let arena = ArenaConfig {
        slots: 8,
        data_len: 128 << 10,
        ..ARENA
    };
    let mut driver = space.driver(mem.clone(), 32, config, arena).unwrap();
    let setup = QueueSetup::new(mem, || {});
    let mut runner = device.start_queue(0, setup, driver.state()).unwrap();
    for framing in [Framing::Separate, Framing::Merged] {
        for _ in 0..4 {
            let request = Request::read(0, 128 << 10).framed(framing);
            driver.submit(&request).unwrap();
        }
        driver.publish().unwrap();
        // Each counts three times.
        for (budget, passed) in [(1, 1), (3, 1), (4, 2)] {
            assert_eq!(runner.service(budget), Service::More);
            for _ in 0..passed {
                assert!(driver.poll().unwrap().is_some());
            }
            assert!(driver.poll().unwrap().is_none());
        }
        assert_eq!(runner.service(1), Service::Idle);
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that are late, out of order, full, wrong or broken.

use std::time::{Duration, Instant};

use malformed_queues::on_each_memory;
use virtio_blk_driver::wire::{Range as WireRange, S_IOERR, S_OK};

use super::*;
use crate::disk::Token as DiskToken;
use crate::testdisk::{Break, Event};

/// A rig in one region of memory.
fn rig(mode: Mode, wait: WaitKind) -> Rig<vm_memory::GuestMemoryMmap<()>> {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    Rig::new(&Arc::new(mem), &mut space, disk(mode, wait))
}

fn ranges(count: u64) -> Vec<WireRange> {
    (0..count)
        .map(|n| WireRange {
            sector: 2 * n,
            num_sectors: 1,
            flags: 0,
        })
        .collect()
}

#[test]
fn completions_go_back_in_the_order_they_come() {
    on_each_memory!(MEMORY, |mem, space| {
        let disk = disk(Mode::Held, WaitKind::Fd);
        let mut rig = Rig::new(&mem, &mut space, disk);
        let tokens: Vec<_> = (0..8)
            .map(|sector| rig.queue(&Request::read(sector, 512)))
            .collect();
        assert_eq!(rig.settle(), Service::Idle);
        assert_eq!((rig.disk.held(), rig.runner.in_flight()), (8, 8));
        assert!(rig.answers().is_empty());
        // The oldest waits longest.
        for sector in (0..8).rev() {
            assert!(rig.disk.release_at(sector));
            assert!(rig.disk_rings());
            assert_eq!(rig.settle(), Service::Idle);
            let answers = rig.answers();
            assert_eq!(answers.len(), 1);
            assert_eq!(answers[0].token, tokens[sector]);
            assert_eq!((answers[0].status, answers[0].len), (S_OK, 513));
            assert_eq!(rig.data(answers[0], 512), [sector as u8; 512]);
        }
        assert_eq!(rig.runner.in_flight(), 0);
        rig.audit();
    });
}

#[test]
fn a_full_disk_holds_the_queue_back_and_loses_nothing() {
    for (mode, wait) in [
        (Mode::AtFlush, WaitKind::Fd),
        (Mode::AtFlush, WaitKind::Poll),
        (Mode::Held, WaitKind::Fd),
        (Mode::Taken, WaitKind::Fd),
        (Mode::Taken, WaitKind::Poll),
        (Mode::TakenHeld, WaitKind::Fd),
    ] {
        for room in 1..4 {
            let mut rig = rig(mode, wait);
            rig.disk.set_room(room);
            let list = ranges(4);
            for sector in 0..6 {
                rig.queue(&Request::read(sector, 512));
                rig.queue(&Request::discard(&list));
            }
            let mut answers = Vec::new();
            for _ in 0..1000 {
                if answers.len() == 12 {
                    break;
                }
                assert_eq!(rig.settle(), Service::Idle);
                assert!(!HELD.contains(&mode) || rig.disk.held() <= room);
                rig.disk.release(1);
                assert!(rig.runner.in_flight() == 0 || rig.disk_rings());
                rig.settle();
                answers.extend(rig.answers());
            }
            assert_eq!(answers.len(), 12);
            assert!(answers.iter().all(|a| a.status == S_OK));
            assert_eq!(rig.runner.in_flight(), 0);
            // Nothing was submitted twice.
            assert_eq!(rig.disk.take_ops().len(), 6 + 6 * 4);
        }
    }
}

#[test]
fn every_batch_is_flushed_and_an_empty_one_is_not() {
    let mut rig = rig(Mode::AtFlush, WaitKind::Fd);
    for sector in 0..5 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.run();
    let log = rig.disk.take_log();
    let flushes = log.iter().filter(|e| **e == Event::Flushed).count();
    assert_eq!(flushes, 1, "one for the batch: {log:?}");
    rig.settle();
    assert!(rig.disk.take_log().is_empty());
}

#[test]
fn a_failed_range_ends_its_request_and_no_other() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    rig.disk.set_fault(|kind| match kind {
        OpKind::Discard { offset: 2048, .. } => Some(DiskError::from_errno(libc::EIO)),
        _ => None,
    });
    let long = ranges(5);
    let short = ranges(2);
    let failing = rig.queue(&Request::discard(&long));
    let fine = rig.queue(&Request::discard(&short));
    let mut answers = Vec::new();
    for _ in 0..20 {
        rig.settle();
        rig.disk.release(1);
        answers.extend(rig.answers());
    }
    let status = |token| answers.iter().find(|a| a.token == token).map(|a| a.status);
    assert_eq!(answers.len(), 2);
    assert_eq!(status(failing), Some(S_IOERR));
    assert_eq!(status(fine), Some(S_OK));
    assert_eq!(rig.disk.take_ops().len(), 3 + 2);
}

/// A synchronous disk completes the ranges of one request without a stack frame for each.
#[test]
fn many_ranges_take_no_stack() {
    let test = || {
        let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
        let erase = EraseLimits {
            max_sectors: 64,
            max_segments: 256,
            alignment: 1,
        };
        let caps = Caps {
            discard: Some(erase),
            ..Caps::basic(SECTORS)
        };
        let disk = TestDisk::new(caps);
        let mut rig = Rig::new(&Arc::new(mem), &mut space, disk);
        let list: Vec<_> = (0..256).map(|n| ranges(60)[n % 60]).collect();
        assert_eq!(rig.ask(&Request::discard(&list)).status, S_OK);
        assert_eq!(rig.disk.take_ops().len(), 256);
    };
    // Less than musl gives a thread.
    let thread = std::thread::Builder::new().stack_size(96 * 1024);
    thread.spawn(test).unwrap().join().unwrap();
}

#[test]
fn invented_completions_are_counted_and_change_nothing() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    let spurious = |rig: &Rig<_>| rig.runner.counters().spurious_completions.get();
    // While nothing is in flight: the disk must still be relieved of it, or it rings for ever.
    rig.disk.invent(DiskToken(0));
    assert!(rig.disk_rings());
    rig.settle();
    assert!(!rig.disk_rings());
    assert_eq!(spurious(&rig), 1);

    // While requests are.
    for sector in 0..3 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    for token in [0, 1, 2, 77, u64::MAX, 5 << 32, 1 << 31] {
        rig.disk.invent(DiskToken(token));
        rig.settle();
    }
    assert_eq!(spurious(&rig), 8);
    assert_eq!(rig.runner.in_flight(), 3);
    assert!(rig.answers().is_empty());
    rig.disk.release(3);
    rig.run();
    let answers = rig.answers();
    assert_eq!(answers.len(), 3);
    for answer in answers {
        assert_eq!((answer.status, answer.len), (S_OK, 513));
    }
    // A completion that comes again.
    rig.disk.repeat();
    rig.settle();
    assert_eq!(spurious(&rig), 9);
    assert!(rig.answers().is_empty());
}

#[test]
fn a_repeated_completion_is_not_taken_for_the_next_range() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    let list = ranges(3);
    rig.queue(&Request::discard(&list));
    rig.settle();
    // The first range completes twice: the second one is still to come.
    rig.disk.repeat();
    rig.disk.release(1);
    rig.settle();
    assert_eq!(rig.disk.held(), 1);
    assert_eq!(rig.runner.counters().spurious_completions.get(), 1);
    assert_eq!(rig.runner.in_flight(), 1);
    assert!(rig.answers().is_empty());
}

#[test]
fn a_broken_disk_fails_everything_once_and_stops_the_queue() {
    for how in [Break::Flush, Break::Reap] {
        on_each_memory!(MEMORY, |mem, space| {
            for event_idx in [false, true] {
                let mut space = space.clone();
                let disk = disk(Mode::Held, WaitKind::Fd);
                let mut rig = Rig::with(&mem, &mut space, disk, event_idx, 0);
                let list = ranges(3);
                rig.driver.fill_data(0xaa).unwrap();
                for sector in 0..4 {
                    rig.queue(&Request::read(sector, 1024));
                    rig.queue(&Request::write(sector, &[1; 512]));
                    rig.queue(&Request::discard(&list));
                }
                rig.settle();
                assert_eq!(rig.runner.in_flight(), 12);
                // Two are done before it breaks.
                rig.disk.release(2);
                rig.disk.set_break(how);
                rig.queue(&Request::flush());
                let irqs = rig.irqs();
                assert_eq!(rig.settle(), Service::Fatal);
                assert!(matches!(rig.runner.error(), Some(QueueError::Disk(_))));
                assert!(matches!(rig.runner.wait(), Wait::Inline));
                assert_eq!(rig.runner.in_flight(), 0);
                assert!(rig.irqs() > irqs);
                let answers = rig.answers();
                let failed = answers.iter().filter(|a| a.status == S_IOERR).count();
                // Where reap broke first, the flush was not looked at any more.
                let taken = if how == Break::Reap { 12 } else { 13 };
                assert_eq!((answers.len(), failed), (taken, taken - 2), "{how:?}");
                assert_eq!(rig.settle(), Service::Fatal, "for good");
                assert!(rig.answers().is_empty());
                assert!(!rig.runner.has_work());
                assert!(matches!(
                    rig.disk.take_log().last(),
                    Some(Event::Dropped(_))
                ));
                let stopped = rig.runner.stop(Stop::Drain);
                assert!(stopped.in_flight.is_empty());
                assert!(matches!(stopped.error, Some(QueueError::Disk(_))));
                let (next_avail, next_used) = (stopped.state.next_avail, stopped.state.next_used);
                assert_eq!((next_avail, next_used), (taken as u16, taken as u16));
            }
        });
    }
}

#[test]
fn a_disk_that_breaks_while_it_has_no_room_fails_the_waiting_too() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    rig.disk.set_room(2);
    for sector in 0..5 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    // Three were taken: two are with the disk, one waits.
    assert_eq!(rig.runner.in_flight(), 3);
    rig.disk.set_break(Break::Reap);
    assert_eq!(rig.settle(), Service::Fatal);
    let answers = rig.answers();
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|a| a.status == S_IOERR));
}

#[test]
fn a_deadline_is_passed_on_while_something_is_in_flight() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    let at = Instant::now() + Duration::from_secs(3600);
    rig.disk.set_deadline(Some(at));
    assert_eq!(rig.settle(), Service::Idle);
    rig.queue(&Request::read(0, 512));
    assert_eq!(rig.settle(), Service::WaitUntil(at));
    rig.disk.release(1);
    assert_eq!(rig.settle(), Service::Idle);
    assert_eq!(rig.answers().len(), 1);
}

#[test]
fn has_work_tells_without_touching_anything() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    rig.settle();
    assert!(!rig.runner.has_work());
    rig.queue(&Request::read(0, 512));
    assert!(rig.runner.has_work());
    rig.runner.set_intake(false);
    assert!(!rig.runner.has_work());
    rig.runner.set_intake(true);
    rig.settle();
    // The disk may be done at any moment.
    assert!(rig.runner.has_work());
    rig.disk.release(1);
    rig.run();
    assert!(!rig.runner.has_work());
}

#[test]
fn a_closed_intake_takes_nothing_and_finishes_the_rest() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    let list = ranges(3);
    rig.queue(&Request::discard(&list));
    rig.settle();
    rig.runner.set_intake(false);
    rig.queue(&Request::read(1, 512));
    rig.settle();
    assert_eq!(rig.runner.in_flight(), 1);
    while rig.runner.in_flight() != 0 {
        assert_eq!(rig.disk.release(1), 1, "the next range was submitted");
        rig.settle();
    }
    assert_eq!(rig.answers().len(), 1);
    rig.runner.set_intake(true);
    rig.settle();
    rig.disk.release(1);
    rig.run();
    assert_eq!(rig.answers().len(), 1);
}

#[test]
fn the_budget_limits_what_is_taken_and_says_so() {
    let mut rig = rig(Mode::Held, WaitKind::Fd);
    for sector in 0..5 {
        rig.queue(&Request::read(sector, 512));
    }
    assert_eq!(rig.runner.service(2), Service::More);
    assert_eq!(rig.runner.in_flight(), 2);
    assert_eq!(rig.runner.service(2), Service::More);
    assert_eq!(rig.runner.service(2), Service::Idle);
    assert_eq!(rig.runner.in_flight(), 5);
    assert_eq!(rig.runner.counters().batches.get(), 3);
}

#[test]
fn counters_count() {
    let mut rig = rig(Mode::AtFlush, WaitKind::Fd);
    rig.disk.set_fault(|kind| match kind {
        OpKind::Write { offset: 0, .. } => Some(DiskError::from_errno(libc::EIO)),
        _ => None,
    });
    let list = ranges(2);
    rig.ask(&Request::read(0, 1024));
    rig.ask(&Request::read(SECTORS, 512));
    rig.ask(&Request::write(0, &[0; 512]));
    rig.ask(&Request::write(8, &[0; 1024]));
    rig.ask(&Request::flush());
    rig.ask(&Request::get_id());
    rig.ask(&Request::get_lifetime());
    rig.ask(&Request::new(99, 0));
    rig.ask(&Request::discard(&list));
    rig.ask(&Request::write_zeroes(&list));
    rig.ask(&Request::secure_erase(&[]));
    rig.ask(&Request {
        status: false,
        ..Request::flush()
    });
    let counters = rig.runner.counters().snapshot();
    let expected = [
        ("reads", 2),
        ("read_bytes", 1024),
        ("writes", 2),
        ("written_bytes", 1024),
        ("flushes", 1),
        ("erases", 3),
        ("others", 3),
        ("errors", 4),
        ("malformed", 1),
        ("spurious_completions", 0),
    ];
    for (name, value) in expected {
        let found = counters.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(found, value, "{name}");
    }
    // The device has the same ones, and they continue over a restart.
    let device = rig.device.clone();
    assert_eq!(device.counters(0).unwrap().reads.get(), 2);
    let state = rig.runner.stop(Stop::Drain).state;
    let setup = QueueSetup::new(rig.mem.clone(), || {});
    let again = device.start_queue(0, setup, state).unwrap();
    assert_eq!(again.counters().reads.get(), 2);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations that a disk takes in `execute`, without their buffer. The other tests have such a disk in their lists.

use std::sync::Weak;

use malformed_queues::on_each_memory;
use virtio_blk_driver::wire::{S_IOERR, S_OK};

use super::*;
use crate::disk::{Disk, Execute, Token as DiskToken};
use crate::testdisk::{Break, Event};

fn rig() -> Rig<Plain> {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    let disk = disk(Mode::TakenHeld, WaitKind::Fd);
    Rig::new(&Arc::new(mem), &mut space, disk)
}

#[test]
fn they_complete_in_any_order_with_their_data() {
    on_each_memory!(MEMORY, |mem, space| {
        let disk = disk(Mode::TakenHeld, WaitKind::Fd);
        let mut rig = Rig::new(&mem, &mut space, disk);
        let data = [0x77; 512];
        let read = rig.queue(&Request::read(3, 512));
        let write = rig.queue(&Request::write(90, &data));
        let flush = rig.queue(&Request::flush());
        assert_eq!(rig.settle(), Service::Idle);
        assert_eq!((rig.disk.held(), rig.runner.in_flight()), (3, 3));
        let log = rig.disk.take_log();
        assert_eq!(log.len(), 4, "{log:?}");
        assert_eq!(log.last(), Some(&Event::Flushed), "a batch is started");
        for token in [flush, write, read] {
            assert!(rig.disk.release_at(rig.disk.held() - 1));
            assert!(rig.disk_rings());
            assert_eq!(rig.settle(), Service::Idle);
            let answers = rig.answers();
            assert_eq!(answers.len(), 1);
            assert_eq!((answers[0].token, answers[0].status), (token, S_OK));
            if token == read {
                assert_eq!(rig.data(answers[0], 512), [3; 512]);
            }
        }
        assert_eq!(rig.disk.content(90 * 512, 512), data);
        rig.audit();
    });
}

#[test]
fn a_failed_read_leaves_zeroes() {
    let mut rig = rig();
    rig.disk
        .set_fault(|_| Some(DiskError::from_errno(libc::EIO)));
    rig.queue(&Request::read(5, 1024));
    rig.settle();
    rig.disk.release(1);
    rig.settle();
    let answers = rig.answers();
    assert_eq!((answers[0].status, answers[0].len), (S_IOERR, 1025));
    assert_eq!(rig.data(answers[0], 1024), [0; 1024]);
}

#[test]
fn without_room_they_wait_as_operations() {
    let mut rig = rig();
    rig.disk.set_room(1);
    for sector in 0..3 {
        rig.queue(&Request::read(sector, 512));
    }
    let mut answers = Vec::new();
    for _ in 0..3 {
        assert_eq!(rig.settle(), Service::Idle);
        assert_eq!(rig.disk.held(), 1);
        rig.disk.release(1);
        rig.settle();
        answers.extend(rig.answers());
    }
    assert_eq!(answers.len(), 3);
    for (sector, done) in (0..).zip(&answers) {
        assert_eq!(rig.data(*done, 512), [sector; 512]);
    }
    assert_eq!(rig.disk.take_ops().len(), 3, "none twice");
}

/// As many as the ring has descriptors, so that no slot is free: their tokens differ, and each completion ends its own.
#[test]
fn a_full_ring_is_taken_to_the_last_slot() {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    let disk = disk(Mode::TakenHeld, WaitKind::Fd);
    let device = device(&disk);
    let config = RingConfig {
        event_idx: true,
        indirect: true,
        start: 65_530,
    };
    let mem = Arc::new(mem);
    let arena = ArenaConfig {
        data_len: 512,
        ..ARENA
    };
    let mut driver = space.driver(mem.clone(), 16, config, arena).unwrap();
    let setup = QueueSetup::new(mem.clone(), || {});
    let mut runner = device.start_queue(0, setup, driver.state()).unwrap();
    for round in 0..5 {
        let tokens: Vec<Token> = (0..16)
            .map(|sector| {
                let read = Request::read(sector, 512);
                driver.submit(&read.indirect(true)).unwrap()
            })
            .collect();
        driver.publish().unwrap();
        while runner.service(3) == Service::More {}
        assert_eq!((disk.held(), runner.in_flight()), (16, 16));
        // From the middle to both ends.
        for at in (0..16).rev() {
            assert!(disk.release_at((at / 2 + round) % (at + 1)));
            while runner.service(64) == Service::More {}
            let done = driver.poll().unwrap().unwrap();
            assert_eq!((done.status, done.len), (S_OK, 513));
            let sector = tokens.iter().position(|token| *token == done.token);
            let mut data = [0; 512];
            driver.read_data(done.token, 0, &mut data).unwrap();
            assert_eq!(data, [sector.unwrap() as u8; 512]);
        }
        assert_eq!(runner.in_flight(), 0);
    }
    assert_eq!(runner.counters().spurious_completions.get(), 0);
}

/// Whatever breaks, the guest's memory is written by nobody after the queue was stopped, and each request is accounted for.
#[test]
fn a_broken_disk_fails_what_it_took_once() {
    for broken in [Break::Flush, Break::Reap] {
        let mut rig = rig();
        for sector in 0..4 {
            rig.queue(&Request::read(sector, 512));
        }
        rig.settle();
        rig.disk.release(1);
        rig.disk.set_break(broken);
        rig.queue(&Request::read(9, 512));
        assert_eq!(rig.settle(), Service::Fatal);
        let answers = rig.answers();
        // The last is taken before the flush, and not any more after the reap.
        let taken = if broken == Break::Flush { 5 } else { 4 };
        assert_eq!(answers.len(), taken, "{broken:?}");
        for done in &answers {
            // Sector 0 holds zeroes, and what failed leaves them.
            assert!(matches!(done.status, S_OK | S_IOERR));
            assert_eq!(rig.data(*done, 512), [0; 512]);
        }
        assert_eq!(answers.iter().filter(|done| done.status == S_OK).count(), 1);
        assert_eq!((rig.disk.held(), rig.runner.in_flight()), (0, 0));
        let stopped = rig.runner.stop(Stop::Drain);
        assert!(stopped.in_flight.is_empty() && stopped.error.is_some());
    }
}

#[test]
fn a_repeated_completion_ends_nothing_else() {
    let mut rig = rig();
    rig.queue(&Request::read(1, 512));
    rig.settle();
    rig.disk.repeat();
    rig.settle();
    assert_eq!(rig.answers().len(), 1, "one ahead of time");
    rig.queue(&Request::read(2, 512));
    rig.settle();
    rig.disk.release_at(0);
    rig.settle();
    assert!(rig.answers().is_empty(), "the first one's end came late");
    assert_eq!(rig.runner.counters().spurious_completions.get(), 1);
    rig.disk.release(1);
    rig.settle();
    assert_eq!(rig.answers().len(), 1);
}

#[test]
fn a_stop_drains_them_or_names_them() {
    let mut rig = rig();
    for sector in 0..4 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    rig.disk.release_at(2);
    let Rig { runner, disk, .. } = rig;
    let stopped = runner.stop(Stop::HandOver);
    assert_eq!(stopped.in_flight.len(), 4);
    let cancelled = |event: &&Event| matches!(event, Event::Cancelled);
    assert_eq!(disk.take_log().iter().filter(cancelled).count(), 4);

    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    let disk = super::disk(Mode::Taken, WaitKind::Fd);
    let mut rig = Rig::new(&Arc::new(mem), &mut space, disk);
    for sector in 0..4 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    let Rig {
        runner, mut driver, ..
    } = rig;
    assert!(runner.stop(Stop::Drain).in_flight.is_empty());
    let answers = std::iter::from_fn(|| driver.poll().unwrap());
    assert_eq!(answers.count(), 4);
}

/// The slot keeps what the disk works on mapped, although the map is another.
#[test]
fn their_memory_stays_mapped_after_a_change() {
    let mut rig = rig();
    rig.queue(&Request::read(4, 512));
    rig.settle();
    let old: Weak<_> = Arc::downgrade(rig.runner.fetch.map.keep());
    rig.runner.remap().unwrap();
    assert!(old.upgrade().is_some());
    rig.disk.release(1);
    rig.settle();
    let answers = rig.answers();
    assert_eq!(rig.data(answers[0], 512), [4; 512]);
    assert!(old.upgrade().is_none(), "nothing needs it any more");
}

#[test]
fn nothing_is_taken_without_a_token() {
    let disk = disk(Mode::Taken, WaitKind::Poll);
    let mut queue = disk.open_queue(1).unwrap();
    let (kind, buf) = (OpKind::Read { offset: 0 }, IoBuf::zeroed(512));
    let executed = queue.execute(&kind, &buf, None);
    assert!(matches!(executed, Execute::Declined), "{executed:?}");
    let executed = queue.execute(&kind, &buf, Some(DiskToken(7)));
    assert!(matches!(executed, Execute::Taken), "{executed:?}");
    queue.flush_batch().unwrap();
    let mut done = Vec::new();
    queue.reap(&mut done).unwrap();
    assert_eq!((done[0].token, done[0].buf.len()), (DiskToken(7), 0));
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much one pass does, and when the driver sees what was finished.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use malformed_queues::HostileRing;
use virtio_blk_driver::wire::{Descriptor, Range as WireRange, S_IOERR, S_OK};
use vm_memory::{Bytes, GuestAddress};

use super::*;

fn rig(mode: Mode, wait: WaitKind) -> Rig<Plain> {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    Rig::new(&Arc::new(mem), &mut space, disk(mode, wait))
}

/// The used index that the driver sees whenever the disk begins an operation, which then takes `time`.
fn watch(rig: &Rig<Plain>, time: Duration) -> Arc<Mutex<Vec<u16>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mem, list) = (rig.mem.clone(), seen.clone());
    let at = GuestAddress(rig.driver.state().used_ring + 2);
    rig.disk.set_fault(move |_| {
        list.lock().unwrap().push(mem.read_obj(at).unwrap());
        let begun = Instant::now();
        while begun.elapsed() < time {
            std::hint::spin_loop();
        }
        None
    });
    seen
}

#[test]
fn ranges_count_as_what_they_are() {
    for (mode, wait) in [
        (Mode::Inline, WaitKind::Inline),
        (Mode::AtFlush, WaitKind::Fd),
        (Mode::AtFlush, WaitKind::Poll),
    ] {
        for sectors in [1, 64] {
            let mut rig = rig(mode, wait);
            // Sixteen requests of eight ranges.
            let lists: Vec<Vec<WireRange>> = (0..16)
                .map(|request| {
                    (0..8)
                        .map(|range| WireRange {
                            sector: (request * 8 + range) % 64,
                            num_sectors: sectors,
                            flags: 0,
                        })
                        .collect()
                })
                .collect();
            for list in &lists {
                rig.queue(&Request::discard(list));
            }
            let mut all = 0;
            let mut passes = 0;
            loop {
                let next = rig.runner.service(16);
                let ops = rig.disk.take_ops().len();
                assert!(ops <= 32, "{mode:?}: {ops} operations in one pass");
                all += ops;
                passes += 1;
                assert!(passes < 1000);
                match next {
                    Service::More => {}
                    Service::Idle if rig.runner.in_flight() == 0 => break,
                    other => assert!(rig.disk_rings(), "{other:?}: nothing would call again"),
                }
            }
            assert_eq!(all, 128, "{mode:?}");
            let answers = rig.answers();
            assert_eq!(answers.len(), 16);
            assert!(answers.iter().all(|done| done.status == S_OK));
        }
    }
}

#[test]
fn one_request_of_many_ranges_lets_others_in_between() {
    let mut rig = rig(Mode::Inline, WaitKind::Inline);
    let list: Vec<WireRange> = (0..8)
        .map(|sector| WireRange {
            sector,
            num_sectors: 1,
            flags: 0,
        })
        .collect();
    rig.queue(&Request::discard(&list));
    assert_eq!(rig.runner.service(3), Service::More);
    assert_eq!(rig.disk.take_ops().len(), 3);
    assert!(rig.runner.has_work() || rig.runner.in_flight() == 1);
    // A stop in between finishes it.
    let stopped = rig.runner.stop(Stop::Drain);
    assert!(stopped.in_flight.is_empty());
    assert_eq!(rig.disk.take_ops().len(), 5);
    assert_eq!(rig.driver.poll().unwrap().unwrap().status, S_OK);
}

#[test]
fn a_slow_disk_that_works_inside_the_call_is_seen_at_work() {
    let mut rig = rig(Mode::Inline, WaitKind::Inline);
    // Longer than the time after which something is shown.
    let seen = watch(&rig, Duration::from_micros(150));
    for sector in 0..8 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    // And one that takes no time is not asked for more than the first.
    let seen = watch(&rig, Duration::ZERO);
    for sector in 0..8 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.answers();
    rig.settle();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen[..2], [8, 9]);
    assert!(seen.iter().all(|&used| (8..16).contains(&used)));
}

#[test]
fn what_is_done_is_shown_before_more_is_started() {
    let mut rig = rig(Mode::AtFlush, WaitKind::Fd);
    rig.queue(&Request::read(0, 512));
    rig.disk.set_mode(Mode::Held);
    assert_eq!(rig.settle(), Service::Idle);
    assert_eq!(rig.runner.in_flight(), 1);
    rig.disk.set_mode(Mode::AtFlush);
    let seen = watch(&rig, Duration::ZERO);
    rig.disk.release(1);
    rig.queue(&Request::read(1, 512));
    rig.settle();
    assert_eq!(seen.lock().unwrap().last(), Some(&1));
    assert_eq!(rig.answers().len(), 2);
}

/// A head given twice while the disk has the first: the queue is broken, and finds its rest.
#[test]
fn a_broken_queue_collects_what_the_disk_has() {
    for wait in [WaitKind::Fd, WaitKind::Poll] {
        let mut rig = rig(Mode::Held, wait);
        for sector in 0..3 {
            rig.queue(&Request::read(sector, 512));
        }
        rig.settle();
        assert_eq!((rig.disk.held(), rig.runner.in_flight()), (3, 3));
        let avail = rig.driver.ring_mut().0.layout().avail();
        let first: u16 = rig.mem.read_obj(GuestAddress(avail.0 + 4)).unwrap();
        let entry = GuestAddress(avail.0 + 4 + 2 * 3);
        rig.mem.write_obj(first, entry).unwrap();
        rig.mem.write_obj(4u16, GuestAddress(avail.0 + 2)).unwrap();
        assert_eq!(rig.runner.service(16), Service::Fatal);
        // Asked to finish early.
        assert_eq!(rig.disk.held(), 0);
        for _ in 0..3 {
            assert_eq!(rig.runner.service(16), Service::Fatal);
        }
        assert_eq!(rig.runner.in_flight(), 0);
        assert!(!rig.runner.has_work());
        assert!(rig.driver.poll().unwrap().is_none(), "nothing is returned");
        let stopped = rig.runner.stop(Stop::Drain);
        assert!(stopped.error.is_some() && stopped.in_flight.is_empty());
    }
}

/// Chains of very many descriptors, and what becomes of them.
#[derive(Clone, Copy, Debug)]
enum Long {
    /// Empty ones between header and status.
    Empty,
    /// A byte each.
    Data,
    /// A readable one behind all the writable ones.
    Order,
    /// Nothing is writable.
    NoStatus,
    /// They end in a loop, behind a status.
    Loop,
}

#[test]
fn descriptors_count_whatever_becomes_of_their_chain() {
    const DESCRIPTORS: usize = 30_000;
    const CHAINS: u16 = 16;
    use Long::*;
    for kind in [Empty, Data, Order, NoStatus, Loop] {
        let (mem, space) = malformed_queues::testmem::single(2 << 20).unwrap();
        let mem = Arc::new(mem);
        let disk = disk(Mode::Execute, WaitKind::Inline);
        let device = device(&disk);
        let mut ring = HostileRing::new(&*mem, space, 32, 0, true).unwrap();
        let head = ring.read_header().unwrap();
        let status = ring.writable(1).unwrap();
        let middle = match kind {
            Empty => Descriptor::readable(head.addr, 0),
            NoStatus => head,
            _ => ring.writable(1).unwrap(),
        };
        let mut list = vec![head];
        list.resize(DESCRIPTORS, middle);
        match kind {
            Order => list.push(head),
            NoStatus => {}
            _ => list.push(status),
        }
        let table = ring.table(&list).unwrap();
        if let Loop = kind {
            // The last one points to the one before it.
            let last = list.len() - 1;
            let entry = Descriptor {
                next: last as u16 - 1,
                flags: status.flags | 1,
                ..status
            };
            let at = table.addr.0 + 16 * last as u64;
            mem.write_slice(&entry.to_bytes(), GuestAddress(at))
                .unwrap();
        }
        for index in 0..CHAINS {
            ring.descriptor(index, table).unwrap();
            ring.avail_entry(index, index).unwrap();
        }
        ring.avail_idx(CHAINS).unwrap();
        let setup = QueueSetup::new(mem.clone(), || {});
        let mut runner = device.start_queue(0, setup, ring.state).unwrap();
        // As a queue's thread calls it.
        assert_eq!(runner.service(256), Service::More, "{kind:?}");
        let first = ring.used_idx().unwrap();
        assert_eq!(first, 1, "{kind:?}");
        let mut passes = 1;
        while ring.used_idx().unwrap() < CHAINS {
            assert_ne!(
                runner.service(256),
                Service::Fatal,
                "{kind:?}: {:?}",
                runner.error()
            );
            passes += 1;
        }
        assert!(passes <= CHAINS);
        let mut got = [0];
        virtio_blk_driver::Memory::read_at(&*mem, status.addr, &mut got).unwrap();
        match kind {
            Empty => assert_eq!(got, [S_OK]),
            // Not whole sectors.
            Data | Loop => assert_eq!(got, [S_IOERR], "{kind:?}"),
            Order | NoStatus => {}
        }
    }
}

/// The budget of a queue's thread is for many simple requests.
#[test]
fn simple_requests_count_once() {
    let mut rig = rig(Mode::Execute, WaitKind::Inline);
    for sector in 0..16 {
        rig.queue(&Request::read(sector, 4096));
    }
    rig.runner.service(16);
    assert_eq!(rig.answers().len(), 16);
}

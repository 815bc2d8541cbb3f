// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of very many segments: what is kept for them has a bound.

use malformed_queues::HostileRing;
use virtio_blk_driver::wire::{Descriptor, S_OK, T_IN, T_OUT, header};
use vm_memory::GuestAddress;

use super::*;

const SEGMENTS: usize = 20_480;
const CHAINS: u16 = 16;

#[test]
fn long_requests_in_flight_have_a_bound_and_all_are_answered() {
    for kind in [T_OUT, T_IN] {
        let (mem, space) = malformed_queues::testmem::single(16 << 20).unwrap();
        let mem = Arc::new(mem);
        let disk = disk(Mode::Held, WaitKind::Fd);
        let device = device(&disk);
        let mut ring = HostileRing::new(&*mem, space, 32, 0, true).unwrap();
        let head = ring.readable(&header(kind, 0, 0)).unwrap();
        // The same byte again and again, so that no two segments are one.
        let data = if kind == T_OUT {
            ring.readable(&[7]).unwrap()
        } else {
            ring.writable(1).unwrap()
        };
        let mut status = Vec::<GuestAddress>::new();
        for index in 0..CHAINS {
            let mut list: Vec<Descriptor> = vec![head];
            list.resize(1 + SEGMENTS, data);
            let byte = ring.writable(1).unwrap();
            list.push(byte);
            status.push(byte.addr);
            let table = ring.table(&list).unwrap();
            ring.descriptor(index, table).unwrap();
            ring.avail_entry(index, index).unwrap();
        }
        ring.avail_idx(CHAINS).unwrap();
        let setup = QueueSetup::new(mem.clone(), || {});
        let mut runner = device.start_queue(0, setup, ring.state).unwrap();
        let mut answered = 0;
        let mut most = 0;
        while answered < CHAINS {
            let service = runner.service(usize::MAX);
            // It waits for the disk, and does not look at the ring all the time.
            assert_eq!(service, Service::Idle);
            most = most.max(runner.in_flight());
            disk.release(1);
            assert_ne!(runner.service(usize::MAX), Service::Fatal);
            answered = ring.used_idx().unwrap();
        }
        // 3 of these are below the bound of 65,536 segments, and one more is taken then.
        assert_eq!(most, 4);
        for (at, byte) in (0..).zip(&status) {
            let mut got = [0];
            virtio_blk_driver::Memory::read_at(&*mem, *byte, &mut got).unwrap();
            assert_eq!(got, [S_OK]);
            let written = if kind == T_IN { SEGMENTS as u32 } else { 0 };
            assert_eq!(ring.used_entry(at).unwrap().1, written + 1);
        }
        // Nothing is kept, and ordinary requests have all the room.
        assert_eq!(runner.in_flight(), 0);
        assert!(!runner.outstanding.is_crowded());
    }
}

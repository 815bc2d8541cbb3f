// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests, well-formed and not.

use super::*;

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
    // Its first descriptor continues at itself.
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

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every type of request, in every kind of memory, cut in every way.

use malformed_queues::on_each_memory;
use virtio_blk_driver::Segment as Piece;
use virtio_blk_driver::request::{Framing, In, Out};
use virtio_blk_driver::wire::{Range as WireRange, S_IOERR, S_OK, S_UNSUPP, T_GET_ID, T_IN, T_OUT};
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// How disks may behave; what a driver sees must be the same.
const KINDS: [(Mode, WaitKind); 5] = [
    (Mode::Inline, WaitKind::Inline),
    (Mode::Execute, WaitKind::Inline),
    (Mode::AtFlush, WaitKind::Fd),
    (Mode::AtFlush, WaitKind::Poll),
    (Mode::Taken, WaitKind::Fd),
];

fn framings() -> impl Iterator<Item = Framing<'static>> {
    let fixed = [
        Framing::Separate,
        Framing::Merged,
        // The header a byte at a time.
        Framing::Cut {
            readable: &[1; 16],
            writable: &[1, 510, 1],
        },
        // Empty descriptors around everything.
        Framing::Cut {
            readable: &[0, 8, 0, 8, 0],
            writable: &[0, 511, 0, 513, 0],
        },
    ];
    let random = (0..12).map(|seed| Framing::Random { seed, cuts: 6 });
    fixed.into_iter().chain(random)
}

fn range(sector: u64, num_sectors: u32, flags: u32) -> WireRange {
    WireRange {
        sector,
        num_sectors,
        flags,
    }
}

/// One round of everything.
fn everything<M: GuestMemory + Send + Sync + 'static>(
    rig: &mut Rig<M>,
    framing: Framing<'_>,
    indirect: bool,
) {
    let with = |request: Request<'static>| request.framed(framing).indirect(indirect);
    let what = format!("{framing:?}, indirect: {indirect}");

    // Item 20: everything written, and the status.
    let read = rig.ask(&with(Request::read(5, 2048)));
    assert_eq!((read.status, read.len), (S_OK, 2049), "{what}");
    let expected: Vec<u8> = (5..9).flat_map(|n| [n; 512]).collect();
    assert_eq!(rig.data(read, 2048), expected, "{what}");

    let bytes: Vec<u8> = (0..1536u32).map(|i| (i * 7) as u8).collect();
    let write = rig.ask(
        &Request::write(100, &bytes)
            .framed(framing)
            .indirect(indirect),
    );
    assert_eq!((write.status, write.len), (S_OK, 1), "{what}");
    assert_eq!(rig.disk.content(100 * 512, 1536), bytes, "{what}");

    let flush = rig.ask(&with(Request::flush()));
    assert_eq!((flush.status, flush.len), (S_OK, 1), "{what}");

    let id = rig.ask(&with(Request::get_id()));
    assert_eq!((id.status, id.len), (S_OK, 21), "{what}");
    assert_eq!(rig.data(id, 20), b"serial number 16\0\0\0\0", "{what}");

    rig.disk.set_lifetime([1, 0, 2, 0, 11, 0]);
    let life = rig.ask(&with(Request::get_lifetime()));
    assert_eq!((life.status, life.len), (S_OK, 7), "{what}");
    assert_eq!(rig.data(life, 6), [1, 0, 2, 0, 11, 0], "{what}");

    const RANGES: [WireRange; 3] = [
        WireRange {
            sector: 20,
            num_sectors: 1,
            flags: 0,
        },
        WireRange {
            sector: 22,
            num_sectors: 0,
            flags: 0,
        },
        WireRange {
            sector: 24,
            num_sectors: 2,
            flags: 0,
        },
    ];
    for (request, byte) in [
        (Request::discard(&RANGES), 0xd1),
        (Request::write_zeroes(&RANGES), 0),
        (Request::secure_erase(&RANGES), 0x5e),
    ] {
        let done = rig.ask(&with(request));
        assert_eq!((done.status, done.len), (S_OK, 1), "{what}");
        let sector = |n: usize| rig.disk.content(n * 512, 512);
        for n in [20, 24, 25] {
            assert_eq!(sector(n), [byte; 512], "{what}");
        }
        for n in [21, 22, 23, 26] {
            assert_eq!(sector(n), [n as u8; 512], "{what}");
        }
    }
    let unknown = rig.ask(&with(Request::new(0x77, 3)));
    assert_eq!((unknown.status, unknown.len), (S_UNSUPP, 1), "{what}");
}

#[test]
fn every_request_in_every_framing() {
    for (mode, wait) in KINDS {
        for event_idx in [false, true] {
            on_each_memory!(MEMORY, |mem, space| {
                let disk = disk(mode, wait);
                let mut rig = Rig::with(&mem, &mut space, disk, event_idx, 65_500);
                for framing in framings() {
                    for indirect in [true, false] {
                        everything(&mut rig, framing, indirect);
                    }
                }
                rig.audit();
            });
        }
    }
}

/// A failed read says that it wrote all of its zeroes, so that the status lies inside the length.
#[test]
fn failed_reads_are_zero_filled() {
    for (mode, wait) in KINDS {
        on_each_memory!(MEMORY, |mem, space| {
            let disk = disk(mode, wait);
            disk.set_fault(|kind| {
                matches!(kind, OpKind::Read { .. }).then(|| DiskError::from_errno(libc::EIO))
            });
            let mut rig = Rig::new(&mem, &mut space, disk);
            for framing in framings() {
                // By the disk's error, beyond the end, and in a length that makes no sense.
                for (sector, len) in [(5, 2048), (SECTORS - 1, 1024), (0, 1000)] {
                    rig.driver.fill_data(0xaa).unwrap();
                    let request = Request::read(sector, len).framed(framing).indirect(true);
                    let done = rig.ask(&request);
                    assert_eq!((done.status, done.len), (S_IOERR, len + 1), "{framing:?}");
                    assert_eq!(rig.data(done, len as usize), vec![0; len as usize]);
                }
            }
            assert_eq!(
                rig.runner.counters().errors.get(),
                3 * framings().count() as u64
            );
        });
    }
}

#[test]
fn failed_writes_and_erasures_report_the_status_byte_only() {
    for (mode, wait) in KINDS {
        failed_writes_and_erasures(mode, wait);
    }
}

fn failed_writes_and_erasures(mode: Mode, wait: WaitKind) {
    on_each_memory!(MEMORY, |mem, space| {
        let disk = disk(mode, wait);
        let mut rig = Rig::new(&mem, &mut space, disk);
        for (make, status) in [
            ((|| DiskError::Unsupported) as fn() -> DiskError, S_UNSUPP),
            (|| DiskError::OutOfRange, S_IOERR),
            (|| DiskError::ReadOnly, S_IOERR),
            (|| DiskError::Cancelled, S_IOERR),
            (|| DiskError::from_errno(libc::ENOSPC), S_IOERR),
        ] {
            rig.disk.set_fault(move |_| Some(make()));
            let ranges = [range(0, 1, 0), range(4, 1, 0)];
            for request in [
                Request::write(0, &[1; 512]),
                Request::flush(),
                Request::discard(&ranges),
                Request::write_zeroes(&ranges),
                Request::secure_erase(&ranges),
            ] {
                rig.disk.take_log();
                let done = rig.ask(&request);
                assert_eq!((done.status, done.len), (status, 1), "{request:?}");
                // Nothing is done after the first failed range.
                assert_eq!(rig.disk.take_ops().len(), 1);
            }
        }
        assert_eq!(rig.disk.content(0, 512), [0; 512]);
    });
}

#[test]
fn nothing_of_a_bad_transfer_reaches_the_disk() {
    on_each_memory!(MEMORY, |mem, space| {
        let mut rig = Rig::new(&mem, &mut space, disk(Mode::Inline, WaitKind::Inline));
        for (sector, len) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (0, 100),
        ] {
            let bytes = vec![9; len];
            let done = rig.ask(&Request::write(sector, &bytes));
            assert_eq!((done.status, done.len), (S_IOERR, 1));
        }
        assert!(rig.disk.take_ops().is_empty());
        // Nothing to do is done.
        for request in [Request::read(SECTORS, 0), Request::write(SECTORS, &[])] {
            assert!(rig.ask(&request).is_ok());
        }
        assert!(rig.disk.take_ops().is_empty());
    });
}

#[test]
fn a_write_with_extra_writable_room_reports_the_status_byte_only() {
    on_each_memory!(MEMORY, |mem, space| {
        let mut rig = Rig::new(&mem, &mut space, disk(Mode::Inline, WaitKind::Inline));
        // 100 writable bytes before the status, which the device has no data for.
        let write = Request::new(T_OUT, 3)
            .with_out(Out::InPlace(512))
            .with_input(In::Len(100));
        let done = rig.ask(&write);
        assert_eq!((done.status, done.len), (S_OK, 0));
        let flush = rig.ask(&Request::flush().with_input(In::Len(64)));
        assert_eq!((flush.status, flush.len), (S_OK, 0));
        // Readable bytes behind a read's header are nobody's.
        let read = Request::read(3, 512).with_out(Out::InPlace(77));
        let read = rig.ask(&read);
        assert_eq!((read.status, read.len), (S_OK, 513));
    });
}

#[test]
fn short_headers_fail() {
    on_each_memory!(MEMORY, |mem, space| {
        let mut rig = Rig::new(&mem, &mut space, disk(Mode::Inline, WaitKind::Inline));
        for header_len in 0..16 {
            let request = Request {
                header_len,
                ..Request::read(0, 512)
            };
            let done = rig.ask(&request);
            assert_eq!(done.status, S_IOERR, "{header_len}");
            assert!(rig.disk.take_ops().is_empty());
        }
    });
}

#[test]
fn the_serial_number_is_cut_to_the_buffer() {
    on_each_memory!(MEMORY, |mem, space| {
        let mut rig = Rig::new(&mem, &mut space, disk(Mode::Inline, WaitKind::Inline));
        for len in [0u32, 1, 10, 19, 20] {
            let done = rig.ask(&Request::new(T_GET_ID, 9).with_input(In::Len(len)));
            assert_eq!((done.status, done.len), (S_OK, len + 1));
            let expected = &b"serial number 16\0\0\0\0"[..len as usize];
            assert_eq!(rig.data(done, len as usize), expected);
        }
        // Twenty bytes are written and no more, so the status is not among those reported.
        rig.driver.fill_data(0xaa).unwrap();
        let done = rig.ask(&Request::new(T_GET_ID, 0).with_input(In::Len(64)));
        assert_eq!((done.status, done.len), (S_OK, 20));
        assert_eq!(rig.data(done, 64)[20..], [0xaa; 44]);
    });
}

#[test]
fn a_serial_number_of_twenty_bytes_has_no_end() {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    let mem = Arc::new(mem);
    let disk = disk(Mode::Inline, WaitKind::Inline);
    let options = DeviceOptions {
        serial: "abcdefghijklmnopqrst".to_owned(),
        ..DeviceOptions::default()
    };
    let device = Device::new(Arc::new(disk.clone()), options).unwrap();
    device.accept(device.offered()).unwrap();
    let mut rig = Rig::over(&mem, &mut space, disk, device, 0);
    let done = rig.ask(&Request::get_id());
    assert_eq!(rig.data(done, 20), b"abcdefghijklmnopqrst");
}

#[test]
fn reserved_lifetime_values_do_not_reach_the_driver() {
    on_each_memory!(MEMORY, |mem, space| {
        for (mode, wait) in KINDS {
            let mut space = space.clone();
            let mut rig = Rig::new(&mem, &mut space, disk(mode, wait));
            for bad in [[4, 0, 0, 0, 0, 0], [0, 0, 12, 0, 0, 0], [0, 0, 0, 0, 0, 1]] {
                rig.disk.set_lifetime(bad);
                rig.driver.fill_data(0xaa).unwrap();
                let done = rig.ask(&Request::get_lifetime());
                assert_eq!((done.status, done.len), (S_IOERR, 0));
                assert_eq!(rig.data(done, 6), [0xaa; 6]);
            }
            // A bigger buffer keeps what is behind the six bytes.
            rig.disk.set_lifetime([1, 0, 1, 0, 1, 0]);
            let request = Request::get_lifetime().with_input(In::Len(10));
            let done = rig.ask(&request);
            assert_eq!((done.status, done.len), (S_OK, 6));
            assert_eq!(
                rig.data(done, 10),
                [1, 0, 1, 0, 1, 0, 0xaa, 0xaa, 0xaa, 0xaa]
            );
        }
    });
}

#[test]
fn a_bad_segment_stops_the_whole_request() {
    on_each_memory!(MEMORY, |mem, space| {
        let mut rig = Rig::new(&mem, &mut space, disk(Mode::Inline, WaitKind::Inline));
        for (bad, status) in [
            (range(0, 1, 2), S_UNSUPP),
            (range(SECTORS, 1, 0), S_IOERR),
            (range(u64::MAX, 1, 0), S_IOERR),
            (range(0, 65, 0), S_IOERR),
        ] {
            let good = range(30, 2, 0);
            for ranges in [[good, bad], [bad, good]] {
                for request in [
                    Request::discard(&ranges),
                    Request::write_zeroes(&ranges),
                    Request::secure_erase(&ranges),
                ] {
                    let done = rig.ask(&request);
                    assert_eq!((done.status, done.len), (status, 1));
                }
            }
        }
        // Too many, none, and half a segment.
        let many = [range(0, 1, 0); 9];
        for request in [
            Request::discard(&many),
            Request::discard(&[]),
            Request::discard(&[]).with_out(Out::InPlace(17)),
        ] {
            assert_eq!(rig.ask(&request).status, S_IOERR);
        }
        assert!(rig.disk.take_ops().is_empty());
        // All empty: nothing to ask the disk.
        assert!(rig.ask(&Request::discard(&[range(0, 0, 0); 8])).is_ok());
        assert!(rig.disk.take_ops().is_empty());
    });
}

/// Ranges run one after another, in order, and their flags reach the disk.
#[test]
fn ranges_of_a_request_run_in_order() {
    for (mode, wait) in KINDS {
        on_each_memory!(MEMORY, |mem, space| {
            let mut rig = Rig::new(&mem, &mut space, disk(mode, wait));
            let ranges = [
                range(4, 1, 1),
                range(2, 2, 0),
                range(9, 0, 0),
                range(8, 1, 1),
            ];
            let done = rig.ask(&Request::write_zeroes(&ranges));
            assert_eq!((done.status, done.len), (S_OK, 1));
            let zeroes = |sector: u64, sectors: u64, unmap| OpKind::WriteZeroes {
                offset: sector * 512,
                len: sectors * 512,
                unmap,
                fua: false,
            };
            assert_eq!(
                rig.disk.take_ops(),
                [zeroes(4, 1, true), zeroes(2, 2, false), zeroes(8, 1, true)]
            );
        });
    }
}

/// Many small pieces, far apart, as a driver's scatter list makes them.
#[test]
fn more_segments_than_the_ring_has_descriptors() {
    on_each_memory!(MEMORY * 2, |mem, space| {
        let disk = disk(Mode::AtFlush, WaitKind::Fd);
        let config = RingConfig {
            event_idx: true,
            indirect: true,
            start: 0,
        };
        let device = device(&disk);
        // The driver chose 16, and fills a table up to what it was told by an earlier device.
        assert_eq!(device.config().seg_max, 126);
        let layout = space.layout(16).unwrap();
        let mut driver = virtio_blk_driver::ring::SplitDriver::new(&*mem, layout, config).unwrap();
        let mut runner = device
            .start_queue(0, QueueSetup::new(mem.clone(), || {}), driver.state())
            .unwrap();
        let header = space.take(16, 16).unwrap();
        let status = space.take(1, 1).unwrap();
        let table = space.take(256 * 16, 16).unwrap();
        let pieces: Vec<Piece> = (0..254)
            .map(|_| Piece::new(GuestAddress(space.take(512, 1024).unwrap().0), 256))
            .collect();
        let header_bytes = virtio_blk_driver::wire::header(T_IN, 0, 1);
        mem.write_slice(&header_bytes, header).unwrap();
        let mut writable = pieces.clone();
        writable.push(Piece::new(status, 1));
        let readable = [Piece::new(header, 16)];
        // Longer than the driver half lets a ring of 16 have: written by hand.
        write_table(&*mem, table, &readable, &writable);
        let desc = virtio_blk_driver::wire::Descriptor::indirect(table, 256 * 16);
        mem.write_slice(&desc.to_bytes(), driver.layout().desc())
            .unwrap();
        mem.write_slice(
            &1u16.to_le_bytes(),
            GuestAddress(driver.layout().avail().0 + 2),
        )
        .unwrap();
        while runner.service(8) == Service::More {}
        let mut used = [0; 12];
        mem.read_slice(&mut used, driver.layout().used()).unwrap();
        assert_eq!(
            used[2..],
            [1, 0, 0, 0, 0, 0, 1, 0xfe, 0, 0],
            "all of 127 sectors"
        );
        let mut byte = [9];
        mem.read_slice(&mut byte, status).unwrap();
        assert_eq!(byte[0], S_OK);
        for (index, piece) in pieces.iter().enumerate() {
            let mut bytes = [0; 256];
            mem.read_slice(&mut bytes, piece.addr).unwrap();
            assert_eq!(bytes, [1 + index as u8 / 2; 256]);
        }
        let _ = driver.poll_used(&*mem);
    });
}

fn write_table<M: GuestMemory>(mem: &M, at: GuestAddress, readable: &[Piece], writable: &[Piece]) {
    use virtio_blk_driver::wire::Descriptor;
    let readable = readable.iter().map(|p| Descriptor::readable(p.addr, p.len));
    let writable = writable.iter().map(|p| Descriptor::writable(p.addr, p.len));
    let list: Vec<_> = readable.chain(writable).collect();
    let last = list.len() - 1;
    for (index, desc) in list.into_iter().enumerate() {
        let desc = match index {
            _ if index == last => desc,
            _ => desc.then(index as u16 + 1),
        };
        let at = GuestAddress(at.0 + 16 * index as u64);
        mem.write_slice(&desc.to_bytes(), at).unwrap();
    }
}

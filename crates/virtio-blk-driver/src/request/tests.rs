// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use malformed_queues::testmem::{self, Space};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::ring::{RingConfig, RingError, SplitLayout, Violation};
use crate::wire::{Descriptor, Range, S_IOERR, S_OK, S_UNWRITTEN};
use crate::{Memory, Segment};

const CONFIG: ArenaConfig = ArenaConfig {
    slots: 4,
    data_len: 1024,
    data_align: 512,
    table_len: 4,
};

fn memory() -> (GuestMemoryMmap<()>, Space) {
    testmem::single(256 * 1024).unwrap()
}

fn driver<'m>(
    mem: &'m GuestMemoryMmap<()>,
    space: &mut Space,
    size: u16,
) -> Driver<&'m GuestMemoryMmap<()>> {
    let ring = RingConfig {
        indirect: true,
        ..RingConfig::default()
    };
    let base = space.take(SplitLayout::footprint(size), SplitLayout::DESC_ALIGN);
    let layout = SplitLayout::contiguous(size, base.unwrap()).unwrap();
    let arena = Arena::new(space.take(CONFIG.footprint(), 1).unwrap(), CONFIG).unwrap();
    Driver::new(mem, layout, ring, arena).unwrap()
}

/// The descriptors of the chain that was submitted last, from the ring's or the indirect table.
fn submitted(driver: &Driver<&GuestMemoryMmap<()>>, nth: u16) -> Vec<Descriptor> {
    let (mem, layout) = (driver.memory(), driver.ring().layout());
    let desc = |table: GuestAddress, index: u16| {
        let mut bytes = [0; 16];
        let at = GuestAddress(table.0 + 16 * u64::from(index));
        mem.read_at(at, &mut bytes).unwrap();
        Descriptor::from_bytes(bytes)
    };
    let entry = layout.avail_at(nth);
    let mut index = mem
        .load_u16(entry, std::sync::atomic::Ordering::Relaxed)
        .unwrap();
    let mut table = layout.desc();
    let mut list = Vec::new();
    loop {
        let next = desc(table, index);
        if next.flags & 4 != 0 {
            (table, index) = (next.addr, 0);
            continue;
        }
        list.push(next);
        if next.flags & 1 == 0 {
            return list;
        }
        index = next.next;
    }
}

/// Completes the `nth` chain with this status and used length.
fn answer(driver: &Driver<&GuestMemoryMmap<()>>, nth: u16, status: Option<u8>, len: u32) {
    let (mem, layout) = (driver.memory(), driver.ring().layout());
    if let Some(status) = status {
        let last = *submitted(driver, nth).last().unwrap();
        let at = GuestAddress(last.addr.0 + u64::from(last.len) - 1);
        mem.write_at(at, &[status]).unwrap();
    }
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let head = mem.load_u16(layout.avail_at(nth), relaxed).unwrap();
    let element = u64::from(head) | u64::from(len) << 32;
    mem.write_at(layout.used_at(nth), &element.to_le_bytes())
        .unwrap();
    mem.store_u16(layout.used_idx(), nth.wrapping_add(1), relaxed)
        .unwrap();
}

fn lens(list: &[Descriptor]) -> Vec<(u32, u16)> {
    list.iter().map(|desc| (desc.len, desc.flags & 2)).collect()
}

#[test]
fn slots_are_apart_aligned_and_inside() {
    for (data_len, data_align, table_len) in [
        (0, 1, 0),
        (1, 1, 1),
        (512, 512, 16),
        (4097, 4096, 130),
        (100, 64, 3),
    ] {
        let config = ArenaConfig {
            slots: 5,
            data_len,
            data_align,
            table_len,
        };
        let base = GuestAddress(0x1_0003);
        let arena = Arena::new(base, config).unwrap();
        let mut end = base.0;
        for index in 0..5 {
            let slot = arena.slot(index);
            assert!(slot.table.0 >= end && slot.table.0.is_multiple_of(16));
            let header = slot.header().0;
            assert!(header >= slot.table.0 + 16 * u64::from(table_len));
            assert_eq!(slot.data.addr.0, header + 16, "header touches data");
            assert!(slot.data.addr.0.is_multiple_of(u64::from(data_align)));
            assert_eq!(slot.data.len, data_len);
            let status = slot.status().0;
            assert_eq!(
                slot.data.addr.0 + u64::from(data_len),
                status,
                "data touches status"
            );
            for len in [0, data_len] {
                let input = slot.input(len);
                assert_eq!((input.addr.0 + u64::from(len), input.len), (status, len));
            }
            end = status + 1;
        }
        assert!(end <= base.0 + config.footprint());
    }
}

#[test]
fn bad_arenas_are_refused() {
    let new = |base, config| Arena::new(GuestAddress(base), config);
    let slots = ArenaConfig { slots: 0, ..CONFIG };
    assert_eq!(new(0, slots).unwrap_err(), ArenaError::NoSlots);
    for data_align in [0, 3, 513] {
        let config = ArenaConfig {
            data_align,
            ..CONFIG
        };
        assert_eq!(
            new(0, config).unwrap_err(),
            ArenaError::Alignment(data_align)
        );
    }
    let len = CONFIG.footprint();
    assert!(new(u64::MAX - len, CONFIG).is_ok());
    assert!(matches!(
        new(u64::MAX - len + 1, CONFIG),
        Err(ArenaError::Wraps { .. })
    ));
}

#[test]
fn requests_look_as_the_specification_says() {
    let (mem, mut space) = memory();
    let mut driver = driver(&mem, &mut space, 64);
    let ranges = [
        Range {
            sector: 5,
            num_sectors: 6,
            flags: 1,
        },
        Range::default(),
    ];
    let data = [0xab; 512];
    let (readable, writable) = (0, 2);
    type Row<'a> = (Request<'a>, u32, u64, &'a [(u32, u16)]);
    let cases: [Row<'_>; 8] = [
        (Request::read(7, 1024), 0, 7, &[(1024, writable)]),
        (Request::write(9, &data), 1, 9, &[(512, readable)]),
        (Request::flush(), 4, 0, &[]),
        (Request::get_id(), 8, 0, &[(20, writable)]),
        (Request::get_lifetime(), 10, 0, &[(6, writable)]),
        (Request::discard(&ranges), 11, 0, &[(32, readable)]),
        (
            Request::write_zeroes(&ranges[..1]),
            13,
            0,
            &[(16, readable)],
        ),
        (
            Request::secure_erase(&ranges[..1]),
            14,
            0,
            &[(16, readable)],
        ),
    ];
    for (nth, (request, kind, sector, middle)) in (0..).zip(cases) {
        let token = driver.submit(&request.indirect(nth % 2 == 0)).unwrap();
        let list = submitted(&driver, nth);
        let mut expected = vec![(16, readable)];
        expected.extend(middle);
        expected.push((1, writable));
        assert_eq!(lens(&list), expected, "{request:?}");

        let mut header = [0; 16];
        mem.read_at(list[0].addr, &mut header).unwrap();
        assert_eq!(header[..4], u32::to_le_bytes(kind));
        assert_eq!(header[4..8], [0; 4]);
        assert_eq!(header[8..], u64::to_le_bytes(sector));
        let mut bytes = vec![0; list[1].len as usize];
        mem.read_at(list[1].addr, &mut bytes).unwrap();
        match kind {
            1 => assert_eq!(bytes, data),
            11 => assert_eq!(bytes, [ranges[0].to_bytes(), ranges[1].to_bytes()].concat()),
            13 | 14 => assert_eq!(bytes, ranges[0].to_bytes()),
            _ => {}
        }
        assert!(driver.publish().unwrap());
        answer(&driver, nth, Some(S_IOERR), 1);
        let done = driver.poll().unwrap().unwrap();
        assert_eq!(
            done,
            Done {
                token,
                status: S_IOERR,
                len: 1
            }
        );
        assert!(!done.is_ok());
    }
}

#[test]
fn header_status_and_pieces_can_be_anything() {
    let (mem, mut space) = memory();
    let mut driver = driver(&mem, &mut space, 64);
    let mut short = Request::write(0, &[1; 512]);
    short.header_len = 7;
    short.status = false;
    let mut none = Request::read(0, 512);
    none.header_len = 0;
    let both = Request::write(0, &[1; 512]).with_input(In::Len(512));
    let cut = Request::read(0, 512).framed(Framing::Cut {
        readable: &[10, 0],
        writable: &[500],
    });
    let elsewhere = [
        Segment::new(GuestAddress(0x9999), 8),
        Segment::new(GuestAddress(0x1234), 9),
    ];
    let segments = Request::flush()
        .with_out(Out::Segments(&elsewhere))
        .with_input(In::Segments(&elsewhere[1..]));
    let expected: [(Request<'_>, &[(u32, u16)]); 7] = [
        (short, &[(7, 0), (512, 0)]),
        (none, &[(512, 2), (1, 2)]),
        (both, &[(16, 0), (512, 0), (512, 2), (1, 2)]),
        (both.framed(Framing::Merged), &[(528, 0), (513, 2)]),
        (cut, &[(10, 0), (0, 0), (6, 0), (500, 2), (13, 2)]),
        (segments, &[(16, 0), (8, 0), (9, 0), (9, 2), (1, 2)]),
        (
            Request::flush().with_out(Out::InPlace(1024)),
            &[(16, 0), (1024, 0), (1, 2)],
        ),
    ];
    for (nth, (request, expected)) in (0..).zip(expected) {
        driver.submit(&request).unwrap();
        assert_eq!(lens(&submitted(&driver, nth)), expected, "{request:?}");
        driver.publish().unwrap();
        answer(&driver, nth, None, 0);
        let done = driver.poll().unwrap().unwrap();
        assert_eq!((done.status, done.len), (S_UNWRITTEN, 0));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (mem, mut space) = memory();
    let mut driver = driver(&mem, &mut space, 8);
    assert!(matches!(
        driver.submit(&Request::read(0, 1025)),
        Err(DriverError::DataTooLong {
            needed: 1025,
            room: 1024
        })
    ));
    let both = Request::read(0, 513).with_out(Out::InPlace(512));
    assert!(matches!(
        driver.submit(&both),
        Err(DriverError::DataTooLong { .. })
    ));
    let cut = Framing::Cut {
        readable: &[1, 1, 1],
        writable: &[],
    };
    assert!(matches!(
        driver.submit(&Request::flush().framed(cut).indirect(true)),
        Err(DriverError::TableTooLong { needed: 5, room: 4 })
    ));
    assert_eq!((driver.in_flight(), driver.ring().free()), (0, 8));

    // Three descriptors each: the ring is full first. In tables: the slots are.
    for _ in 0..2 {
        driver.submit(&Request::read(0, 512)).unwrap();
    }
    assert!(matches!(
        driver.submit(&Request::read(0, 512)),
        Err(DriverError::Ring(RingError::Full { needed: 3, free: 2 }))
    ));
    for _ in 0..2 {
        driver
            .submit(&Request::read(0, 512).indirect(true))
            .unwrap();
    }
    assert!(matches!(
        driver.submit(&Request::flush()),
        Err(DriverError::NoSlot(4))
    ));
    assert_eq!(driver.in_flight(), 4);
}

#[test]
fn data_stays_until_the_slot_is_used_again() {
    let (mem, mut space) = memory();
    let mut driver = driver(&mem, &mut space, 16);
    let first = driver.submit(&Request::read(0, 512)).unwrap();
    let place = driver.data(first).unwrap();
    assert_eq!(place.len, 512);
    mem.write_at(place.addr, &[0x42; 512]).unwrap();
    driver.publish().unwrap();
    answer(&driver, 0, Some(S_OK), 513);
    assert!(driver.poll().unwrap().unwrap().is_ok());

    let mut data = [0; 12];
    driver.read_data(first, 500, &mut data).unwrap();
    assert_eq!(data, [0x42; 12]);
    assert!(matches!(
        driver.read_data(first, 501, &mut data),
        Err(DriverError::DataTooLong {
            needed: 513,
            room: 512
        })
    ));
    // The other three slots come first.
    for nth in 1..4 {
        driver.submit(&Request::flush()).unwrap();
        driver.publish().unwrap();
        answer(&driver, nth, Some(S_OK), 1);
        driver.poll().unwrap().unwrap();
        driver.read_data(first, 0, &mut data).unwrap();
    }
    driver.submit(&Request::flush()).unwrap();
    assert!(matches!(
        driver.read_data(first, 0, &mut data),
        Err(DriverError::StaleToken)
    ));
    assert!(matches!(driver.data(first), Err(DriverError::StaleToken)));
}

#[test]
fn a_device_that_breaks_rules_shows_in_poll() {
    let (mem, mut space) = memory();
    let mut driver = driver(&mem, &mut space, 16);
    driver.submit(&Request::read(0, 512)).unwrap();
    driver.publish().unwrap();
    answer(&driver, 0, Some(S_OK), 514);
    assert!(matches!(
        driver.poll(),
        Err(DriverError::Ring(RingError::Violation(
            Violation::LenTooLong {
                len: 514,
                writable: 513,
                ..
            }
        )))
    ));
}

#[test]
fn filled_data_is_what_the_device_reads_in_place() {
    let (mem, mut space) = memory();
    let mut driver = driver(&mem, &mut space, 16);
    driver.fill_data(0x3c).unwrap();
    for nth in 0..4 {
        let request = Request::new(1, 0).with_out(Out::InPlace(1024));
        driver.submit(&request).unwrap();
        let data = submitted(&driver, nth)[1];
        let mut bytes = vec![0; 1024];
        mem.read_at(data.addr, &mut bytes).unwrap();
        assert_eq!(bytes, [0x3c; 1024]);
    }
}

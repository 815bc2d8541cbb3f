// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn a_used_index_that_jumps_is_caught() {
    for (published, to) in [(0, 1), (2, 3), (2, 0xffff), (2, 0x8000)] {
        let mut bench = Bench::new(8, RingConfig::default());
        for cookie in 0..published {
            bench.add(cookie);
        }
        bench.publish();
        // Added but not published: the device can't have it.
        bench.add(9);
        bench.set_used_idx(to);
        assert_eq!(
            bench.caught(),
            Violation::UsedIndexJump {
                from: 0,
                to,
                available: published as u16
            }
        );
    }
}

#[test]
fn a_used_index_that_goes_back_is_caught() {
    let mut bench = Bench::new(8, RingConfig::default());
    for cookie in 0..2 {
        let head = bench.add(cookie);
        bench.publish();
        bench.use_one(cookie as u16, head.into(), 0);
        bench.poll().unwrap().unwrap();
    }
    bench.set_used_idx(1);
    assert!(matches!(
        bench.caught(),
        Violation::UsedIndexJump { from: 2, to: 1, .. }
    ));
}

#[test]
fn a_used_head_outside_the_table_is_caught() {
    for id in [8, 0xffff, 0x1_0000, u32::MAX] {
        let mut bench = Bench::new(8, RingConfig::default());
        bench.add(0);
        bench.publish();
        bench.use_one(0, id, 0);
        assert_eq!(bench.caught(), Violation::UnknownHead { id });
    }
}

#[test]
fn a_head_not_in_flight_is_caught() {
    // Never used, the second descriptor of a chain, not published.
    for pick in 0..3 {
        let mut bench = Bench::new(8, RingConfig::default());
        let head = bench.add(0);
        let second = bench.desc(bench.ring.layout().desc(), head).next;
        bench.publish();
        let unpublished = bench.add(1);
        let id = u32::from([7, second, unpublished][pick]);
        bench.use_one(0, id, 0);
        assert_eq!(bench.caught(), Violation::NotInFlight { id });
    }
}

#[test]
fn a_head_used_twice_is_caught() {
    let mut bench = Bench::new(8, RingConfig::default());
    let head = bench.add(0);
    bench.add(1);
    bench.publish();
    bench.use_one(0, head.into(), 0);
    bench.use_one(1, head.into(), 0);
    assert_eq!(bench.poll().unwrap().unwrap().cookie, 0);
    assert_eq!(bench.caught(), Violation::NotInFlight { id: head.into() });
}

#[test]
fn a_used_length_beyond_the_writable_bytes_is_caught() {
    let mut bench = Bench::new(8, RingConfig::default());
    let (first, second) = (bench.add(0), bench.add(1));
    bench.publish();
    bench.use_one(0, first.into(), 100);
    assert_eq!(bench.poll().unwrap().unwrap().len, 100);
    bench.use_one(1, second.into(), 101);
    assert_eq!(
        bench.caught(),
        Violation::LenTooLong {
            head: second,
            len: 101,
            writable: 100
        }
    );
}

#[test]
fn a_reset_makes_a_broken_ring_good_again() {
    let mut bench = Bench::new(4, RingConfig::default());
    bench.add(0);
    bench.add(1);
    bench.publish();
    bench.set_used_idx(77);
    bench.caught();
    bench.ring.reset(&*bench.mem, 5).unwrap();
    assert_eq!((bench.ring.free(), bench.ring.in_flight()), (4, 0));
    let head = bench.add(3);
    bench.publish();
    bench.use_one(5, head.into(), 1);
    assert_eq!(bench.poll().unwrap().unwrap().cookie, 3);
    bench.ring.audit(&*bench.mem).unwrap();
}

#[test]
fn audits_catch_a_device_that_writes_where_it_must_not() {
    type Find = fn(&SplitLayout) -> GuestAddress;
    let places: [(Find, Violation); 6] = [
        (|l| l.desc_at(3), Violation::DescriptorChanged { index: 3 }),
        (
            |l| GuestAddress(l.desc_at(7).0 + 14),
            Violation::DescriptorChanged { index: 7 },
        ),
        (|l| l.avail_at(2), Violation::AvailChanged { offset: 8 }),
        (|l| l.avail_flags(), Violation::AvailChanged { offset: 0 }),
        (|l| l.avail_idx(), Violation::AvailChanged { offset: 2 }),
        (|l| l.used_event(), Violation::AvailChanged { offset: 20 }),
    ];
    for (find, expected) in places {
        let mut bench = Bench::new(8, RingConfig::default());
        bench.add(0);
        bench.publish();
        bench.ring.audit(&*bench.mem).unwrap();
        let at = find(bench.ring.layout());
        let changed = bench.load(at) ^ 0x10;
        bench.mem.store_u16(at, changed, Ordering::Relaxed).unwrap();
        assert_eq!(violation(bench.ring.audit(&*bench.mem)), expected);
        assert_eq!(bench.caught(), expected);
    }
}

#[test]
fn audits_check_the_used_flags() {
    for (event_idx, flags, good) in [
        (false, USED_F_NO_NOTIFY, true),
        (false, 2, false),
        (true, 0, true),
        (true, USED_F_NO_NOTIFY, false),
    ] {
        let mut bench = Bench::new(
            8,
            RingConfig {
                event_idx,
                ..RingConfig::default()
            },
        );
        let at = bench.ring.layout().used_flags();
        bench.mem.store_u16(at, flags, Ordering::Relaxed).unwrap();
        let result = bench.ring.audit(&*bench.mem);
        if good {
            result.unwrap();
        } else {
            assert_eq!(violation(result), Violation::UsedFlags { flags });
        }
    }
}

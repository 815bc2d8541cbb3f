// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::Ordering;

use virtio_blk_driver::Memory as _;

use super::*;

/// Sets the driver's index to anything.
fn set_idx(rig: &Rig, idx: u16) {
    let at = GuestAddress(rig.driver.layout().avail().0 + 2);
    rig.mem.store_u16(at, idx, Ordering::Release).unwrap();
}

fn used_ring(rig: &Rig) -> Vec<u8> {
    let mut bytes = vec![0; 6 + 8 * usize::from(SIZE)];
    rig.mem
        .read_at(rig.driver.layout().used(), &mut bytes)
        .unwrap();
    bytes
}

#[test]
fn used_entries_show_only_when_they_are_published() {
    on_each_layout!(L => {
        let mut rig = Rig::<L>::new(true, 65_534);
        for round in 0..5u32 {
            let heads: Vec<_> = (0..3).map(|_| rig.offer()).collect();
            for &head in &heads {
                assert_eq!(rig.take(), head);
            }
            assert_eq!(rig.pop(), Ok(Popped::Empty));
            // In another order than they came.
            for &head in heads.iter().rev() {
                rig.ring.add_used(head, round);
            }
            assert_eq!(rig.used(), None);
            rig.ring.publish(&rig.map).unwrap();
            for &head in heads.iter().rev() {
                assert_eq!(rig.used(), Some((head, round)));
            }
            assert_eq!(rig.used(), None);
        }
        assert_eq!(rig.ring.in_flight(), 0);
        let state = rig.ring.state();
        let end = L::advance(65_534, 15);
        assert_eq!((state.next_avail, state.next_used), (end, end));
    });
}

#[test]
fn the_driver_s_part_of_the_ring_is_left_alone() {
    on_each_layout!(L => {
        for event_idx in [false, true] {
            let mut rig = Rig::<L>::new(event_idx, 65_000);
            for n in 0..1000 {
                rig.offer();
                rig.offer();
                rig.ring.disable_kicks(&rig.map);
                let first = rig.take();
                rig.use_up(first, n % 8);
                rig.ring.enable_kicks(&rig.map).unwrap();
                let second = rig.take();
                rig.use_up(second, 0);
                rig.audit();
                assert!(rig.used().is_some() && rig.used().is_some());
            }
        }
    });
}

#[test]
fn an_index_that_jumps_stops_the_ring_for_good() {
    for start in [0, 3, 65_530] {
        for jump in [SIZE + 1, SIZE + 2, 1000, 32768, 65535] {
            let mut rig = rig(true, start);
            let head = rig.offer();
            rig.take();
            // Behind the one that was taken.
            let (next, idx) = (
                start.wrapping_add(1),
                start.wrapping_add(1).wrapping_add(jump),
            );
            set_idx(&rig, idx);
            assert!(rig.ring.has_available());
            let before = used_ring(&rig);
            let error = RingError::AvailIndex {
                next,
                idx,
                size: SIZE,
            };
            assert_eq!(rig.pop(), Err(error));
            // Nothing works any more, and nothing is written, also once the index is right again.
            set_idx(&rig, next);
            rig.ring.add_used(head, 1);
            assert_eq!(rig.ring.publish(&rig.map), Err(error));
            assert_eq!(rig.pop(), Err(error));
            assert_eq!(rig.ring.enable_kicks(&rig.map), Err(error));
            rig.ring.disable_kicks(&rig.map);
            assert!(!rig.ring.has_available());
            assert_eq!(rig.ring.remap(&rig.map), Err(error));
            let resumed = rig.ring.resume(&rig.map, 9, &mut Chain::new());
            assert_eq!(resumed, Err(error));
            assert_eq!(rig.ring.latched(), Some(error));
            assert_eq!(rig.ring.in_flight(), 1);
            assert_eq!(used_ring(&rig), before);
        }
    }
}

#[test]
fn a_full_ring_is_no_jump() {
    on_each_layout!(L => {
        let mut rig = Rig::<L>::new(true, 65_530);
        for _ in 0..SIZE {
            rig.offer();
        }
        for _ in 0..SIZE {
            rig.take();
        }
        assert_eq!(rig.pop(), Ok(Popped::Empty));
        assert_eq!(rig.ring.in_flight(), usize::from(SIZE));
    });
}

#[test]
fn a_head_that_does_not_exist_stops_the_ring() {
    for head in [SIZE, 63, 64, 65535] {
        let mut rig = rig(true, 0);
        let entry = GuestAddress(rig.driver.layout().avail().0 + 4);
        rig.mem.store_u16(entry, head, Ordering::Relaxed).unwrap();
        set_idx(&rig, 1);
        let error = RingError::HeadIndex { head, size: SIZE };
        assert_eq!(rig.pop(), Err(error));
        assert_eq!((rig.pop(), rig.ring.in_flight()), (Err(error), 0));
    }
}

#[test]
fn a_head_in_flight_must_not_come_again() {
    let mut rig = rig(true, 0);
    let head = rig.offer();
    rig.take();
    let entry = GuestAddress(rig.driver.layout().avail().0 + 6);
    rig.mem.store_u16(entry, head, Ordering::Relaxed).unwrap();
    set_idx(&rig, 2);
    let error = RingError::HeadInFlight { head };
    assert_eq!(rig.pop(), Err(error));
    assert_eq!(rig.ring.in_flight(), 1);
}

#[test]
fn heads_that_were_not_taken_can_not_be_handed_back() {
    on_each_layout!(L => {
        let mut rig = Rig::<L>::new(true, 0);
        let head = rig.offer();
        for other in [head, SIZE, 64, 65535] {
            rig.ring.add_used(other, 1);
        }
        assert_eq!(rig.ring.publish(&rig.map), Ok(false));
        rig.take();
        rig.ring.add_used(head, 1);
        rig.ring.add_used(head, 1);
        rig.ring.publish(&rig.map).unwrap();
        assert_eq!(rig.used(), Some((head, 1)));
        assert_eq!(rig.used(), None);
    });
}

#[test]
fn resumed_heads_are_in_flight_like_any_other() {
    on_each_layout!(L => {
        let mut rig = Rig::<L>::new(true, 0);
        let heads = [rig.offer(), rig.offer()];
        rig.take();
        rig.take();
        let state = rig.ring.state();
        assert_eq!((state.next_avail, state.next_used), (L::advance(0, 2), 0));
        // Another device on the same ring.
        rig.ring = L::ring(&rig.map, &state, features(true)).unwrap();
        for head in heads {
            let popped = rig.ring.resume(&rig.map, head, &mut rig.chain);
            assert_eq!((popped, rig.chain.head()), (Ok(Popped::Chain), head));
            assert_eq!(rig.chain.writable_len(), 8);
        }
        assert_eq!(rig.ring.in_flight(), 2);
        assert_eq!(rig.pop(), Ok(Popped::Empty));
        rig.use_up(heads[1], 8);
        rig.use_up(heads[0], 7);
        assert_eq!(rig.used(), Some((heads[1], 8)));
        assert_eq!(rig.used(), Some((heads[0], 7)));
        // Twice, or out of range.
        let state = QueueState {
            next_avail: L::advance(0, 4),
            ..rig.ring.state()
        };
        for bad in [heads[0], SIZE] {
            let mut ring = L::ring(&rig.map, &state, 0).unwrap();
            assert!(ring.resume(&rig.map, heads[0], &mut rig.chain).is_ok());
            let refused = ring.resume(&rig.map, bad, &mut rig.chain);
            assert!(refused.is_err() && ring.latched() == refused.err());
        }
    });
}

#[test]
fn the_used_index_can_be_asked_of_memory() {
    let mut rig = rig(true, 65_535);
    let ask = |rig: &Rig| SplitRing::used_index(&rig.map, &rig.driver.state().into());
    assert_eq!(ask(&rig), Ok(65_535));
    let head = rig.offer();
    rig.take();
    rig.use_up(head, 0);
    assert_eq!(ask(&rig), Ok(0));
    let nowhere = QueueState {
        used_ring: 0xdead_0000,
        ..rig.driver.state().into()
    };
    assert!(SplitRing::used_index(&rig.map, &nowhere).is_err());
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_blk_driver::Memory as _;

use super::*;

fn used_flags(rig: &Rig) -> u16 {
    let at = rig.driver.layout().used();
    rig.mem.load_u16(at, Ordering::Relaxed).unwrap()
}

fn set_avail_flags(rig: &Rig, flags: u16) {
    let at = rig.driver.layout().avail();
    rig.mem.store_u16(at, flags, Ordering::Relaxed).unwrap();
}

fn set_used_event(rig: &Rig, event: u16) {
    let at = GuestAddress(rig.driver.layout().avail().0 + 4 + 2 * u64::from(SIZE));
    rig.mem.store_u16(at, event, Ordering::Relaxed).unwrap();
}

#[test]
fn without_event_idx_the_flag_decides() {
    let mut rig = rig(false, 0);
    for (flags, expected) in [(0, true), (1, false), (0xfffe, true), (0xffff, false)] {
        // What would mean something with EVENT_IDX means nothing.
        for event in [0, 1, 0x8000] {
            set_used_event(&rig, event);
            let head = rig.offer();
            rig.take();
            set_avail_flags(&rig, flags);
            assert_eq!(rig.use_up(head, 0), expected, "flags {flags:#x}");
            rig.used();
        }
    }
}

#[test]
fn with_event_idx_the_index_decides() {
    for start in [0, 65_533] {
        for count in 1..=4u16 {
            for distance in 0..8u16 {
                let mut rig = rig(true, start);
                let event = start.wrapping_add(distance);
                set_used_event(&rig, event);
                // The flag means nothing.
                set_avail_flags(&rig, 1);
                for _ in 0..count {
                    rig.offer();
                }
                for _ in 0..count {
                    let head = rig.take();
                    rig.ring.add_used(head, 0);
                }
                // The entry the driver named is among those that were used.
                let told = rig.ring.publish(&rig.map).unwrap();
                assert_eq!(told, distance < count, "{start} {count} {distance}");
            }
        }
    }
}

#[test]
fn nothing_published_is_nothing_to_tell() {
    on_each_layout!(L => {
        for event_idx in [false, true] {
            let mut rig = Rig::<L>::new(event_idx, 0);
            assert_eq!(rig.ring.publish(&rig.map), Ok(false));
            let head = rig.offer();
            rig.take();
            assert!(rig.use_up(head, 0));
            assert_eq!(rig.ring.publish(&rig.map), Ok(false));
        }
    });
}

#[test]
fn used_flags_stay_zero_with_event_idx() {
    let mut rig = rig(true, 0);
    for _ in 0..4 {
        rig.ring.disable_kicks(&rig.map);
        assert_eq!(used_flags(&rig), 0);
        assert_eq!(rig.ring.enable_kicks(&rig.map), Ok(false));
        assert_eq!(used_flags(&rig), 0);
    }
}

#[test]
fn a_flag_that_an_earlier_device_left_is_cleared() {
    for event_idx in [false, true] {
        let mut rig = rig(event_idx, 0);
        let at = rig.driver.layout().used();
        rig.mem.store_u16(at, 1, Ordering::Relaxed).unwrap();
        rig.ring = SplitRing::new(&rig.map, rig.driver.state(), features(event_idx)).unwrap();
        rig.ring.disable_kicks(&rig.map);
        assert_eq!(rig.ring.enable_kicks(&rig.map), Ok(false));
        assert_eq!(used_flags(&rig), 0);
    }
}

#[test]
fn kicks_are_asked_for_and_looked_for_once_more() {
    on_each_layout!(L => {
        for event_idx in [false, true] {
            let mut rig = Rig::<L>::new(event_idx, 65_535);
            assert_eq!(rig.ring.enable_kicks(&rig.map), Ok(false));
            rig.offer();
            assert!(DriverHalf::needs_kick(&mut rig.driver, &rig.mem));
            // It came before it was asked for.
            assert_eq!(rig.ring.enable_kicks(&rig.map), Ok(true));
            let head = rig.take();
            rig.ring.disable_kicks(&rig.map);
            rig.use_up(head, 0);
            rig.offer();
            assert!(!DriverHalf::needs_kick(&mut rig.driver, &rig.mem));
            assert_eq!(rig.ring.enable_kicks(&rig.map), Ok(true));
            rig.take();
            // A kick for nothing.
            assert_eq!(rig.pop(), Ok(Popped::Empty));
            assert_eq!(rig.ring.enable_kicks(&rig.map), Ok(false));
            rig.offer();
            assert!(DriverHalf::needs_kick(&mut rig.driver, &rig.mem));
        }
    });
}

proptest! {
    /// Batches of any size, against a driver that asks for an interrupt after any number.
    #[test]
    fn every_interrupt_that_is_due_is_sent(
        start: u16,
        rounds in prop::collection::vec((1..=8u16, 0..6u16, any::<bool>()), 1..40),
    ) {
        on_each_layout!(L => {
        let mut rig = Rig::<L>::new(true, start);
        for &(count, after, at_once) in &rounds {
            DriverHalf::interrupt_after(&mut rig.driver, &rig.mem, after);
            for _ in 0..count {
                rig.offer();
            }
            let mut told = false;
            for _ in 0..count {
                let head = rig.take();
                rig.ring.add_used(head, 0);
                if at_once {
                    told |= rig.ring.publish(&rig.map).unwrap();
                }
            }
            told |= rig.ring.publish(&rig.map).unwrap();
            let due = DriverHalf::interrupt_due(&mut rig.driver, &rig.mem);
            prop_assert_eq!(told, due, "no more and no less");
            while rig.used().is_some() {}
        }
        });
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn refused(change: impl Fn(&mut QueueState)) -> RingError {
    let rig = rig(true, 0);
    let mut state = QueueState::from(rig.driver.state());
    change(&mut state);
    let made = SplitRing::new(&rig.map, state, features(true));
    made.err().expect("it should be refused")
}

#[test]
fn a_queue_must_be_ready_and_of_a_good_size() {
    assert_eq!(refused(|s| s.ready = false), RingError::NotReady);
    for size in [0, 3, 12, 32, 32768, 65535] {
        let error = refused(|s| s.size = size);
        assert_eq!(error, RingError::Size { size, max: SIZE });
    }
    // Whatever the maximum says, virtio has one.
    let error = refused(|s| (s.size, s.max_size) = (32769, u16::MAX));
    assert!(matches!(error, RingError::Size { max: 32768, .. }));
    let rig = rig(true, 0);
    for size in [1, 2, 4, 8] {
        let state = QueueState {
            size,
            ..rig.driver.state().into()
        };
        assert!(SplitRing::new(&rig.map, state, 0).is_ok(), "{size}");
    }
}

/// One of the addresses in a state.
type Field = fn(&mut QueueState) -> &mut u64;

#[test]
fn the_three_structures_must_be_aligned_and_mapped() {
    let fields: [(&str, u64, Field); 3] = [
        ("descriptor table", 16, |s| &mut s.desc_table),
        ("available ring", 2, |s| &mut s.avail_ring),
        ("used ring", 4, |s| &mut s.used_ring),
    ];
    for (name, alignment, field) in fields {
        for odd in 1..alignment {
            let error = refused(|s| *field(s) += odd);
            let RingError::Misaligned { what, align, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((what, align), (name, alignment));
        }
        let unmapped = [0, 0xdead_0000, u64::MAX - 15, u64::MAX - 0xfff, 1 << 63];
        // The end of memory cuts the last bytes off.
        let edge = rig(true, 0).space.edge().0;
        for addr in unmapped.into_iter().chain([edge - 16, edge]) {
            let error = refused(|s| *field(s) = addr & !15);
            let RingError::NotMapped { what, source } = error else {
                panic!("{error}");
            };
            assert_eq!((what, source.addr), (name, addr & !15));
        }
    }
}

/// The last bytes of a ring exist only with EVENT_IDX.
#[test]
fn the_event_fields_need_not_exist_without_the_feature() {
    let rig = rig(false, 0);
    let edge = rig.space.edge().0;
    for (avail, used) in [(edge - 4 - 32, 0), (0, edge - 4 - 128)] {
        let state = QueueState::from(rig.driver.state());
        let or = |addr, other| if addr == 0 { other } else { addr };
        let state = QueueState {
            avail_ring: or(avail, state.avail_ring),
            used_ring: or(used, state.used_ring),
            ..state
        };
        assert!(SplitRing::new(&rig.map, state, 0).is_ok());
        assert!(SplitRing::new(&rig.map, state, RING_EVENT_IDX).is_err());
    }
}

#[test]
fn the_state_comes_out_as_it_went_in() {
    let rig = rig(true, 7);
    let state = QueueState {
        max_size: 64,
        next_avail: 9,
        next_used: 7,
        ..rig.driver.state().into()
    };
    let ring = SplitRing::new(&rig.map, state, RING_EVENT_IDX).unwrap();
    assert_eq!(ring.state(), state);
    for event_idx in [true, false] {
        let theirs = ring.state().to_virtio_queue(event_idx).unwrap();
        assert_eq!(theirs.event_idx_enabled, event_idx);
        assert_eq!(QueueState::from(&theirs), state);
        assert!(virtio_queue::Queue::try_from(theirs).is_ok());
    }
    assert!(SplitRing::new(&rig.map, ring.state(), 0).is_ok());
}

/// Addresses that are not the guest's must not be looked up as if they were.
#[test]
fn a_state_that_is_not_understood_is_refused() {
    for kind in [AddressKind::Host, AddressKind::Own] {
        let error = refused(|s| s.addresses = kind);
        assert_eq!(error, RingError::Addresses(kind));
    }
    let (found, known) = (QueueState::VERSION + 1, QueueState::VERSION);
    assert_eq!(
        refused(|s| s.version = found),
        RingError::Version { found, known }
    );
    let rig = rig(true, 0);
    for (version, addresses) in [(found, AddressKind::Guest), (known, AddressKind::Own)] {
        let state = QueueState {
            version,
            addresses,
            ..rig.driver.state().into()
        };
        assert!(SplitRing::used_index(&rig.map, &state).is_err());
        assert_eq!(state.to_virtio_queue(true), None);
    }
}

#[test]
fn errors_say_what_and_where() {
    let error = refused(|s| s.used_ring = 0xdead_0000);
    let text = error.to_string();
    assert!(
        text.contains("used ring") && text.contains("0xdead0000"),
        "{text}"
    );
}

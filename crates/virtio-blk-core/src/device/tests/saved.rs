// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::ring::QueueState;

fn queue() -> SavedQueue {
    SavedQueue {
        state: QueueState {
            size: 16,
            ready: true,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            next_avail: 2,
            next_used: 65535,
            ..QueueState::default()
        },
        in_flight: vec![7, 0, 15],
    }
}

fn two_queues() -> DeviceOptions {
    DeviceOptions {
        queues: 2,
        ..DeviceOptions::default()
    }
}

fn saved(device: &Device) -> SavedDevice {
    device.accept(device.offered()).unwrap();
    device.write_config(32, &[0]).unwrap();
    device.save(vec![queue(), SavedQueue::default()])
}

#[test]
fn what_is_saved_comes_back() {
    let device = device(full(), two_queues());
    let state = saved(&device);
    let other = super::device(full(), two_queues());
    other.restore(&state).unwrap();
    assert_eq!(other.accepted(), device.offered());
    assert_eq!(other.config().writeback, 0);
    assert_eq!(other.config_generation(), 0, "nothing changed");
    assert_eq!(other.save(state.queues.clone()), state);
}

#[test]
fn json_round_trip() {
    let state = saved(&device(full(), two_queues()));
    let text = serde_json::to_string(&state).unwrap();
    let back: SavedDevice = serde_json::from_str(&text).unwrap();
    assert_eq!(back, state);
    for broken in [
        "{}",
        "[]",
        "null",
        r#"{"version":-1}"#,
        &text[..text.len() - 1],
    ] {
        assert!(serde_json::from_str::<SavedDevice>(broken).is_err());
    }
}

#[test]
fn state_of_version_1_is_read() {
    let device = device(full(), two_queues());
    let mut state = saved(&device);
    state.version = 1;
    state.abi = None;
    let mut json = serde_json::to_value(&state).unwrap();
    json.as_object_mut().unwrap().remove("abi");
    let back: SavedDevice = serde_json::from_value(json).unwrap();
    assert_eq!(back, state);
    let other = super::device(full(), two_queues());
    other.restore(&back).unwrap();
    assert_eq!(other.accepted(), device.offered());
    assert_eq!(other.guest_abi().seg_max, 126);
}

#[test]
fn what_the_guest_was_told_comes_back() {
    let big = DeviceOptions {
        queues: 4,
        queue_size: 1024,
        seg_max: Some(254),
        ..DeviceOptions::default()
    };
    let old = device(full(), two_queues());
    let state = saved(&old);
    let new = device(full(), big.clone());
    new.restore(&state).unwrap();
    assert_eq!(new.guest_abi(), old.guest_abi());
    assert_eq!(new.save(state.queues.clone()), state);
    let config = new.config();
    assert_eq!((config.num_queues, config.seg_max), (2, 126));

    // And the other way round it is refused.
    let big = device(full(), big);
    big.accept(big.offered()).unwrap();
    let error = old.restore(&big.save(vec![])).unwrap_err();
    assert_eq!(
        error,
        RestoreError::Abi(AbiError::Queues { told: 4, now: 2 })
    );
    assert_eq!(old.config().num_queues, 2);
}

#[test]
fn a_queue_survives_the_way_through_its_state() {
    let queue = queue();
    let theirs = queue.state.to_virtio_queue(true).unwrap();
    assert_eq!((theirs.size, theirs.event_idx_enabled), (16, true));
    assert_eq!(SavedQueue::new(theirs, vec![7, 0, 15]), queue);
}

#[test]
fn a_device_that_was_not_negotiated_comes_back_so() {
    let device = device(full(), DeviceOptions::default());
    let state = device.save(vec![]);
    assert_eq!(state.features, 0);
    device.accept(device.offered()).unwrap();
    device.restore(&state).unwrap();
    assert_eq!(device.accepted(), 0);
}

#[test]
fn the_cache_mode_comes_back_only_where_the_driver_can_set_it() {
    let device = device(full(), DeviceOptions::default());
    for (features, expected) in [
        (device.offered() & !feature::CONFIG_WCE, 1),
        (device.offered() & !feature::FLUSH, 0),
        (device.offered(), 0),
    ] {
        device.accept(features).unwrap();
        let mut state = device.save(vec![]);
        state.writeback = false;
        device.restore(&state).unwrap();
        assert_eq!(device.config().writeback, expected);
    }
}

#[test]
fn a_restored_device_notifies_a_capacity_that_differs() {
    let old = device(full(), DeviceOptions::default());
    old.accept(old.offered()).unwrap();
    let state = old.save(vec![]);
    let new = device(
        Caps {
            capacity: 4096,
            ..full()
        },
        DeviceOptions::default(),
    );
    let told = Arc::new(AtomicU32::new(0));
    let counter = told.clone();
    new.listen(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    new.restore(&state).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(new.config_generation(), 1);
    assert_eq!(new.capacity(), 4096);
}

#[test]
fn hostile_state_is_refused_and_changes_nothing() {
    let device = device(full(), two_queues());
    let good = saved(&device);
    device.accept(feature::VERSION_1).unwrap();
    let refused = |change: &dyn Fn(&mut SavedDevice)| {
        let mut state = good.clone();
        change(&mut state);
        let error = device.restore(&state).unwrap_err();
        assert_eq!(device.accepted(), feature::VERSION_1, "{error}");
        error
    };
    let bad_queue = |change: &dyn Fn(&mut SavedQueue)| {
        let error = refused(&|state| change(&mut state.queues[0]));
        assert!(
            matches!(error, RestoreError::Queue { index: 0, .. }),
            "{error}"
        );
    };
    for version in [0, 3, u16::MAX] {
        let error = refused(&|s| s.version = version);
        assert_eq!(error, RestoreError::Version(version));
    }
    let error = refused(&|s| s.features |= feature::ZONED);
    let not_offered = NegotiationError::NotOffered(feature::ZONED);
    assert_eq!(error, RestoreError::Features(not_offered));
    let error = refused(&|s| s.features = feature::FLUSH);
    assert_eq!(error, RestoreError::Features(NegotiationError::Version1));
    let error = refused(&|s| s.abi.as_mut().unwrap().queue_size = 512);
    let differs = AbiError::QueueSize {
        told: 512,
        now: 256,
    };
    assert_eq!(error, RestoreError::Abi(differs));
    let error = refused(&|s| s.block_size = 4096);
    assert!(matches!(error, RestoreError::BlockSize { saved: 4096, .. }));
    let error = refused(&|s| s.queues.push(queue()));
    assert_eq!(
        error,
        RestoreError::Queues {
            saved: 3,
            device: 2
        }
    );

    for size in [0, 3, 15, 512, 32768, u16::MAX] {
        bad_queue(&|q| q.state.size = size);
    }
    bad_queue(&|q| q.state.ready = false);
    bad_queue(&|q| q.state.next_avail = 3);
    bad_queue(&|q| q.state.next_used = 0);
    bad_queue(&|q| q.in_flight.clear());
    bad_queue(&|q| q.in_flight[0] = 16);
    bad_queue(&|q| q.in_flight[0] = u16::MAX);
    bad_queue(&|q| q.in_flight[0] = 15);
    bad_queue(&|q| {
        q.in_flight = (0..17).collect();
        q.state.next_avail = q.state.next_used.wrapping_add(17);
    });
    bad_queue(&|q| {
        q.in_flight = vec![0; 65_536];
        q.state.next_avail = q.state.next_used;
    });
    device.restore(&good).unwrap();
}

proptest! {
    #[test]
    fn no_state_panics(
        version in 0..3u16,
        features: u64,
        block_size in prop_oneof![Just(512u32), any::<u32>()],
        size: u16,
        ready: bool,
        indices: (u16, u16),
        in_flight in prop::collection::vec(any::<u16>(), 0..20),
    ) {
        let device = device(full(), DeviceOptions::default());
        let queue = SavedQueue {
            state: QueueState {
                size,
                ready,
                next_avail: indices.0,
                next_used: indices.1,
                ..queue().state
            },
            in_flight,
        };
        let state = SavedDevice {
            version,
            features: features & device.offered() | feature::VERSION_1,
            writeback: true,
            capacity: features,
            block_size,
            queues: vec![queue],
            abi: None,
        };
        if device.restore(&state).is_ok() {
            prop_assert_eq!(device.accepted(), state.features);
        }
    }
}

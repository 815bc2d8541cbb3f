// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::spec::feature::*;

/// What every device offers.
const ALWAYS: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC | SEG_MAX | BLK_SIZE | TOPOLOGY;

fn offered(caps: Caps, options: DeviceOptions) -> u64 {
    device(caps, options).offered()
}

#[test]
fn version_1_is_offered_whatever_is_asked() {
    let options = DeviceOptions {
        masked_features: u64::MAX,
        ..DeviceOptions::default()
    };
    assert_eq!(offered(full(), options), VERSION_1);
}

#[test]
fn only_what_the_disk_can_do_is_offered() {
    let plain = Caps::basic(8);
    assert_eq!(offered(plain, DeviceOptions::default()), ALWAYS);
    let everything = ALWAYS | FLUSH | CONFIG_WCE | DISCARD | WRITE_ZEROES | SECURE_ERASE | LIFETIME;
    assert_eq!(offered(full(), DeviceOptions::default()), everything);
    for (caps, bits) in [
        (
            Caps {
                flush: true,
                ..plain
            },
            FLUSH | CONFIG_WCE,
        ),
        (
            Caps {
                discard: Some(LIMITS),
                ..plain
            },
            DISCARD,
        ),
        (
            Caps {
                secure_erase: Some(LIMITS),
                ..plain
            },
            SECURE_ERASE,
        ),
        (
            Caps {
                write_zeroes: full().write_zeroes,
                ..plain
            },
            WRITE_ZEROES,
        ),
        (
            Caps {
                lifetime: true,
                ..plain
            },
            LIFETIME,
        ),
        (
            Caps {
                read_only: true,
                ..plain
            },
            RO,
        ),
    ] {
        assert_eq!(offered(caps, DeviceOptions::default()), ALWAYS | bits);
    }
}

#[test]
fn legacy_and_zoned_bits_are_not_offered() {
    let bits = offered(full(), DeviceOptions::default());
    let legacy = 1 | 1 << 7 | 1 << 24 | 1 << 27;
    assert_eq!(bits & (legacy | ZONED), 0);
    assert_eq!(
        bits & (RING_PACKED | IN_ORDER | RING_RESET | ACCESS_PLATFORM),
        0
    );
}

#[test]
fn a_read_only_disk_offers_no_erasure() {
    let erasing = DISCARD | WRITE_ZEROES | SECURE_ERASE;
    let read_only = Caps {
        read_only: true,
        ..full()
    };
    let by_option = DeviceOptions {
        read_only: true,
        ..DeviceOptions::default()
    };
    for bits in [
        offered(read_only, DeviceOptions::default()),
        offered(full(), by_option),
    ] {
        assert_eq!(bits & (RO | erasing), RO);
    }
}

#[test]
fn config_wce_comes_with_flush_only() {
    let without_flush = Caps {
        flush: false,
        ..full()
    };
    assert_eq!(
        offered(without_flush, DeviceOptions::default()) & (FLUSH | CONFIG_WCE),
        0
    );
    let masked = DeviceOptions {
        masked_features: FLUSH,
        ..DeviceOptions::default()
    };
    assert_eq!(offered(full(), masked) & (FLUSH | CONFIG_WCE), 0);
    let fixed = DeviceOptions {
        config_wce: false,
        ..DeviceOptions::default()
    };
    assert_eq!(offered(full(), fixed) & (FLUSH | CONFIG_WCE), FLUSH);
    // A transport that adds it by itself gets it under the same condition.
    let added = DeviceOptions {
        transport_features: CONFIG_WCE,
        ..DeviceOptions::default()
    };
    assert_eq!(offered(without_flush, added) & CONFIG_WCE, 0);
}

#[test]
fn several_queues_are_offered_as_such() {
    for (queues, bit) in [(1, 0), (2, MQ), (64, MQ)] {
        let options = DeviceOptions {
            queues,
            ..DeviceOptions::default()
        };
        assert_eq!(offered(full(), options) & MQ, bit);
    }
}

#[test]
fn transports_add_and_hide_bits() {
    let options = DeviceOptions {
        transport_features: ACCESS_PLATFORM | RING_RESET,
        masked_features: RING_EVENT_IDX,
        ..DeviceOptions::default()
    };
    let bits = offered(Caps::basic(8), options);
    assert_eq!(
        bits,
        ALWAYS & !RING_EVENT_IDX | ACCESS_PLATFORM | RING_RESET
    );
}

#[test]
fn any_subset_is_accepted_and_nothing_else() {
    let device = device(full(), DeviceOptions::default());
    let offered = device.offered();
    assert_eq!(device.accepted(), 0);
    let optional: Vec<u64> = (0..64)
        .map(|bit| 1 << bit)
        .filter(|mask| offered & mask != 0 && *mask != VERSION_1)
        .collect();
    // Each alone, all without each, and twice in a row.
    for &bit in &optional {
        for features in [VERSION_1 | bit, offered & !bit, offered & !bit] {
            assert_eq!(device.accept(features), Ok(()));
            assert_eq!(device.accepted(), features);
        }
    }
    assert_eq!(device.accept(VERSION_1), Ok(()));
    for bit in 0..64 {
        if offered & 1 << bit == 0 {
            let refused = device.accept(offered | 1 << bit);
            assert_eq!(refused, Err(NegotiationError::NotOffered(1 << bit)));
            assert_eq!(device.accepted(), VERSION_1, "as it was");
        }
    }
}

#[test]
fn drivers_before_1_0_are_refused() {
    let device = device(full(), DeviceOptions::default());
    let legacy = device.offered() & !VERSION_1;
    for features in [0, legacy] {
        assert_eq!(device.accept(features), Err(NegotiationError::Version1));
    }
    assert_eq!(device.accepted(), 0);
}

#[test]
fn a_reset_forgets_and_the_same_set_is_accepted_again() {
    let device = device(full(), DeviceOptions::default());
    device.accept(device.offered()).unwrap();
    device.reset();
    assert_eq!(device.accepted(), 0);
    assert_eq!(device.accept(device.offered()), Ok(()));
}

#[test]
fn names_of_the_offer() {
    let device = device(Caps::basic(8), DeviceOptions::default());
    let names = [
        "SEG_MAX",
        "BLK_SIZE",
        "TOPOLOGY",
        "RING_INDIRECT_DESC",
        "RING_EVENT_IDX",
        "VERSION_1",
    ];
    assert_eq!(device.offered_names(), names);
}

#[test]
fn options_are_checked() {
    let make = |options| Device::new(Arc::new(TestDisk::new(full())), options);
    let with = |change: fn(&mut DeviceOptions)| {
        let mut options = DeviceOptions::default();
        change(&mut options);
        make(options)
    };
    assert!(with(|_| {}).is_ok());
    assert!(matches!(
        with(|o| o.queues = 0),
        Err(DeviceOptionsError::Queues { queues: 0, .. })
    ));
    for size in [0, 1, 2, 3, 5, 255, 257, 32769, u16::MAX] {
        let options = DeviceOptions {
            queue_size: size,
            ..DeviceOptions::default()
        };
        assert!(
            matches!(make(options), Err(DeviceOptionsError::QueueSize(s)) if s == size),
            "{size}"
        );
    }
    for size in [4, 128, 32768] {
        let options = DeviceOptions {
            queue_size: size,
            ..DeviceOptions::default()
        };
        assert!(make(options).is_ok(), "{size}");
    }
    assert!(with(|o| o.serial = "x".repeat(20)).is_ok());
    for bad in ["x".repeat(21), "a\0b".to_owned(), "ä".repeat(11)] {
        let options = DeviceOptions {
            serial: bad.clone(),
            ..DeviceOptions::default()
        };
        assert!(matches!(make(options), Err(DeviceOptionsError::Serial(s)) if s == bad));
    }
    let few = Caps {
        max_queues: 2,
        ..full()
    };
    let three = DeviceOptions {
        queues: 3,
        ..DeviceOptions::default()
    };
    let refused = Device::new(Arc::new(TestDisk::new(few)), three);
    assert!(matches!(
        refused,
        Err(DeviceOptionsError::Queues { queues: 3, max: 2 })
    ));
    let mut nonsense = full();
    nonsense.align.guest_block = 1000;
    let refused = Device::new(Arc::new(TestDisk::new(nonsense)), DeviceOptions::default());
    assert!(matches!(refused, Err(DeviceOptionsError::Disk(_))));
}

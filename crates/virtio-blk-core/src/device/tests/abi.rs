// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::runner::QueueSetup;

fn options() -> DeviceOptions {
    DeviceOptions {
        queues: 4,
        queue_size: 512,
        seg_max: Some(200),
        serial: "disk-7".to_owned(),
        ..DeviceOptions::default()
    }
}

fn told() -> GuestAbi {
    device(full(), options()).guest_abi()
}

#[test]
fn the_byte_form_is_what_it_was() {
    let caps = Caps {
        topology: Topology {
            physical_block_exp: 3,
            alignment_offset: 1,
            min_io_size: 8,
            opt_io_size: 256,
        },
        ..full()
    };
    let abi = device(caps, options()).guest_abi();
    let bytes = abi.to_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // A form that was given out once is read for ever: these bytes never change.
    assert_eq!(
        hex,
        concat!(
            "01006100",
            "8636677c",
            "44fe013001000000",
            "0008000000000000",
            "0400",
            "0002",
            "c8000000",
            "00020000",
            "0301080000010000",
            "1f",
            "e80300000700000008000000",
            "d007000009000000",
            "e80300000300000008000000",
            "6469736b2d370000000000000000000000000000"
        )
    );
    assert_eq!(GuestAbi::from_bytes(&bytes), Ok(abi));
    let mut longer = bytes;
    longer.resize(GuestAbi::MAX_BYTES, 0x55);
    assert_eq!(GuestAbi::from_bytes(&longer), Ok(abi));
}

/// Changes the bytes and makes the checksum right again.
fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = told().to_bytes();
    change(&mut bytes);
    let sum = crate::guest_abi::checksum(&bytes).to_le_bytes();
    bytes[4..8].copy_from_slice(&sum);
    bytes
}

#[test]
fn damaged_bytes_are_refused() {
    let bytes = told().to_bytes();
    for len in 0..bytes.len() {
        assert!(GuestAbi::from_bytes(&bytes[..len]).is_err(), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(GuestAbi::from_bytes(&bytes).is_err(), "{bit}");
    }
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let newer = forged(|bytes| bytes[0] = 7);
    let error = GuestAbi::from_bytes(&newer).unwrap_err();
    assert_eq!(error, AbiError::Version { found: 7, known: 1 });
    assert!(error.to_string().contains("version 7"), "{error}");
    // Also where it is longer than this one.
    let longer = forged(|bytes| {
        bytes[0] = 2;
        bytes[2] = 200;
        bytes.resize(200, 1);
    });
    let error = GuestAbi::from_bytes(&longer).unwrap_err();
    assert_eq!(error, AbiError::Version { found: 2, known: 1 });
}

#[test]
fn values_that_no_device_has_are_refused() {
    for (what, offset, value) in [
        ("version", 0, &[0, 0][..]),
        ("VERSION_1", 12, &[0]),
        ("queues", 24, &[0, 0]),
        ("queue size", 26, &[3, 0]),
        ("queue size", 26, &[0, 0]),
        ("seg_max", 28, &[0; 4]),
        ("seg_max", 28, &[0xff, 0x1f, 0, 0]),
        ("flag", 44, &[0x3f]),
        ("limits", 45, &[0; 4]),
        ("limits", 49, &[0; 4]),
        ("limits", 53, &[0; 4]),
        ("limits", 57, &[0; 4]),
        ("limits", 65, &[0; 4]),
        ("limits", 9, &[0]),
    ] {
        let bytes = forged(|bytes| bytes[offset..offset + value.len()].copy_from_slice(value));
        let error = GuestAbi::from_bytes(&bytes).unwrap_err();
        assert!(matches!(error, AbiError::Malformed(_)), "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn what_was_told_is_presented_from_then_on() {
    let old = device(full(), options());
    let mut caps = full();
    caps.topology.opt_io_size = 64;
    caps.discard = Some(EraseLimits {
        max_sectors: 5000,
        max_segments: 100,
        alignment: 1,
    });
    let new = device(
        caps,
        DeviceOptions {
            queues: 8,
            queue_size: 1024,
            seg_max: None,
            transport_features: feature::RING_RESET,
            ..options()
        },
    );
    assert_ne!(new.config(), old.config());
    new.adopt(&old.guest_abi()).unwrap();
    for _ in 0..2 {
        assert_eq!(new.config(), old.config());
        assert_eq!(new.guest_abi(), old.guest_abi());
        assert_eq!(new.offered(), old.offered());
        assert_eq!(new.config_generation(), 0, "the driver sees no change");
        assert!(
            new.accept(feature::RING_RESET | feature::VERSION_1)
                .is_err()
        );
        new.accept(new.offered()).unwrap();
        new.reset();
    }
}

#[test]
fn queues_keep_to_what_was_told() {
    let told = device(
        full(),
        DeviceOptions {
            queues: 1,
            queue_size: 8,
            ..DeviceOptions::default()
        },
    );
    let new = device(
        full(),
        DeviceOptions {
            queues: 2,
            queue_size: 16,
            ..DeviceOptions::default()
        },
    );
    new.adopt(&told.guest_abi()).unwrap();
    new.accept(new.offered()).unwrap();
    let (memory, mut space) = malformed_queues::testmem::single(1 << 20).unwrap();
    let memory = Arc::new(memory);
    let mut start = |index, size| {
        let config = virtio_blk_driver::ring::RingConfig::default();
        let arena = virtio_blk_driver::request::ArenaConfig::default();
        let driver = space.driver(memory.clone(), size, config, arena).unwrap();
        new.start_queue(
            index,
            QueueSetup::new(memory.clone(), || {}),
            driver.state(),
        )
        .map(drop)
    };
    assert!(start(0, 8).is_ok());
    assert!(matches!(start(0, 16), Err(StartError::Ring(_))));
    let error = start(1, 8).unwrap_err();
    assert!(matches!(
        error,
        StartError::Index {
            index: 1,
            queues: 1
        }
    ));
}

#[test]
fn what_can_not_be_kept_is_refused_by_name() {
    let told = told();
    let refused = |caps: Caps, options: DeviceOptions| {
        let device = device(caps, options);
        let before = device.guest_abi();
        let error = device.adopt(&told).unwrap_err();
        assert_eq!(device.guest_abi(), before);
        assert_eq!(device.config_generation(), 0);
        error
    };
    let error = refused(
        full(),
        DeviceOptions {
            queues: 3,
            ..options()
        },
    );
    assert_eq!(error, AbiError::Queues { told: 4, now: 3 });
    let error = refused(
        full(),
        DeviceOptions {
            queue_size: 256,
            ..options()
        },
    );
    assert_eq!(
        error,
        AbiError::QueueSize {
            told: 512,
            now: 256
        }
    );
    assert!(error.to_string().contains("at least 512"), "{error}");
    let error = refused(
        full(),
        DeviceOptions {
            read_only: true,
            ..options()
        },
    );
    assert_eq!(error, AbiError::ReadOnly);
    let serial = "disk-8".to_owned();
    let error = refused(
        full(),
        DeviceOptions {
            serial,
            ..options()
        },
    );
    assert_eq!(
        error,
        AbiError::Serial {
            told: "disk-7".to_owned(),
            now: "disk-8".to_owned()
        }
    );
    let error = refused(
        full(),
        DeviceOptions {
            config_wce: false,
            ..options()
        },
    );
    let missing = feature::CONFIG_WCE;
    assert_eq!(error, AbiError::Features { missing });
    assert!(error.to_string().contains("CONFIG_WCE"), "{error}");

    let with = |change: &dyn Fn(&mut Caps)| {
        let mut caps = full();
        change(&mut caps);
        refused(caps, options())
    };
    let missing = feature::DISCARD;
    assert_eq!(with(&|c| c.discard = None), AbiError::Features { missing });
    assert_eq!(
        with(&|c| c.align.guest_block = 4096),
        AbiError::BlockSize {
            told: 512,
            now: 4096
        }
    );
    assert_eq!(
        with(&|c| c.capacity = 2040),
        AbiError::Capacity {
            told: 2048,
            now: 2040
        }
    );
    type Change = fn(&mut Caps);
    let limits: [(&str, u32, Change); 6] = [
        ("max_discard_sectors", 1000, |c| {
            c.discard.as_mut().unwrap().max_sectors -= 1;
        }),
        ("max_discard_seg", 7, |c| {
            c.discard.as_mut().unwrap().max_segments -= 1;
        }),
        ("max_write_zeroes_sectors", 2000, |c| {
            c.write_zeroes.as_mut().unwrap().max_sectors -= 1;
        }),
        ("max_write_zeroes_seg", 9, |c| {
            c.write_zeroes.as_mut().unwrap().max_segments -= 1;
        }),
        ("max_secure_erase_sectors", 1000, |c| {
            c.secure_erase.as_mut().unwrap().max_sectors -= 1;
        }),
        ("max_secure_erase_seg", 3, |c| {
            c.secure_erase.as_mut().unwrap().max_segments -= 1;
        }),
    ];
    for (field, told, change) in limits {
        let now = told - 1;
        assert_eq!(with(&change), AbiError::Limit { field, told, now });
    }
}

#[test]
fn a_disk_that_grew_is_told_and_one_that_may_be_written_stays_read_only() {
    let read_only = DeviceOptions {
        read_only: true,
        ..options()
    };
    let old = device(full(), read_only);
    let new = device(
        Caps {
            capacity: 4096,
            ..full()
        },
        options(),
    );
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    new.listen(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    new.adopt(&old.guest_abi()).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(new.config_generation(), 1);
    assert_eq!(new.config().capacity, 4096);
    assert!(new.offered() & feature::RO != 0);
    assert!(new.shown_caps().read_only);
}

#[test]
fn a_disk_that_may_not_be_written_stays_so_without_the_bit_that_says_it() {
    let by_disk = Caps {
        read_only: true,
        ..full()
    };
    for (caps, read_only) in [(by_disk, false), (full(), true)] {
        let options = DeviceOptions {
            read_only,
            masked_features: feature::RO,
            ..options()
        };
        let device = device(caps, options);
        assert_eq!(device.offered() & feature::RO, 0);
        assert!(device.shown_caps().read_only);
        device.adopt(&device.guest_abi()).unwrap();
        assert!(device.shown_caps().read_only);
    }
}

#[test]
fn features_come_with_their_limits() {
    for bit in [
        feature::DISCARD,
        feature::WRITE_ZEROES,
        feature::SECURE_ERASE,
    ] {
        let mut abi = told();
        match bit {
            feature::DISCARD => abi.discard = None,
            feature::WRITE_ZEROES => abi.write_zeroes = None,
            _ => abi.secure_erase = None,
        }
        assert!(abi.features & bit != 0);
        let error = GuestAbi::from_bytes(&abi.to_bytes()).unwrap_err();
        assert!(matches!(error, AbiError::Malformed(_)), "{error}");
    }
}

#[test]
fn the_cache_mode_is_taken_over_once() {
    let mut told = told();
    told.writeback = false;
    let new = device(full(), options());
    new.adopt(&told).unwrap();
    new.accept(new.offered()).unwrap();
    assert_eq!(new.config().writeback, 0);
    new.reset();
    new.accept(new.offered()).unwrap();
    assert_eq!(new.config().writeback, 1);
    // After negotiation it takes effect at once.
    new.adopt(&told).unwrap();
    assert_eq!(new.config().writeback, 0);

    // A driver that can't flush never gets a volatile cache by it.
    told.writeback = true;
    let new = device(full(), options());
    new.adopt(&told).unwrap();
    new.accept(new.offered() & !feature::FLUSH).unwrap();
    assert_eq!(new.config().writeback, 0);
}

#[test]
fn a_driver_that_acknowledged_more_is_not_forgotten() {
    let few = DeviceOptions {
        masked_features: feature::DISCARD,
        ..options()
    };
    let told = device(full(), few).guest_abi();
    let new = device(full(), options());
    new.accept(new.offered()).unwrap();
    let extra = feature::DISCARD;
    assert_eq!(new.adopt(&told), Err(AbiError::Negotiated { extra }));
    assert!(new.offered() & feature::DISCARD != 0);
}

#[test]
fn another_guest_is_told_of_the_device_itself() {
    let few = DeviceOptions {
        queues: 2,
        queue_size: 64,
        seg_max: Some(8),
        masked_features: feature::DISCARD,
        ..options()
    };
    let mut told = device(full(), few).guest_abi();
    told.writeback = false;
    let new = device(full(), options());
    let (own, config) = (new.guest_abi(), new.config());
    new.adopt(&told).unwrap();
    assert_ne!(new.guest_abi(), own);
    new.accept(new.offered()).unwrap();
    new.reset();
    new.present_own();
    assert_eq!(new.guest_abi(), own);
    assert_eq!(new.config(), config);
    new.accept(new.offered()).unwrap();
    assert_eq!(new.config().writeback, 1);
}

#[test]
fn with_serde_it_is_the_byte_form() {
    let abi = told();
    let text = serde_json::to_string(&abi).unwrap();
    assert_eq!(
        serde_json::to_vec(&abi.to_bytes()).unwrap(),
        text.as_bytes()
    );
    assert_eq!(serde_json::from_str::<GuestAbi>(&text).unwrap(), abi);
    let newer = serde_json::to_string(&forged(|bytes| bytes[0] = 9)).unwrap();
    let error = serde_json::from_str::<GuestAbi>(&newer).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = GuestAbi::from_bytes(&bytes);
    }

    #[test]
    fn whatever_is_read_is_adopted_or_refused(at in 8usize..97, value: u8) {
        let bytes = forged(|bytes| bytes[at] = value);
        if let Ok(abi) = GuestAbi::from_bytes(&bytes) {
            prop_assert_eq!(abi.to_bytes().len(), bytes.len());
            let device = device(full(), options());
            if device.adopt(&abi).is_ok() {
                let shown = device.guest_abi();
                prop_assert_eq!(GuestAbi { capacity: abi.capacity, writeback: abi.writeback, ..shown }, abi);
                device.accept(device.offered()).unwrap();
                device.config();
            }
        }
    }
}

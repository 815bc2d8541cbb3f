// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;
use crate::disk::{DiskEvent, Topology};
use crate::request::MAX_SEGMENTS;
use crate::spec::config::{Config, SIZE};

fn bytes(device: &Device) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    device.read_config(0, &mut bytes);
    bytes
}

#[test]
fn fields_of_offered_features_are_readable_before_negotiation() {
    let device = device(
        full(),
        DeviceOptions {
            queues: 5,
            queue_size: 64,
            ..DeviceOptions::default()
        },
    );
    let config = Config::from_bytes(&bytes(&device));
    let expected = Config {
        capacity: 2048,
        seg_max: 62,
        blk_size: 512,
        min_io_size: 1,
        writeback: 1,
        num_queues: 5,
        max_discard_sectors: 1000,
        max_discard_seg: 7,
        discard_sector_alignment: 8,
        max_write_zeroes_sectors: 2000,
        max_write_zeroes_seg: 9,
        write_zeroes_may_unmap: 1,
        max_secure_erase_sectors: 1000,
        max_secure_erase_seg: 3,
        secure_erase_sector_alignment: 8,
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn fields_of_features_that_are_not_offered_are_zero() {
    let options = DeviceOptions {
        queues: 5,
        masked_features: u64::MAX,
        ..DeviceOptions::default()
    };
    let config = Config::from_bytes(&bytes(&device(full(), options)));
    let expected = Config {
        capacity: 2048,
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn reserved_bytes_are_zero() {
    let bytes = bytes(&device(full(), DeviceOptions::default()));
    for at in [33, 57, 58, 59].into_iter().chain(72..SIZE) {
        assert_eq!(bytes[at], 0, "byte {at}");
    }
}

#[test]
fn reads_of_any_width_at_any_offset_agree() {
    let device = device(full(), DeviceOptions::default());
    let whole = bytes(&device);
    for offset in 0..SIZE + 8 {
        for width in 0..=16 {
            let mut part = vec![0xee; width];
            device.read_config(offset as u64, &mut part);
            let expected: Vec<u8> = (offset..offset + width)
                .map(|at| whole.get(at).copied().unwrap_or(0))
                .collect();
            assert_eq!(part, expected, "{width} bytes at {offset}");
        }
    }
    for offset in [SIZE as u64, u64::MAX - 1, u64::MAX] {
        let mut part = [0xee; 8];
        device.read_config(offset, &mut part);
        assert_eq!(part, [0; 8]);
    }
}

#[test]
fn may_unmap_says_whether_a_write_zeroes_can_deallocate() {
    for may_unmap in [false, true] {
        let mut caps = full();
        if let Some(limits) = &mut caps.write_zeroes {
            limits.may_unmap = may_unmap;
        }
        let config = device(caps, DeviceOptions::default()).config();
        assert_eq!(config.write_zeroes_may_unmap, u8::from(may_unmap));
    }
}

#[test]
fn no_limit_of_an_offered_erasure_is_zero() {
    // A disk that would lead to one is refused.
    for spoil in [
        |l: &mut EraseLimits| l.max_sectors = 0,
        |l: &mut EraseLimits| l.max_segments = 0,
        |l: &mut EraseLimits| l.alignment = 0,
    ] {
        let mut caps = full();
        if let Some(limits) = &mut caps.secure_erase {
            spoil(limits);
        }
        let refused = Device::new(Arc::new(TestDisk::new(caps)), DeviceOptions::default());
        assert!(matches!(refused, Err(DeviceOptionsError::Disk(_))));
    }
}

#[test]
fn announced_segments_are_those_that_are_served() {
    let mut caps = full();
    if let Some(limits) = &mut caps.discard {
        limits.max_segments = u32::MAX;
    }
    let config = device(caps, DeviceOptions::default()).config();
    assert_eq!(config.max_discard_seg, MAX_SEGMENTS);
}

#[test]
fn topology_and_block_size_are_those_of_the_disk() {
    let mut caps = Caps::basic(4096);
    caps.align.guest_block = 4096;
    caps.topology = Topology {
        physical_block_exp: 2,
        alignment_offset: 1,
        min_io_size: 4,
        opt_io_size: 256,
    };
    let config = device(caps, DeviceOptions::default()).config();
    assert_eq!(config.blk_size, 4096);
    assert_eq!(
        (
            config.physical_block_exp,
            config.alignment_offset,
            config.min_io_size,
            config.opt_io_size
        ),
        (2, 1, 4, 256)
    );
}

#[test]
fn seg_max_leaves_room_for_header_and_status() {
    for (queue_size, seg_max) in [(4, 2), (64, 62), (128, 126), (1024, 126), (32768, 126)] {
        let options = DeviceOptions {
            queue_size,
            ..DeviceOptions::default()
        };
        let config = device(full(), options).config();
        assert_eq!(config.seg_max, seg_max);
        assert_eq!(config.size_max, 0, "no limit");
    }
}

#[test]
fn seg_max_is_a_value_of_its_own() {
    let make = |seg_max, masked_features| {
        let options = DeviceOptions {
            queue_size: 128,
            seg_max: Some(seg_max),
            masked_features,
            ..DeviceOptions::default()
        };
        Device::new(Arc::new(TestDisk::new(full())), options).map(|device| device.config().seg_max)
    };
    for seg_max in [1, 126, 127, 1022, 8190] {
        assert_eq!(make(seg_max, 0).unwrap(), seg_max);
    }
    for (seg_max, masked) in [
        (0, 0),
        (8191, 0),
        (u32::MAX, 0),
        // Linux would wait for ever for room in the ring.
        (127, feature::RING_INDIRECT_DESC),
        (8190, feature::RING_INDIRECT_DESC),
    ] {
        let error = make(seg_max, masked).unwrap_err();
        assert!(
            matches!(error, DeviceOptionsError::SegMax { .. }),
            "{error}"
        );
    }
    let error = make(127, feature::RING_INDIRECT_DESC)
        .unwrap_err()
        .to_string();
    assert!(error.contains("1 to 126"), "{error}");
    assert_eq!(make(126, feature::RING_INDIRECT_DESC).unwrap(), 126);
}

#[test]
fn only_writeback_is_writable_and_only_with_zero_or_one() {
    let device = device(full(), DeviceOptions::default());
    // Not before it is negotiated.
    assert!(device.write_config(32, &[0]).is_err());
    device.accept(device.offered()).unwrap();
    assert_eq!(device.config().writeback, 1);
    for mode in [0, 1, 0] {
        device.write_config(32, &[mode]).unwrap();
        assert_eq!(device.config().writeback, mode);
    }
    // With the reserved byte behind it.
    device.write_config(32, &[1, 0]).unwrap();
    assert_eq!(device.config().writeback, 1);

    let before = bytes(&device);
    for mode in 2..=255 {
        let refused = device.write_config(32, &[mode]);
        assert_eq!(refused, Err(ConfigError::CacheMode(mode)));
    }
    for (offset, data) in [
        (0, &[0][..]),
        (0, &[0; 96]),
        (31, &[0]),
        (31, &[0, 0]),
        (32, &[]),
        (32, &[0, 1]),
        (32, &[2, 0]),
        (32, &[0, 0, 1]),
        (33, &[0]),
        (34, &[9, 9]),
        (96, &[0]),
        (u64::MAX, &[0]),
        (u64::MAX, &[0, 0]),
    ] {
        let refused = device.write_config(offset, data);
        assert!(
            matches!(refused, Err(ConfigError::ReadOnly { .. })),
            "{offset} {data:?}"
        );
    }
    assert_eq!(bytes(&device), before);
}

#[test]
fn a_resize_sends_a_notification_and_a_new_generation() {
    let disk = TestDisk::new(full());
    let device = Device::new(Arc::new(disk.clone()), DeviceOptions::default()).unwrap();
    let told = Arc::new(AtomicU32::new(0));
    let counter = told.clone();
    device.listen(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    let generation = device.config_generation();
    disk.resize(4096);
    assert_eq!(device.capacity(), 4096);
    assert_eq!(device.config().capacity, 4096);
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(device.config_generation(), generation + 1);

    // The same again is no change, nor is a media error, nor what the driver does itself.
    disk.resize(4096);
    disk.emit(DiskEvent::MediaError);
    device.accept(device.offered()).unwrap();
    device.write_config(32, &[0]).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(device.config_generation(), generation + 1);

    disk.resize(8);
    assert_eq!(device.capacity(), 8);
    assert_eq!(told.load(Ordering::SeqCst), 2);
}

#[test]
fn the_capacity_after_an_event_is_read_from_the_disk() {
    let disk = TestDisk::new(full());
    let device = Device::new(Arc::new(disk.clone()), DeviceOptions::default()).unwrap();
    // An event that was overtaken.
    disk.resize(4096);
    disk.emit(DiskEvent::Resized { capacity: 2048 });
    assert_eq!(device.capacity(), 4096);
    // A size that can't be.
    let mut caps = full();
    caps.align.guest_block = 4096;
    let disk = TestDisk::new(caps);
    let device = Device::new(Arc::new(disk.clone()), DeviceOptions::default()).unwrap();
    disk.resize(4095);
    assert_eq!(device.capacity(), 2048);
}

#[test]
fn a_device_that_is_gone_is_not_told() {
    let disk = TestDisk::new(full());
    let device = Device::new(Arc::new(disk.clone()), DeviceOptions::default()).unwrap();
    let weak = Arc::downgrade(&device);
    drop(device);
    assert!(weak.upgrade().is_none(), "the disk does not hold it");
    disk.resize(4096);
}

/// A reader that sees the same generation before and after has read one value, and not two halves.
#[test]
fn reads_between_equal_generations_are_consistent() {
    let low = 2048;
    // Differs in both halves of the field.
    let high = (1 << 32) + 4096;
    struct Sizes(AtomicU32);
    impl Disk for Sizes {
        fn caps(&self) -> Caps {
            let odd = self.0.load(Ordering::SeqCst) % 2 == 1;
            Caps::basic(if odd { (1 << 32) + 4096 } else { 2048 })
        }
        fn open_queue(
            &self,
            _: u16,
        ) -> Result<Box<dyn crate::disk::IoQueue>, crate::disk::DiskError> {
            Err(crate::disk::DiskError::Unsupported)
        }
    }
    let disk = Arc::new(Sizes(AtomicU32::new(0)));
    let device = Device::new(disk.clone(), DeviceOptions::default()).unwrap();
    let half = |offset| {
        let mut bytes = [0; 4];
        device.read_config(offset, &mut bytes);
        u64::from(u32::from_le_bytes(bytes))
    };
    thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for n in 1..=20_000 {
                disk.0.store(n, Ordering::SeqCst);
                device.disk_changed(DiskEvent::Resized { capacity: 0 });
            }
        });
        let mut consistent = 0;
        while !changer.is_finished() || consistent == 0 {
            let before = device.config_generation();
            let capacity = half(0) | half(4) << 32;
            if device.config_generation() == before {
                assert!(capacity == low || capacity == high, "{capacity:#x}");
                consistent += 1;
            }
        }
    });
}

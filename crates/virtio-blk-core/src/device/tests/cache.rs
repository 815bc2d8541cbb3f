// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cache modes, down to the operations that reach the disk.

use malformed_queues::testmem;
use virtio_blk_driver::request::{ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::RingConfig;
use virtio_blk_driver::wire::Range;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::disk::OpKind;
use crate::runner::{QueueRunner, QueueSetup, Service};
use crate::spec::feature::{CONFIG_WCE, FLUSH};
use crate::testdisk::Mode;

type Memory = Arc<GuestMemoryMmap<()>>;

struct Queue {
    disk: TestDisk,
    device: Arc<Device>,
    driver: Driver<Memory>,
    runner: QueueRunner<Memory>,
}

/// A queue of a device whose driver did not take `left_out`.
fn queue(caps: Caps, options: DeviceOptions, left_out: u64) -> Queue {
    let disk = TestDisk::new(caps);
    let device = Device::new(Arc::new(disk.clone()), options).unwrap();
    device.accept(device.offered() & !left_out).unwrap();
    let (mem, mut space) = testmem::single(256 * 1024).unwrap();
    let mem = Arc::new(mem);
    let ring = RingConfig {
        event_idx: true,
        ..RingConfig::default()
    };
    let arena = ArenaConfig::default();
    let driver = space.driver(mem.clone(), 16, ring, arena).unwrap();
    let setup = QueueSetup::new(mem, || {});
    let runner = device.start_queue(0, setup, driver.state()).unwrap();
    Queue {
        disk,
        device,
        driver,
        runner,
    }
}

impl Queue {
    /// Whether a write, and a write-zeroes, reach the disk to be stable at once.
    fn through(&mut self) -> bool {
        self.disk.set_mode(Mode::Inline);
        let through = self.through_now();
        self.disk.set_mode(Mode::Execute);
        assert_eq!(self.through_now(), through);
        through
    }

    fn through_now(&mut self) -> bool {
        let range = [Range {
            sector: 1,
            num_sectors: 1,
            flags: 0,
        }];
        self.disk.take_log();
        self.driver.submit(&Request::write(0, &[1; 512])).unwrap();
        self.driver.submit(&Request::write_zeroes(&range)).unwrap();
        self.driver.submit(&Request::flush()).unwrap();
        self.driver.publish().unwrap();
        while self.runner.service(8) == Service::More {}
        for _ in 0..3 {
            assert!(self.driver.poll().unwrap().unwrap().is_ok());
        }
        let ops = self.disk.take_ops();
        let [
            OpKind::Write { fua, .. },
            OpKind::WriteZeroes { fua: zeroes, .. },
            // Item 37, 38: whatever was negotiated.
            OpKind::Flush,
        ] = ops[..]
        else {
            panic!("{ops:?}");
        };
        assert_eq!(fua, zeroes);
        fua
    }
}

#[test]
fn a_disk_without_a_cache_gets_plain_writes() {
    let caps = Caps {
        flush: false,
        ..full()
    };
    assert!(!queue(caps, DeviceOptions::default(), 0).through());
}

#[test]
fn writes_are_stable_where_flush_is_not_offered() {
    let options = DeviceOptions {
        masked_features: FLUSH,
        ..DeviceOptions::default()
    };
    assert!(queue(full(), options, 0).through());
}

#[test]
fn a_driver_that_can_not_flush_gets_stable_writes() {
    let mut queue = queue(full(), DeviceOptions::default(), FLUSH | CONFIG_WCE);
    assert!(queue.through());
    // Nor can it change that.
    assert!(queue.device.write_config(32, &[1]).is_err());
    assert!(queue.through());
    let fixed = DeviceOptions {
        config_wce: false,
        ..DeviceOptions::default()
    };
    assert!(super::cache::queue(full(), fixed, FLUSH).through());
}

#[test]
fn a_driver_that_flushes_gets_a_write_back_cache() {
    assert!(!queue(full(), DeviceOptions::default(), CONFIG_WCE).through());
}

#[test]
fn a_write_takes_the_cache_mode_of_its_submission() {
    let mut queue = queue(full(), DeviceOptions::default(), 0);
    assert_eq!(queue.device.config().writeback, 1);
    assert!(!queue.through());
    for mode in [0, 1, 0, 1] {
        queue.device.write_config(32, &[mode]).unwrap();
        assert_eq!(queue.through(), mode == 0);
    }
    // Nothing is flushed by the switch itself.
    queue.device.write_config(32, &[0]).unwrap();
    assert!(queue.disk.take_ops().is_empty());
}

#[test]
fn without_flush_the_switch_starts_at_write_through() {
    let mut queue = queue(full(), DeviceOptions::default(), FLUSH);
    assert_eq!(queue.device.config().writeback, 0);
    assert!(queue.through());
    queue.device.write_config(32, &[1]).unwrap();
    assert!(!queue.through());
    // Negotiated anew it starts over.
    let features = queue.device.accepted();
    queue.device.reset();
    assert_eq!(queue.device.config().writeback, 1, "nothing negotiated yet");
    queue.device.accept(features).unwrap();
    assert_eq!(queue.device.config().writeback, 0);
}

#[test]
fn a_resize_reaches_a_running_queue() {
    let mut queue = queue(full(), DeviceOptions::default(), 0);
    let mut status = |sector| {
        queue.driver.submit(&Request::read(sector, 512)).unwrap();
        queue.driver.publish().unwrap();
        while queue.runner.service(8) == Service::More {}
        queue.driver.poll().unwrap().unwrap().is_ok()
    };
    assert!(status(2047));
    assert!(!status(2048));
    queue.disk.resize(4096);
    assert!(status(2048) && status(4095));
    assert!(!status(4096));
    queue.disk.resize(8);
    assert!(status(7));
    assert!(!status(8));
}

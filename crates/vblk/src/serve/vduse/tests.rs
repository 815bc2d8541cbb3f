// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vduse_backend::fake::FakeKernel;
use vduse_backend::kernel::VqInfo;
use vduse_backend::{F_QUEUE_READY, F_SUSPEND};
use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};

use super::*;

/// A disk that is not left in order: that takes longer than a stop may, or fails.
struct Stubborn {
    is_slow: bool,
    is_left: AtomicBool,
}

impl Disk for Stubborn {
    fn caps(&self) -> Caps {
        Caps::basic(2048)
    }

    fn open_queue(&self, _depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Err(DiskError::Unsupported)
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        if !self.is_slow {
            return Err(DiskError::Config("no room".to_owned()));
        }
        std::thread::sleep(2 * STOP);
        self.is_left.store(true, Ordering::Release);
        Ok(())
    }
}

/// How long a stop takes at most: a fifth of the message time-out.
const STOP: Duration = Duration::from_secs(1);

/// Serves a disk to a driver that has a queue, and ends. Returns what came of it.
fn served(is_slow: bool, json: bool) -> Result<(), Failure> {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Stubborn {
        is_slow,
        is_left: AtomicBool::new(false),
    });
    let options = DeviceOptions {
        config_wce: false,
        transport_features: ACCESS_PLATFORM,
        ..DeviceOptions::default()
    };
    let device = Device::new(disk.clone(), options).unwrap();
    let kernel = FakeKernel::new(1, F_QUEUE_READY | F_SUSPEND);
    let options = ServerOptions {
        state_dir: dir.path().to_owned(),
        msg_timeout: Some(5 * STOP.as_secs() as u32),
        ..ServerOptions::new("disk0")
    };
    let server = Server::new(Arc::new(kernel.clone()), device.clone(), options).unwrap();
    let handle = server.handle();
    let driver = kernel.driver("disk0");
    let guest = std::thread::spawn(move || {
        driver.attach(true);
        assert!(driver.negotiate(driver.device_features()));
        let info = VqInfo {
            num: 64,
            descriptor: 0x1000,
            driver: 0x2000,
            device: 0x3000,
            avail_index: 0,
            ready: true,
        };
        driver.set_vq(0, info);
        assert!(driver.set_driver_ok());
        stop(&handle, None);
    });
    let name = "disk0".parse().unwrap();
    let result = run(server, &name, None, &device, json);
    guest.join().unwrap();
    // It was waited for: what it writes would be lost with the process.
    assert_eq!(disk.is_left.load(Ordering::Acquire), is_slow);
    result
}

#[test]
fn a_disk_that_was_not_left_in_order_is_a_failure() {
    for json in [false, true] {
        for (is_slow, word) in [(true, "has not finished"), (false, "no room")] {
            let said = served(is_slow, json).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}

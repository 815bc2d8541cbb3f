// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use virtio_blk_core::memory::GuestMap;

use super::*;
use crate::fake::{FakeDriver, FakeKernel, FakeRegion};
use crate::kernel::{Kernel, NewDevice};

const LEN: u64 = 64 << 10;
/// Where virtio-vdpa's rings are, behind its bounce buffer.
const RINGS: u64 = 1 << 20;

fn region(file: &Arc<OwnedFd>, first: u64) -> FakeRegion {
    FakeRegion {
        file: file.clone(),
        offset: first,
        first,
        last: first + LEN - 1,
        permissions: Permissions::ReadWrite,
        domain: false,
    }
}

/// A region of virtio-vdpa's own file.
fn domain_region(first: u64) -> FakeRegion {
    FakeRegion {
        domain: true,
        ..region(&device_memory(), first)
    }
}

/// A file of a file system, as guest memory is one, full of ones.
fn guest_memory() -> Arc<OwnedFd> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![1; 2 * LEN as usize], 0).unwrap();
    Arc::new(file.into())
}

/// A device's memory: as the kernel's own file, and as `/dev/dax`, of no file system.
fn device_memory() -> Arc<OwnedFd> {
    let mut options = File::options();
    let file = options.read(true).write(true).open("/dev/zero").unwrap();
    Arc::new(file.into())
}

fn device() -> (FakeDriver, Arc<dyn DeviceFile>) {
    let kernel = FakeKernel::new(1, 0);
    let control = kernel.control().unwrap();
    let device = NewDevice {
        name: "disk0".to_owned(),
        features: 1 << 33,
        queues: 1,
        api_version: 0,
        config: Vec::new(),
    };
    control.create(&device).unwrap();
    (kernel.driver("disk0"), kernel.open("disk0").unwrap())
}

/// What the device finds at an address, if there is memory.
fn found(space: &AddressSpace, at: u64) -> Option<u8> {
    let map = GuestMap::new(space.iotlb());
    map.read_array(at).ok().map(|[byte]| byte)
}

#[test]
fn what_a_killed_vhost_user_left_hides_no_bounce_buffer() {
    let (driver, file) = device();
    let mut space = AddressSpace::new().unwrap();
    let stale = guest_memory();

    driver.set_regions(vec![region(&stale, 0)]);
    let _ = space.walk(file.as_ref(), LEN).unwrap();
    assert_eq!(found(&space, 0), Some(1), "vhost-vdpa's user is there");

    driver.set_regions(vec![region(&stale, 0), domain_region(RINGS)]);
    let removed = space.walk(file.as_ref(), LEN).unwrap();
    assert_eq!(found(&space, 0), Some(0), "the bounce buffer");
    assert_eq!(found(&space, RINGS), Some(0), "the rings");
    assert_eq!(found(&space, LEN), None, "nothing is between them");
    assert!(!removed.settle(Instant::now()).unwrap(), "nobody uses it");

    driver.set_regions(vec![region(&stale, 0)]);
    let _ = space.walk(file.as_ref(), LEN).unwrap();
    assert_eq!(found(&space, 0), Some(1), "vhost-vdpa is back");
}

#[test]
fn guest_memory_on_a_device_is_guest_memory() {
    let (driver, file) = device();
    let mut space = AddressSpace::new().unwrap();
    // The first one's offset in its file is its address, as of virtio-vdpa's.
    let memory = guest_memory();
    driver.set_regions(vec![region(&device_memory(), 0), region(&memory, LEN)]);
    let _ = space.walk(file.as_ref(), 4 * LEN).unwrap();
    assert_eq!(found(&space, 0), Some(0));
    assert_eq!(found(&space, LEN - 1), Some(0));
    assert_eq!(found(&space, LEN), Some(1), "the others count as well");
    assert_eq!(found(&space, 2 * LEN), None, "no bounce buffer is made up");
}

#[test]
fn the_kernel_tells_the_bounce_buffer_from_the_rings() {
    let (driver, file) = device();
    assert_eq!(file.region_info(0).unwrap(), None);
    driver.set_regions(vec![domain_region(0), domain_region(64 << 20)]);
    let told = |first| file.region_info(first).unwrap().unwrap();
    assert_eq!((told(0).last, told(0).bounce), (LEN - 1, true));
    assert_eq!((told(LEN).first, told(LEN).bounce), (64 << 20, false));
    assert_eq!(file.region_info(u64::MAX).unwrap(), None);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Both paths behind the trait that a transport drives.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::bench::progress;
use common::device::{Profile, TestDevice};
use common::guest::{Guest, Memory, disk_bytes};
use vhost_vdpa_frontend::{
    DataPath, FastPath, PathSwitch, SwitchOptions, SwitchParts, ThreadExecutor,
};
use virtio_blk_core::device::{DriverInterrupt, QueueResources, StartedQueue, VirtioDevice};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::ring::QueueState;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic};

const QUEUES: u16 = 2;
const DEPTH: u16 = 8;

type Device = dyn VirtioDevice<GuestMemoryAtomic<Memory>>;

/// What a transport does from the driver's first write of the status to DRIVER_OK.
fn start(device: &Device, guest: &Guest) {
    device.reset().unwrap();
    device.accept(device.offered()).unwrap();
    for (index, queue) in (0..).zip(&guest.queues) {
        let setup = queue.setup();
        let state = QueueState {
            max_size: device.queue_size(),
            size: setup.size,
            ready: true,
            desc_table: setup.address.desc,
            avail_ring: setup.address.driver,
            used_ring: setup.address.device,
            ..QueueState::default()
        };
        let resources = QueueResources {
            memory: GuestMemoryAtomic::from(guest.memory.clone()),
            state,
            replay: Vec::new(),
            kick: queue.kick.clone(),
            interrupt: DriverInterrupt::EventFd(queue.irq.clone()),
        };
        let started = device.start_queue(index, resources).unwrap();
        assert!(matches!(started, StartedQueue::Offloaded));
    }
    device.driver_ok().unwrap();
}

fn run(guest: &mut Guest, work: impl FnOnce(&AtomicU64)) {
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for queue in &mut guest.queues {
            scope.spawn(|| queue.run(&stop, &total));
        }
        work(&total);
        stop.store(true, Ordering::SeqCst);
    });
}

/// A driver's life, whatever the path.
fn drive(device: &Device, guest: &mut Guest) {
    let irq = common::eventfd();
    device.set_config_interrupt(DriverInterrupt::EventFd(irq.clone()));
    assert!(device.offloads());
    assert_eq!(device.queues(), QUEUES);
    assert!(device.queue_size().is_power_of_two());
    assert!(device.accept(feature::BLK_SIZE).is_err(), "no VERSION_1");
    assert!(device.accept(u64::MAX).is_err());
    for _ in 0..3 {
        start(device, guest);
        run(guest, |total| {
            progress(total);
            device.pause().unwrap();
            device.resume().unwrap();
            progress(total);
        });
        assert!(!device.needs_reset());
        device.reset().unwrap();
        guest.queues.iter_mut().for_each(|queue| queue.reset());
    }
    // The configuration space, at any offset.
    let mut bytes = [9; 16];
    device.read_config(0, &mut bytes);
    let sectors = disk_bytes(QUEUES, DEPTH) / 512;
    assert_eq!(bytes[..8], sectors.to_le_bytes());
    for offset in [1 << 20, u64::MAX] {
        bytes.fill(9);
        device.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 16]);
        assert!(device.write_config(offset, &[0]).is_err());
    }
    // A ring that breaks.
    start(device, guest);
    let setup = guest.queues[0].setup();
    let index = GuestAddress(setup.address.driver + 2);
    guest.memory.write_obj(0x4000u16, index).unwrap();
    setup.kick.write(1).unwrap();
    while irq.read().is_err() {
        std::thread::yield_now();
    }
    assert!(device.needs_reset());
    device.reset().unwrap();
    assert!(!device.needs_reset());
    guest.queues.iter_mut().for_each(|queue| queue.reset());
}

fn guest_and_device() -> (Guest, Arc<TestDevice>) {
    let disk = Arc::new(MemoryDisk::new(disk_bytes(QUEUES, DEPTH)).unwrap());
    let profile = Profile {
        queues: QUEUES,
        ..Profile::default()
    };
    (
        Guest::new(QUEUES, DEPTH, u64::MAX),
        TestDevice::new(disk, profile),
    )
}

#[test]
fn a_transport_drives_the_fast_path() {
    let (mut guest, device) = guest_and_device();
    let path = FastPath::new(device).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    drive(&path, &mut guest);
}

#[test]
fn a_transport_drives_a_switch_on_both_paths() {
    let (mut guest, device) = guest_and_device();
    let parts = SwitchParts {
        device,
        memory: GuestMemoryAtomic::from(guest.memory.clone()),
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: Arc::new(()),
        layers: None,
    };
    let switch = PathSwitch::new(parts, SwitchOptions::default()).unwrap();
    drive(&switch, &mut guest);
    let device: &Device = &switch;
    start(device, &guest);
    for path in [DataPath::Slow, DataPath::Fast] {
        switch.switch_to(path).unwrap().unwrap();
        run(&mut guest, |total| {
            progress(total);
            device.pause().unwrap();
            device.resume().unwrap();
            progress(total);
        });
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! The fast path, as a VMM's transport uses it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::device::{Profile, TestDevice};
use common::guest::{DATA, Guest, SIZE, disk_bytes};
use vdpa_bus::{Callback, VdpaDevice};
use vhost_vdpa_frontend::{FastPath, PathError};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::{FaultDisk, FaultPlan};

const QUEUES: u16 = 2;
const DEPTH: u16 = 8;

fn device(profile: Profile) -> Arc<TestDevice> {
    let disk = Arc::new(MemoryDisk::new(disk_bytes(QUEUES, DEPTH)).unwrap());
    let plan = FaultPlan::new(3).delay_reaps(0..=4).reorder();
    TestDevice::new(Arc::new(FaultDisk::new(disk, plan)), profile)
}

fn profile() -> Profile {
    Profile {
        queues: QUEUES,
        ..Profile::default()
    }
}

fn guest() -> Guest {
    Guest::new(QUEUES, DEPTH, u64::MAX)
}

/// What a driver does at start.
fn load(path: &FastPath, guest: &Guest) {
    for byte in [0, 1, 3] {
        path.set_status(byte).unwrap();
    }
    path.set_features(path.offered()).unwrap();
    path.set_status(11).unwrap();
    assert_eq!(path.status(), 11);
    for (index, queue) in (0..).zip(&guest.queues) {
        path.set_queue(index, queue.setup()).unwrap();
    }
    path.set_status(15).unwrap();
    assert_eq!(path.status(), 15);
}

fn run<R>(guest: &mut Guest, work: impl FnOnce(&AtomicU64) -> R) -> R {
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for queue in &mut guest.queues {
            scope.spawn(|| queue.run(&stop, &total));
        }
        let result = work(&total);
        stop.store(true, Ordering::SeqCst);
        result
    })
}

fn progress(total: &AtomicU64) {
    let goal = total.load(Ordering::SeqCst) + 50;
    let deadline = Instant::now() + Duration::from_secs(30);
    while total.load(Ordering::SeqCst) < goal {
        assert!(Instant::now() < deadline, "the guest makes no progress");
        std::thread::yield_now();
    }
}

#[test]
fn a_guest_runs_pauses_and_goes_on() {
    let mut guest = guest();
    let path = FastPath::new(device(profile())).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    load(&path, &guest);
    run(&mut guest, |total| {
        for _ in 0..20 {
            progress(total);
            path.pause(Duration::from_secs(10)).unwrap();
            assert!(path.is_paused());
            path.pause(Duration::ZERO).unwrap();
            path.resume().unwrap();
            assert!(!path.is_paused());
        }
        progress(total);
    });
}

#[test]
fn devices_without_resume_or_suspend_are_started_anew() {
    for suspend in [false, true] {
        let mut guest = guest();
        let profile = Profile {
            suspend,
            resume: false,
            ..profile()
        };
        let path = FastPath::new(device(profile)).unwrap();
        path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
        load(&path, &guest);
        for _ in 0..5 {
            run(&mut guest, progress);
            path.pause(Duration::from_secs(10)).unwrap();
            path.resume().unwrap();
        }
        run(&mut guest, progress);
    }
}

/// Positions come from the device: after thousands of requests a base of 0 would replay or lose some.
#[test]
fn a_paused_device_moves_to_another() {
    let mut guest = guest();
    let disk = Arc::new(MemoryDisk::new(disk_bytes(QUEUES, DEPTH)).unwrap());
    let make = || FastPath::new(TestDevice::new(disk.clone(), profile())).unwrap();
    let mut path = make();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    load(&path, &guest);
    assert!(path.save().is_err(), "it runs");
    for _ in 0..5 {
        run(&mut guest, progress);
        path.write_config(32, &[0]).unwrap();
        path.pause(Duration::from_secs(10)).unwrap();
        let saved = path.save().unwrap();
        assert!(saved.queues.iter().all(|queue| queue.base != 0));
        let next = make();
        next.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
        next.restore(&saved, |index| {
            let queue = &guest.queues[usize::from(index)];
            Some((queue.kick.clone(), Callback::Trigger(queue.irq.clone())))
        })
        .unwrap();
        assert!(next.is_paused());
        assert_eq!(next.save().unwrap(), saved);
        next.resume().unwrap();
        let mut writeback = [9];
        next.read_config(32, &mut writeback).unwrap();
        assert_eq!(writeback, [0], "the guest's cache mode moves too");
        drop(path);
        path = next;
    }
    run(&mut guest, progress);
}

#[test]
fn hostile_saved_states_are_refused() {
    let guest = guest();
    let path = FastPath::new(device(profile())).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    load(&path, &guest);
    path.pause(Duration::from_secs(10)).unwrap();
    let good = path.save().unwrap();
    type Spoil = fn(&mut vhost_vdpa_frontend::SavedGuest);
    let spoils: [Spoil; 4] = [
        |saved| saved.features |= 1 << 63,
        |saved| saved.queues[0].index = 7,
        |saved| saved.queues[1].size = 3,
        |saved| saved.queues[1].base = 0x1_0000,
    ];
    for spoil in spoils {
        let mut saved = good.clone();
        spoil(&mut saved);
        let events = |_| Some((common::eventfd(), Callback::Trigger(common::eventfd())));
        assert!(path.restore(&saved, events).is_err());
    }
    path.resume().unwrap();
}

#[test]
fn memory_comes_and_goes_while_it_runs() {
    let mut guest = guest();
    let device = device(profile());
    let path = FastPath::new(device.clone()).unwrap();
    let memory = HostMemory::of_map(&guest.memory);
    path.set_memory(&memory).unwrap();
    load(&path, &guest);
    let bytes = Arc::new(vec![0u8; 1 << 20]);
    // SAFETY: the allocation lives as long as its owner, and nobody reaches it otherwise.
    let more = unsafe { HostMemory::new(bytes.as_ptr().cast_mut(), 1 << 20, bytes.clone()) };
    run(&mut guest, |total| {
        for _ in 0..50 {
            path.add_memory(1 << 40, more.clone()).unwrap();
            assert!(device.is_mapped(1 << 40));
            assert!(
                path.add_memory((1 << 40) + 4096, more.clone()).is_err(),
                "an overlap"
            );
            path.remove_memory((1 << 40) + 4096, 1).unwrap();
            assert!(!device.is_mapped(1 << 40), "whole, as it was added");
        }
        progress(total);
    });
    drop(more);
    assert_eq!(
        Arc::strong_count(&bytes),
        1,
        "nobody holds what was taken away"
    );
}

#[test]
fn the_guest_resets_whenever_it_likes() {
    let mut guest = guest();
    let device = device(profile());
    let path = FastPath::new(device.clone()).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    for _ in 0..30 {
        load(&path, &guest);
        for queue in &mut guest.queues {
            queue.start_some();
        }
        path.set_status(0).unwrap();
        assert_eq!((path.status(), device.get_status()), (0, 0));
        for queue in &mut guest.queues {
            queue.reset();
        }
    }
    drop(path);
    assert_eq!(device.mappings(), 0);
}

#[test]
fn what_the_guest_must_not_do_is_refused() {
    let guest = guest();
    let path = FastPath::new(device(profile())).unwrap();
    assert!(matches!(
        path.set_features(u64::MAX),
        Err(PathError::Features(_))
    ));
    for byte in [1, 3] {
        path.set_status(byte).unwrap();
    }
    assert!(path.set_status(7).is_err(), "DRIVER_OK without FEATURES_OK");
    // Without VERSION_1 the device does not take the features: FEATURES_OK does not stay.
    path.set_features(feature::BLK_SIZE).unwrap();
    path.set_status(11).unwrap();
    assert_eq!(path.status(), 3);
    let mut queue = guest.queues[0].setup();
    assert!(path.set_queue(QUEUES, queue.clone()).is_err());
    queue.size = 0;
    assert!(path.set_queue(0, queue).is_err());
    assert!(path.read_config(96, &mut [0]).is_err() || path.read_config(95, &mut [0]).is_ok());
}

/// A device that can't be started in the middle of a ring is not paused by a reset.
#[test]
fn what_can_t_be_paused_is_refused_before_anything_is_changed() {
    let mut guest = guest();
    let profile = Profile {
        suspend: false,
        resume: false,
        midway: false,
        ..profile()
    };
    let path = FastPath::new(device(profile)).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    load(&path, &guest);
    run(&mut guest, progress);
    let error = path.pause(Duration::from_secs(5)).unwrap_err();
    assert!(matches!(error, PathError::Unsupported(_)), "{error}");
    assert!(!path.is_paused());
    run(&mut guest, progress);
}

/// One that is suspended and resumed needs no position.
#[test]
fn a_device_that_starts_at_0_only_is_paused_by_suspend() {
    let mut guest = guest();
    let profile = Profile {
        midway: false,
        ..profile()
    };
    let path = FastPath::new(device(profile)).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    load(&path, &guest);
    for _ in 0..3 {
        run(&mut guest, progress);
        path.pause(Duration::from_secs(5)).unwrap();
        path.resume().unwrap();
    }
    run(&mut guest, progress);
}

#[test]
fn the_rings_tell_what_was_written_until_descriptors_are_reused() {
    let mut guest = guest();
    let path = FastPath::new(device(profile())).unwrap();
    path.set_memory(&HostMemory::of_map(&guest.memory)).unwrap();
    load(&path, &guest);
    assert!(path.mark_dirty(&mut |_, _| {}).is_err(), "it runs");
    run(&mut guest, progress);
    path.pause(Duration::from_secs(10)).unwrap();
    let mut ranges = Vec::new();
    let coverage = path
        .mark_dirty(&mut |at, len| ranges.push((at, len)))
        .unwrap();
    assert!(
        !coverage.complete,
        "requests were returned: their buffers may be anywhere"
    );
    assert!(coverage.returned >= 50);
    assert_eq!(coverage.ranges, ranges.len() as u64);
    assert_eq!(
        coverage.bytes,
        ranges.iter().map(|(_, len)| len).sum::<u64>()
    );
    // The used rings, and data that reads wrote last.
    for queue in &guest.queues {
        let used = queue.setup().address.device;
        assert!(
            ranges
                .iter()
                .any(|(at, len)| *at == used && *len == 6 + 8 * u64::from(SIZE))
        );
    }
    assert!(ranges.iter().any(|(_, len)| *len == u64::from(DATA)));
    // Nothing happened since: this look is complete.
    let again = path.mark_dirty(&mut |_, _| {}).unwrap();
    assert!(again.complete || again.returned == 0);
    assert_eq!(again.returned, 0);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that are only read.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

use virtio_blk_core::disk::DiskEvent;

use super::*;

/// How the library was asked to open the image.
fn opens(rig: &Rig) -> Vec<&'static str> {
    let mut calls = rig.fake.take_calls();
    calls.retain(|call| call.starts_with("rbd_open"));
    calls
}

#[test]
fn a_reader_learns_of_a_resize() {
    let rig = Rig::new();
    let disk = rig.try_open(&rig.options().read_only(true)).unwrap();
    let (send, receive) = channel();
    disk.listen(Arc::new(move |event| send.send(event).unwrap()));
    rig.fake.resize(2 * LEN);
    let capacity = 2 * LEN as u64 / 512;
    let event = receive.recv_timeout(PATIENCE).unwrap();
    assert_eq!(event, DiskEvent::Resized { capacity });
    assert!(disk.caps().read_only);
}

#[test]
fn a_reader_is_seen_by_the_cluster_and_takes_nothing() {
    let rig = Rig::new();
    let disk = rig.try_open(&rig.options().read_only(true)).unwrap();
    let calls = rig.fake.take_calls();
    assert!(calls.contains(&"rbd_open"), "{calls:?}");
    assert!(!calls.contains(&"rbd_open_read_only"), "{calls:?}");
    assert!(!calls.contains(&"rbd_list_lockers"), "{calls:?}");
    let settings = rig.fake.settings.lock().unwrap();
    let copy = settings.get("rbd_clone_copy_on_read");
    assert_eq!(copy.map(String::as_str), Some("false"));
    drop((disk, settings));
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn a_user_that_may_only_read_gets_what_there_is() {
    let rig = Rig::new();
    let options = rig.options().read_only(true);
    rig.fake.fail("rbd_open", -libc::EPERM);
    let disk = rig.try_open(&options).unwrap();
    assert_eq!(opens(&rig), ["rbd_open", "rbd_open_read_only"]);
    drop(disk);
    // That is no way to write, and no other error is one of rights.
    rig.try_open(&rig.options()).err().unwrap();
    assert_eq!(opens(&rig), ["rbd_open"]);
    rig.fake.fail("rbd_open", -libc::ENOENT);
    rig.try_open(&options).err().unwrap();
    assert_eq!(opens(&rig), ["rbd_open"]);
    rig.fake.fail("rbd_open", -libc::EPERM);
    rig.fake.fail("rbd_open_read_only", -libc::EPERM);
    let error = rig.try_open(&options).err().unwrap().to_string();
    assert!(error.contains("profile rbd"), "{error}");
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn an_image_whose_lock_a_read_would_take_is_opened_read_only() {
    let rig = Rig::new();
    let options = rig.options().read_only(true);
    let both = ["rbd_open", "rbd_open_read_only"];
    rig.fake.features.store(0x7f, Ordering::Relaxed);
    rig.try_open(&options).unwrap();
    assert_eq!(opens(&rig), both);
    rig.fake.features.store(0x3f, Ordering::Relaxed);
    for (name, value, expected) in [
        ("rbd_clone_copy_on_read", "true", &both[..]),
        ("rbd_clone_copy_on_read", "false", &both[..1]),
        ("rbd_persistent_cache_mode", "ssd", &both[..]),
    ] {
        *rig.fake.image_settings.lock().unwrap() = vec![(name, value.to_owned())];
        rig.try_open(&options).unwrap();
        assert_eq!(opens(&rig), expected, "{name}={value}");
    }
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn a_snapshot_is_opened_read_only() {
    let rig = Rig::new();
    let snapshot: ImageName = "pool/disk@one".parse().unwrap();
    let options = RbdOptions::new(snapshot).id(rig.fake.user.as_str());
    let disk = rig.try_open(&options).unwrap();
    assert_eq!(opens(&rig), ["rbd_open_read_only"]);
    assert!(disk.caps().read_only);
}

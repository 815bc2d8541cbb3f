// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes and what is allocated.

use std::sync::mpsc::channel;

use virtio_blk_core::disk::{Allocation, DiskError, DiskEvent, Extent};

use super::*;
use crate::fake::OBJECT;

#[test]
fn a_resize_by_others_is_told() {
    let rig = Rig::new();
    let disk = rig.open();
    let (send, receive) = channel();
    disk.listen(Arc::new(move |event| send.send(event).unwrap()));
    for len in [2 * LEN, LEN / 2] {
        rig.fake.resize(len);
        let capacity = len as u64 / 512;
        let event = receive.recv_timeout(PATIENCE).unwrap();
        assert_eq!(event, DiskEvent::Resized { capacity });
        assert_eq!(disk.caps().capacity, capacity);
    }
    let error = Queue::of(&disk).run(OpKind::Read { offset: LEN as u64 }, IoBuf::zeroed(512));
    assert!(matches!(error.result, Err(DiskError::OutOfRange)));
}

#[test]
fn a_resize_of_ours_is_told_before_it_returns() {
    let rig = Rig::new();
    let disk = rig.open();
    let (send, receive) = channel();
    disk.listen(Arc::new(move |event| send.send(event).unwrap()));
    disk.resize(3 * LEN as u64).unwrap();
    assert_eq!(disk.caps().capacity_bytes(), 3 * LEN as u64);
    let capacity = 3 * LEN as u64 / 512;
    assert_eq!(receive.try_recv(), Ok(DiskEvent::Resized { capacity }));
    for bytes in [3 * LEN as u64 + 1, LEN as u64, u64::MAX - 511] {
        let error = disk.resize(bytes).unwrap_err();
        assert!(matches!(error, DiskError::Config(_)), "{bytes}: {error}");
    }
    let read_only = rig.try_open(&rig.options().read_only(true)).unwrap();
    let error = read_only.resize(4 * LEN as u64).unwrap_err();
    assert!(matches!(error, DiskError::ReadOnly), "{error}");
}

#[test]
fn a_resize_before_the_image_is_watched_is_seen() {
    let rig = Rig::new();
    *rig.fake.resized_first.lock().unwrap() = Some(2 * LEN);
    assert_eq!(rig.open().caps().capacity_bytes(), 2 * LEN as u64);
}

/// One thread asks for the sizes of all disks of a server.
#[test]
fn a_look_at_the_size_does_not_wait_for_a_silent_cluster() {
    let rig = Rig::new();
    let disk = rig.open();
    rig.fake.shut_gate("rbd_get_size");
    let error = disk.refresh().unwrap_err().to_string();
    assert!(error.contains("`ceph status`"), "{error}");
    // The next ones know.
    let since = Instant::now();
    for _ in 0..1000 {
        disk.refresh().unwrap_err();
    }
    assert!(since.elapsed() < PATIENCE);
    rig.fake.take_calls();
    rig.fake.data.lock().unwrap().resize(2 * LEN, 0);
    rig.fake.open_gate();
    while disk.refresh().is_err() {}
    assert_eq!(disk.caps().capacity_bytes(), 2 * LEN as u64);
    // One look stood for all of them.
    let calls = rig.fake.take_calls();
    assert!(calls.len() < 10, "{}", calls.len());
}

#[test]
fn a_snapshot_stays_what_it_is() {
    let rig = Rig::new();
    let snapshot: ImageName = "pool/disk@one".parse().unwrap();
    let options = RbdOptions::new(snapshot).id(rig.fake.user.as_str());
    let disk = rig.try_open(&options).unwrap();
    rig.fake.take_calls();
    disk.refresh().unwrap();
    assert_eq!(rig.fake.take_calls(), [""; 0]);
}

#[test]
fn holes_are_where_nothing_was_written() {
    let rig = Rig::new();
    let disk = rig.open();
    {
        let mut data = rig.fake.data.lock().unwrap();
        data[2 * OBJECT + 1024] = 1;
        data[3 * OBJECT] = 1;
        data[6 * OBJECT] = 1;
    }
    let object = OBJECT as u64;
    let found = |range, most| -> Vec<(u64, bool)> {
        let extents = disk.extents(range, most).unwrap();
        extents
            .iter()
            .map(|extent| (extent.len / 512, extent.allocation == Allocation::Data))
            .collect()
    };
    let all = [
        (256, false),
        (256, true),
        (256, false),
        (128, true),
        (1152, false),
    ];
    assert_eq!(found(0..LEN as u64, 100), all);
    assert_eq!(found(0..LEN as u64, 5), all);
    assert_eq!(found(0..LEN as u64, 2), all[..2]);
    assert_eq!(found(0..LEN as u64, 1), all[..1]);
    assert_eq!(found(2 * object + 512..3 * object, 9), [(127, true)]);
    assert_eq!(found(0..512, 9), [(1, false)]);
    // From inside an object: each extent is where it is.
    assert_eq!(
        found(object + 512..4 * object, 9),
        [(127, false), (256, true)]
    );
    for range in [0..0, 512..LEN as u64 + 512] {
        let error = disk.extents(range, 1).unwrap_err();
        assert!(matches!(error, DiskError::OutOfRange), "{error}");
    }
}

/// An extent that is left out would be a hole for who copies the image.
#[test]
fn ranges_that_cannot_be_make_all_of_it_data() {
    let rig = Rig::new();
    let disk = rig.open();
    let ask = |ranges: &[(u64, usize)]| {
        *rig.fake.ranges.lock().unwrap() = Some(ranges.to_vec());
        disk.extents(4096..65536, 9).unwrap()
    };
    let all = [Extent {
        len: 61440,
        allocation: Allocation::Data,
    }];
    for ranges in [
        &[(8192, 4096), (4096, 4096)][..],
        &[(8192, 4096), (12000, 4096)],
        &[(0, 8192)],
        &[(61440, 8192)],
        &[(65536, 512)],
        &[(u64::MAX, 4096)],
    ] {
        assert_eq!(ask(ranges), all, "{ranges:?}");
    }
    assert_eq!(ask(&[(4096, 4096), (8192, 512)]).len(), 2);
    assert_eq!(ask(&[]).len(), 1);
}

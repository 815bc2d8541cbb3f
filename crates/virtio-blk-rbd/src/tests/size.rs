// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes and what is allocated.

use std::sync::mpsc::channel;

use virtio_blk_core::disk::{Allocation, DiskError, DiskEvent};

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
    for range in [0..0, 512..LEN as u64 + 512] {
        let error = disk.extents(range, 1).unwrap_err();
        assert!(matches!(error, DiskError::OutOfRange), "{error}");
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each call fails in turn.

use std::error::Error;
use std::sync::atomic::Ordering;

use virtio_blk_core::disk::DiskError;

use super::*;

#[test]
fn a_failure_to_open_says_what_to_do_and_leaves_nothing_open() {
    for (function, code, words) in [
        ("rados_create", libc::EINVAL, "prepare a connection"),
        ("rados_conf_read_file", libc::ENOENT, "conf=FILE"),
        ("rados_conf_set", libc::EINVAL, "set rbd_cache"),
        ("rados_connect", libc::ENOENT, "auth get client.u"),
        ("rados_connect", libc::EACCES, "check id="),
        ("rados_connect", libc::ETIMEDOUT, "ceph --id u"),
        ("rados_connect", libc::EIO, "connect to the cluster"),
        ("rados_ioctx_create", libc::ENOENT, "osd pool ls"),
        ("rbd_open", libc::ENOENT, "create pool/disk --size 8G"),
        ("rbd_open", libc::EPERM, "profile rbd"),
        ("rbd_config_image_list", libc::EIO, "the image's settings"),
        ("rbd_get_features", libc::EIO, "features"),
        ("rbd_list_lockers", libc::EIO, "who has a lock"),
        ("rbd_get_id", libc::EIO, "the id of"),
        ("rados_cluster_fsid", libc::EIO, "the cluster's name"),
        ("rbd_get_size", libc::EIO, "the image's size"),
        ("rbd_update_watch", libc::EIO, "watch rbd:pool/disk"),
    ] {
        let rig = Rig::new();
        rig.fake.fail(function, -code);
        let error = rig.try_open(&rig.options()).err().unwrap();
        let text = error.to_string();
        assert!(text.contains(words), "{function}: {text}");
        let open = rig.fake.opened();
        assert_eq!(open, [0; 5], "{function}");
        let error = DiskError::from(error);
        assert!(
            matches!(error, DiskError::Io(_)) && error.source().is_some(),
            "{function}"
        );
        // The next attempt has everything anew.
        rig.fake.fail(function, 0);
        rig.open();
    }
}

#[test]
fn an_image_with_a_cache_of_its_own_is_refused() {
    let rig = Rig::new();
    let set = |name, value: &str| {
        *rig.fake.image_settings.lock().unwrap() = vec![(name, value.to_owned())];
    };
    let (memory, persistent) = ("rbd_cache", "rbd_persistent_cache_mode");
    for (name, value) in [
        (memory, "true"),
        (memory, "TRUE"),
        (memory, "1"),
        (memory, "maybe"),
        (persistent, "ssd"),
        (persistent, "rwl"),
        (persistent, ""),
    ] {
        set(name, value);
        let error = rig.try_open(&rig.options()).err().unwrap().to_string();
        assert!(
            error.contains(&format!("config image rm pool/disk {name}`")),
            "{error}"
        );
        // Nothing is written, so nothing can be lost.
        rig.try_open(&rig.options().read_only(true)).unwrap();
    }
    for (name, value) in [(memory, "false"), (persistent, "disabled")] {
        set(name, value);
        rig.open();
    }
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn an_image_that_lacks_the_writes_in_a_cache_elsewhere_is_refused() {
    let rig = Rig::new();
    rig.fake.features.store(0x3f | 1 << 11, Ordering::Relaxed);
    let error = rig.try_open(&rig.options()).err().unwrap().to_string();
    assert!(
        error.contains("persistent-cache flush pool/disk`"),
        "{error}"
    );
    rig.try_open(&rig.options().read_only(true)).unwrap();
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn a_library_without_a_persistent_cache_needs_no_setting_for_it() {
    let rig = Rig::new();
    let set = "rados_conf_set persistent";
    rig.fake.fail(set, -libc::ENOENT);
    rig.open();
    rig.fake.fail(set, -libc::EINVAL);
    let error = rig.try_open(&rig.options()).err().unwrap().to_string();
    assert!(error.contains("set rbd_persistent_cache_mode"), "{error}");
    // It says so for no other setting.
    rig.fake.fail(set, 0);
    rig.fake.fail("rados_conf_set", -libc::ENOENT);
    rig.try_open(&rig.options()).err().unwrap();
}

#[test]
fn what_is_not_needed_may_fail() {
    for function in ["rados_conf_get", "rbd_get_stripe_unit", "rbd_close"] {
        let rig = Rig::new();
        rig.fake.fail(function, -libc::EIO);
        let disk = rig.open();
        assert_eq!(disk.caps().discard.unwrap().alignment, 128);
        drop(disk);
        assert_eq!(rig.fake.opened(), [0; 5], "{function}");
    }
}

#[test]
fn a_failed_operation_has_its_errno_and_the_queue_goes_on() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    let (offset, len) = (0, 512);
    let data = || IoBuf::zeroed(512);
    let cases: [(&str, OpKind, IoBuf); 6] = [
        ("rbd_aio_readv", OpKind::Read { offset }, data()),
        (
            "rbd_aio_writev",
            OpKind::Write { offset, fua: false },
            data(),
        ),
        ("rbd_aio_flush", OpKind::Write { offset, fua: true }, data()),
        ("rbd_aio_flush", OpKind::Flush, IoBuf::new()),
        (
            "rbd_aio_discard",
            OpKind::Discard { offset, len },
            IoBuf::new(),
        ),
        (
            "rbd_aio_write_zeroes",
            OpKind::WriteZeroes {
                offset,
                len,
                unmap: true,
                fua: false,
            },
            IoBuf::new(),
        ),
    ];
    for (function, kind, buf) in cases {
        // Refused at once, and after a while.
        let late: &'static str = Box::leak(format!("late {function}").into_boxed_str());
        for name in [function, late] {
            for code in [libc::ENOSPC, libc::ESHUTDOWN, libc::ETIMEDOUT] {
                rig.fake.fail(name, -code);
                let completion = queue.run(kind, buf.part(0, buf.len()));
                let error = completion.result.unwrap_err();
                assert_eq!(error.errno(), Some(code), "{name}: {kind:?}");
                assert_eq!(completion.buf.len(), buf.len());
            }
            rig.fake.fail(name, 0);
            queue.run(kind, buf.part(0, buf.len())).result.unwrap();
        }
    }
    drop((queue, disk));
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn a_flush_is_not_sent_for_a_write_that_failed() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    rig.fake.fail("late rbd_aio_writev", -libc::EIO);
    rig.fake.take_calls();
    let write = OpKind::Write {
        offset: 0,
        fua: true,
    };
    queue.run(write, IoBuf::zeroed(512)).result.unwrap_err();
    assert!(!rig.fake.take_calls().contains(&"rbd_aio_flush"));
}

#[test]
fn a_read_of_an_image_that_was_made_smaller_is_out_of_range() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    rig.fake.hold();
    let read = OpKind::Read { offset: 4096 };
    assert!(queue.submit(1, read, IoBuf::zeroed(1024)).is_none());
    rig.fake.data.lock().unwrap().truncate(4608);
    rig.fake.release();
    let error = queue.next().result.unwrap_err();
    assert!(matches!(error, DiskError::OutOfRange), "{error}");
}

#[test]
fn errors_of_extents_and_resizes_are_the_clusters() {
    let rig = Rig::new();
    let disk = rig.open();
    rig.fake.fail("rbd_diff_iterate2", -libc::EIO);
    assert_eq!(
        disk.extents(0..512, 1).unwrap_err().errno(),
        Some(libc::EIO)
    );
    rig.fake.fail("rbd_resize2", -libc::EROFS);
    let error = disk.resize(2 * LEN as u64).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EROFS));
    rig.fake.fail("rbd_get_size", -libc::ENOENT);
    let error = disk.refresh().unwrap_err().to_string();
    assert!(error.contains("removed"), "{error}");
    assert_eq!(disk.caps().capacity_bytes(), LEN as u64);
}

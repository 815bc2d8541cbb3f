// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ends, while the cluster does not respond.

use super::*;
use crate::api::Handle;
use crate::fake::{IMAGE, RADOS, WATCH};
use crate::size::Size;
use crate::watch::Watch;

/// Waits for something that another thread does.
fn until(what: &str, is: impl Fn() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_queue_waits_for_what_the_library_has_and_its_memory_stays() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    rig.fake.hold();
    let memory = Arc::new(Vec::<u8>::with_capacity(4096));
    let mut buf = IoBuf::new();
    buf.set_keep(memory.clone());
    // SAFETY: the vector has room for so many bytes while the buffer keeps it.
    unsafe { buf.push(memory.as_ptr().cast_mut(), 4096) };
    assert!(queue.submit(1, OpKind::Read { offset: 0 }, buf).is_none());
    let write = OpKind::Write {
        offset: 512,
        fua: true,
    };
    assert!(queue.submit(2, write, IoBuf::zeroed(512)).is_none());
    let ended = std::thread::spawn(move || drop((queue, disk)));
    // Both operations are with the library, one of them yet has to be flushed.
    until("held", || rig.fake.held() == 2);
    assert!(!ended.is_finished());
    assert_eq!(Arc::strong_count(&memory), 2, "the library may write there");
    assert_eq!(rig.fake.opened()[IMAGE], 1, "the image is open");
    rig.fake.release();
    ended.join().unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn a_queue_that_is_abandoned_keeps_image_and_memory() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    rig.fake.hold();
    let memory = Arc::new(Vec::<u8>::with_capacity(512));
    let mut buf = IoBuf::new();
    buf.set_keep(memory.clone());
    // SAFETY: the vector has room for so many bytes while the buffer keeps it.
    unsafe { buf.push(memory.as_ptr().cast_mut(), 512) };
    assert!(queue.submit(1, OpKind::Read { offset: 0 }, buf).is_none());
    std::mem::forget(queue);
    drop(disk);
    assert_eq!(rig.fake.opened()[IMAGE], 1);
    assert_eq!(Arc::strong_count(&memory), 2);
    // The operation ends without anybody there.
    rig.fake.release();
}

#[test]
fn what_is_not_reaped_is_dropped() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    for token in 0..8 {
        assert!(queue.submit(token, OpKind::Flush, IoBuf::new()).is_none());
    }
    drop(disk);
    // The queue keeps the image.
    assert_eq!(rig.fake.opened()[IMAGE], 1);
    drop(queue);
    assert_eq!(rig.fake.opened(), [0; 5]);
}

#[test]
fn opening_has_an_end_and_what_comes_later_is_undone() {
    for function in ["rados_connect", "rbd_open", "rbd_update_watch"] {
        let rig = Rig::new();
        rig.fake.shut_gate(function);
        let options = rig.options().conf("/x/ceph.conf");
        let patience = Duration::from_millis(20);
        let error = RbdDisk::open_with(fake::api(), &options, patience)
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(
            text.contains("`ceph --conf /x/ceph.conf"),
            "{function}: {text}"
        );
        assert!(text.contains("pool/disk"), "{function}: {text}");
        rig.fake.open_gate();
        until(function, || rig.fake.opened() == [0; 5]);
    }
}

#[test]
fn closing_has_an_end() {
    let close = |function| {
        let rig = Rig::new();
        let disk = rig.open();
        rig.fake.shut_gate(function);
        let since = Instant::now();
        drop(disk);
        assert!(since.elapsed() < PATIENCE / 2, "{function}");
        assert_eq!(rig.fake.opened()[RADOS], 1);
        rig.fake.open_gate();
        until(function, || rig.fake.opened() == [0; 5]);
    };
    // At the same time, as each takes two seconds.
    std::thread::scope(|scope| {
        for function in ["rbd_close", "rbd_update_unwatch"] {
            scope.spawn(move || close(function));
        }
    });
}

/// Then the library may still call, with an image that is closed.
#[test]
fn a_watch_that_cannot_be_ended_does_nothing_any_more() {
    let rig = Rig::new();
    rig.fake.fail("rbd_update_unwatch", -libc::ENOENT);
    drop(rig.open());
    assert_eq!(rig.fake.opened(), [0; 5]);
    rig.fake.take_calls();
    rig.fake.resize(2 * LEN);
    assert_eq!(rig.fake.take_calls(), [""; 0]);
}

/// As where no thread is left to close the image: what it consists of is dropped in its order.
#[test]
fn a_watch_that_is_dropped_has_ended() {
    let rig = Rig::new();
    let image = Handle(Arc::as_ptr(&rig.fake).cast_mut().cast());
    let size = Arc::new(Size::new("x".to_owned(), 0));
    // SAFETY: the tests' library keeps its clusters, which its images are, for good.
    let watch = unsafe { Watch::start(fake::api(), image, "x", size.clone()) }.unwrap();
    assert_eq!(rig.fake.opened()[WATCH], 1);
    drop(watch);
    assert_eq!(rig.fake.opened(), [0; 5]);
    rig.fake.resize(2 * LEN);
    assert_eq!(Arc::strong_count(&size), 1, "its thread has ended");
    assert_eq!(size.capacity(), 0);
}

#[test]
fn a_timeout_is_the_librarys() {
    let rig = Rig::new();
    rig.try_open(&rig.options().timeout(7)).unwrap();
    let settings = rig.fake.settings.lock().unwrap();
    for name in ["rados_osd_op_timeout", "rados_mon_op_timeout"] {
        assert_eq!(settings.get(name).map(String::as_str), Some("7"));
    }
    for (name, value) in [
        ("rbd_cache", "false"),
        ("rbd_persistent_cache_mode", "disabled"),
    ] {
        assert_eq!(settings.get(name).map(String::as_str), Some(value));
    }
}

/// Somebody looks at a queue again while something is in flight, so that there are words about what takes long.
#[test]
fn a_queue_is_looked_at_while_it_has_something() {
    let rig = Rig::new();
    let disk = rig.open();
    let mut queue = Queue::of(&disk);
    assert_eq!(queue.0.deadline(), None);
    rig.fake.hold();
    assert!(queue.submit(1, OpKind::Flush, IoBuf::new()).is_none());
    let deadline = queue.0.deadline().unwrap();
    assert!(deadline > Instant::now() && deadline < Instant::now() + PATIENCE);
    rig.fake.release();
    queue.next();
}

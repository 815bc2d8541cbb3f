// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host without memory for another thread. A process of its own, as the limit is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use virtio_blk_core::disk::{Disk, Handover};
use virtio_blk_disks::Lock;
use virtio_blk_qcow2::Qcow2File;

/// Bytes of the process's address space.
fn address_space() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

/// Limits the address space. Returns the limit before.
fn limit(to: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    assert_eq!(done, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, to);
    // SAFETY: the pointer is valid.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(done, 0);
    before
}

/// The first queue starts the threads of the disk: without them it is an error, and the disk works later.
#[test]
fn a_queue_without_threads_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    qemu::create(&path, "cluster_size=64k", 1 << 20);
    let image = Qcow2File::new(&path).lock(Lock::Handover);
    let disk = Arc::new(image.open().unwrap());
    disk.activate().unwrap();

    // In a thread that is there already, so that a deadlock is seen.
    let (ask, asked) = channel::<()>();
    let (answer, answered) = channel();
    let opener = disk.clone();
    let (started, start) = channel();
    std::thread::spawn(move || {
        started.send(()).unwrap();
        for () in asked {
            answer.send(opener.open_queue(1).map(drop)).unwrap();
        }
    });
    // What a thread needs to start, std takes before it runs; without memory for it the process would end.
    start.recv().unwrap();
    // Less than the stack of a thread.
    let before = limit(address_space() + (1 << 20));
    ask.send(()).unwrap();
    let refused = answered.recv_timeout(Duration::from_secs(20));
    limit(before);
    let refused = refused.expect("opening a queue hangs");
    assert!(refused.is_err(), "a thread could be had all the same");

    assert!(disk.flush_error().is_none());
    ask.send(()).unwrap();
    answered.recv().unwrap().unwrap();
    disk.deactivate().unwrap();
    assert!(matches!(disk.handover(), Handover::Released(Some(_))));
}

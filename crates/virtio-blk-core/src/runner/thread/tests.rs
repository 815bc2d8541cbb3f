// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_driver::request::Request;

use super::*;
use crate::runner::tests::{Apart, disk};
use crate::testdisk::{Mode, TestDisk, WaitKind};

/// Waits until nobody looks at the disk any more.
fn comes_to_rest(disk: &TestDisk) -> bool {
    for _ in 0..1000 {
        let before = disk.reaps();
        std::thread::sleep(Duration::from_millis(10));
        if disk.reaps() == before {
            return true;
        }
    }
    false
}

fn spawn(mode: Mode, wait: WaitKind, poll: Duration) -> (Apart, QueueThread<impl DeviceMemory>) {
    let (apart, runner) = Apart::new(disk(mode, wait), true);
    let options = ThreadOptions {
        name: "queue".to_owned(),
        poll,
        on_fatal: Box::new(|error| panic!("{error}")),
    };
    let kick = apart.kick.try_clone().unwrap();
    let thread = QueueThread::spawn(runner, kick, options).unwrap();
    (apart, thread)
}

/// A control call whose wake arrives behind what it announces: the thread sees the announcement first.
#[test]
fn a_wake_that_comes_late_does_not_keep_the_thread_awake() {
    // A disk with a descriptor is asked in each pass.
    let (apart, thread) = spawn(Mode::AtFlush, WaitKind::Fd, Duration::ZERO);
    let disk = apart.disk.clone();
    assert!(comes_to_rest(&disk));
    let control = &thread.control;
    control.pending.store(true, Ordering::Release);
    apart.kick.write(1).unwrap();
    while control.pending.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    control.wake.write(1).unwrap();
    let before = disk.reaps();
    control.wake.write(1).unwrap();
    while disk.reaps() == before {
        std::thread::yield_now();
    }
    assert!(comes_to_rest(&disk), "the thread spins");
}

/// Others who share the kick's eventfd may make it block its readers: that must not stop the thread.
#[test]
fn the_kick_is_never_read() {
    let (mut apart, thread) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
    let flags = |fd: &EventFd| {
        // SAFETY: an open descriptor and no pointers.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, 0) }
    };
    assert_eq!(flags(&apart.kick), 0);
    for sector in 0..100 {
        apart.driver.submit(&Request::read(sector, 512)).unwrap();
        apart.driver.publish().unwrap();
        apart.kick.write(1).unwrap();
        while apart.driver.poll().unwrap().is_none() {
            std::thread::yield_now();
        }
    }
    assert!(thread.stop(Stop::Drain).is_some());
    assert_eq!(apart.kick.read().unwrap(), 100);
}

/// A slow disk must not make the thread burn a CPU for longer than it was told to.
#[test]
fn polling_ends_although_the_disk_is_not_done() {
    let poll = Duration::from_millis(1);
    let (mut apart, thread) = spawn(Mode::Held, WaitKind::Fd, poll);
    let token = apart.submit(&Request::read(0, 512));
    while apart.disk.held() == 0 {
        std::thread::yield_now();
    }
    assert!(comes_to_rest(&apart.disk));
    // It still hears of everything.
    assert_eq!(apart.disk.release(1), 1);
    assert_eq!(apart.answer().token, token);
    let token = apart.submit(&Request::read(1, 512));
    while apart.disk.release(1) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(apart.answer().token, token);
    assert!(thread.stop(Stop::Drain).unwrap().in_flight.is_empty());
}

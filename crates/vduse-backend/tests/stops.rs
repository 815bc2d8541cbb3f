// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops have a bound, whatever the disk and its layers do: GET_VQ_STATE, SUSPEND, a reset, the end of the server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{NAME, QUEUE_SIZE, Rig, StallDisk, newest};
use vduse_backend::kernel::{Attribute, Kernel};
use vduse_backend::message::{Answer, Request as Ask};
use vduse_backend::{Outcome, ServerError};
use virtio_blk_core::disk::{Disk, DiskError, OpKind};
use virtio_blk_core::testdisk::{Mode, WaitKind};
use virtio_blk_disks::hot_swap::SwitchDisk;
use virtio_blk_disks::policy::{ErrorPolicy, OnError, PolicyDisk};
use virtio_blk_disks::throttle::{Limits, Rate, ThrottleDisk, ThrottleGroup};
use virtio_blk_driver::request::{Request, Token};

/// What the servers here get for a message: a fifth of `msg_timeout`.
const BUDGET: Duration = Duration::from_secs(1);

/// A queue full of requests, of three descriptors each.
const FULL: usize = QUEUE_SIZE as usize / 3;

/// Writes until the queue is full.
fn fill(rig: &mut Rig) {
    for sector in 0..FULL {
        let data = [sector as u8; 512];
        let request = Request::write(sector as u64, &data);
        rig.queues[0].submit(&request).unwrap();
    }
    rig.queues[0].publish().unwrap();
    rig.bus.kick(0);
    // Until some wait: the first has been let through.
    assert!(rig.answer(0).is_ok());
}

/// How many requests are answered with success by now.
fn answered(rig: &mut Rig) -> usize {
    let mut count = 0;
    while let Some(done) = rig.queues[0].poll().unwrap() {
        assert!(done.is_ok());
        count += 1;
    }
    count
}

fn throttled() -> (StallDisk, Arc<dyn Disk>) {
    let disk = StallDisk::new();
    let limits = Limits {
        iops: Some(Rate::new(1)),
        ..Limits::default()
    };
    let group = ThrottleGroup::new(limits).unwrap();
    let top = ThrottleDisk::new(Arc::new(disk.clone()), group);
    (disk, Arc::new(top))
}

/// A name, and what stops a queue and finishes what was taken.
type StopBy = (&'static str, fn(&mut Rig));

fn stops() -> [StopBy; 3] {
    [
        ("state", |rig| {
            rig.told(0);
        }),
        ("suspend", |rig| rig.ok(Ask::Suspend)),
        ("disable", |rig| {
            rig.ok(Ask::SetVqReady {
                index: 0,
                ready: false,
            });
        }),
    ]
}

#[test]
fn a_throttle_with_a_full_queue_delays_no_stop() {
    for (name, stop) in stops() {
        let (disk, top) = throttled();
        let mut rig = Rig::layered(top, disk, 1);
        rig.start();
        fill(&mut rig);
        let begin = Instant::now();
        stop(&mut rig);
        assert!(begin.elapsed() < BUDGET, "{name}: {:?}", begin.elapsed());
        assert_eq!(answered(&mut rig), FULL - 1, "{name}");
    }
}

#[test]
fn a_throttle_with_a_full_queue_delays_no_reset() {
    let (disk, top) = throttled();
    let mut rig = Rig::layered(top, disk, 1);
    rig.start();
    fill(&mut rig);
    let before = answered(&mut rig);
    let begin = Instant::now();
    rig.ok(Ask::SetStatus(0));
    assert!(begin.elapsed() < BUDGET, "{:?}", begin.elapsed());
    assert_eq!(answered(&mut rig), 0, "{before} before");
    rig.start();
    assert!(rig.ask(0, &Request::read(0, 512)).is_ok());
}

/// The next server has no limits.
#[test]
fn a_throttle_with_a_full_queue_delays_no_end() {
    let (disk, top) = throttled();
    let mut rig = Rig::layered(top, disk.clone(), 1);
    rig.start();
    fill(&mut rig);
    let begin = Instant::now();
    assert_eq!(rig.stop().unwrap(), Outcome::Attached);
    assert!(begin.elapsed() < BUDGET, "{:?}", begin.elapsed());
    let before = 1 + answered(&mut rig);
    assert!(before < FULL);
    rig.top = Arc::new(disk);
    rig.succeed();
    for _ in before..FULL {
        assert!(rig.answer(0).is_ok());
    }
    rig.check();
}

/// A disk without room for writes, whose failures are held.
fn full() -> (Arc<PolicyDisk>, Rig) {
    let disk = StallDisk::new().queueing(Mode::AtFlush, WaitKind::Fd);
    disk.inner().set_fault(|kind| match kind {
        OpKind::Write { .. } => Some(DiskError::from_errno(libc::ENOSPC)),
        _ => None,
    });
    let policy = ErrorPolicy {
        read: OnError::Stop,
        write: OnError::Stop,
    };
    let below: Arc<dyn Disk> = Arc::new(disk.clone());
    let top = Arc::new(PolicyDisk::new(below, policy));
    (top.clone(), Rig::layered(top, disk, 1))
}

fn hold_a_write(top: &PolicyDisk, rig: &mut Rig) -> Token {
    rig.start();
    let token = rig.submit(0, &Request::write(3, &[3; 512]));
    let deadline = Instant::now() + common::PATIENCE;
    while top.held() != 1 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    token
}

#[test]
fn failures_that_are_held_are_told_at_a_stop() {
    for (name, stop) in stops() {
        let (top, mut rig) = full();
        let token = hold_a_write(&top, &mut rig);
        let begin = Instant::now();
        stop(&mut rig);
        assert!(begin.elapsed() < BUDGET, "{name}: {:?}", begin.elapsed());
        let done = rig.queues[0].poll().unwrap().unwrap();
        assert_eq!((done.token, done.is_ok()), (token, false), "{name}");
    }
}

#[test]
fn failures_that_are_held_are_cancelled_by_a_reset() {
    let (top, mut rig) = full();
    hold_a_write(&top, &mut rig);
    let begin = Instant::now();
    rig.ok(Ask::SetStatus(0));
    assert!(begin.elapsed() < BUDGET, "{:?}", begin.elapsed());
    assert!(rig.queues[0].poll().unwrap().is_none());
    assert_eq!(top.held(), 0);
    rig.disk.inner().set_fault(|_| None);
    rig.start();
    rig.check();
    assert_eq!(rig.disk.inner().content(3 * 512, 512), [0; 512]);
}

#[test]
fn failures_that_are_held_go_to_the_next_server() {
    for end in [Rig::die, |rig: &mut Rig| {
        rig.stop().unwrap();
    }] {
        let (top, mut rig) = full();
        let token = hold_a_write(&top, &mut rig);
        let begin = Instant::now();
        end(&mut rig);
        assert!(begin.elapsed() < BUDGET, "{:?}", begin.elapsed());
        assert!(rig.queues[0].poll().unwrap().is_none());
        // There is room again.
        rig.disk.inner().set_fault(|_| None);
        rig.succeed();
        let done = rig.answer(0);
        assert_eq!((done.token, done.is_ok()), (token, true));
        assert_eq!(rig.disk.inner().content(3 * 512, 512), [3; 512]);
        rig.check();
    }
}

#[test]
fn a_hold_delays_no_end() {
    let disk = StallDisk::new();
    let top = Arc::new(SwitchDisk::new(Arc::new(disk.clone())).unwrap());
    let mut rig = Rig::layered(top.clone(), disk, 1);
    rig.start();
    top.hold(Instant::now() + Duration::from_secs(3600));
    let token = rig.submit(0, &Request::write(0, &[1; 512]));
    rig.wait_taken(0, 1);
    let begin = Instant::now();
    assert_eq!(rig.stop().unwrap(), Outcome::Attached);
    assert!(begin.elapsed() < BUDGET, "{:?}", begin.elapsed());
    top.resume().unwrap();
    rig.succeed();
    let done = rig.answer(0);
    assert_eq!((done.token, done.is_ok()), (token, true));
}

#[test]
fn a_hold_delays_no_stop() {
    for (name, stop) in stops() {
        let disk = StallDisk::new();
        let top = Arc::new(SwitchDisk::new(Arc::new(disk.clone())).unwrap());
        let mut rig = Rig::layered(top.clone(), disk, 1);
        rig.start();
        rig.check();
        top.hold(Instant::now() + Duration::from_secs(3600));
        let token = rig.submit(0, &Request::write(0, &[1; 512]));
        rig.wait_taken(0, 3);
        let begin = Instant::now();
        stop(&mut rig);
        assert!(begin.elapsed() < BUDGET, "{name}: {:?}", begin.elapsed());
        let done = rig.queues[0].poll().unwrap().unwrap();
        assert_eq!(done.token, token);
        assert!(done.is_ok());
    }
}

/// The requests are left to the next server, which finishes them.
#[test]
fn a_disk_that_never_answers_does_not_keep_a_server() {
    let mut rig = Rig::with(newest(), StallDisk::held(), 1);
    rig.start();
    let token = rig.submit(0, &Request::write(5, &[5; 512]));
    while rig.disk.inner().held() == 0 {
        std::thread::yield_now();
    }
    let begin = Instant::now();
    assert_eq!(rig.stop().unwrap(), Outcome::Attached);
    assert!(begin.elapsed() < 4 * BUDGET, "{:?}", begin.elapsed());
    assert!(rig.queues[0].poll().unwrap().is_none());
    rig.disk.inner().set_mode(Mode::AtFlush);
    rig.succeed();
    let done = rig.answer(0);
    assert_eq!(done.token, token);
    assert!(done.is_ok());
    assert_eq!(rig.disk.inner().content(5 * 512, 512), [5; 512]);
    rig.check();
}

/// A disk that does not even let go: the process could end, and until it does nobody else gets the device.
#[test]
fn a_disk_that_does_not_let_go_does_not_keep_a_server() {
    let mut rig = Rig::new(2);
    rig.start();
    rig.check();
    rig.hang(0, &Request::write(5, &[5; 512]));
    let begin = Instant::now();
    assert_eq!(rig.stop().unwrap(), Outcome::Unfinished);
    assert!(begin.elapsed() < 4 * BUDGET, "{:?}", begin.elapsed());
    assert!(matches!(rig.serve(), Err(ServerError::InUse(_))));
    let token = rig.submit(1, &Request::read(0, 512));
    rig.disk.go_on();
    let deadline = Instant::now() + common::PATIENCE;
    while let Err(error) = rig.serve() {
        assert!(matches!(error, ServerError::InUse(_)), "{error}");
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(rig.answer(0).is_ok());
    assert_eq!(rig.answer(1).token, token);
    assert_eq!(rig.disk.inner().content(5 * 512, 512), [5; 512]);
    rig.check();
}

/// Many queues take no longer than one to be left behind.
#[test]
fn queues_that_do_not_let_go_share_their_time() {
    const QUEUES: u16 = 16;
    let mut rig = Rig::new(QUEUES);
    rig.start();
    rig.check();
    rig.disk.stall();
    for queue in 0..usize::from(QUEUES) {
        rig.submit(queue, &Request::write(queue as u64, &[5; 512]));
    }
    rig.disk.wait_stalled(QUEUES.into());
    let begin = Instant::now();
    assert_eq!(rig.stop().unwrap(), Outcome::Unfinished);
    assert!(begin.elapsed() < 3 * BUDGET, "{:?}", begin.elapsed());
}

/// Nor does what is left from before a reset.
#[test]
fn requests_that_were_cut_off_do_not_keep_a_server() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.hang(0, &Request::write(5, &[5; 512]));
    rig.ok(Ask::SetStatus(0));
    rig.start();
    let begin = Instant::now();
    assert_eq!(rig.stop().unwrap(), Outcome::Unfinished);
    assert!(begin.elapsed() < 4 * BUDGET, "{:?}", begin.elapsed());
}

/// A server that ends by an error has the same bound.
#[test]
fn an_error_does_not_wait_for_the_disk() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.hang(0, &Request::write(5, &[5; 512]));
    let begin = Instant::now();
    rig.bus.break_it();
    assert!(matches!(rig.ended(), Err(ServerError::Broken(_))));
    assert!(begin.elapsed() < 4 * BUDGET, "{:?}", begin.elapsed());
}

/// A driver that comes while the server ends is the next server's.
#[test]
fn nothing_starts_while_a_server_ends() {
    let mut rig = Rig::new(1);
    let timeout = Attribute::MsgTimeout;
    rig.kernel.set_attribute(NAME, timeout, 15).unwrap();
    rig.start();
    rig.hang(0, &Request::write(5, &[5; 512]));
    let reset = rig.bus.send(Ask::SetStatus(0));
    rig.begin_stop();
    // The requests are cut off, and waited for as long as a message may take: the driver is faster.
    assert_eq!(reset.wait(), Some(Answer::Ok));
    rig.start();
    let token = rig.submit(0, &Request::read(0, 512));
    rig.disk.go_on();
    assert_eq!(rig.ended().unwrap(), Outcome::Attached);
    assert!(rig.queues[0].poll().unwrap().is_none());
    rig.succeed();
    assert_eq!(rig.answer(0).token, token);
    rig.check();
}

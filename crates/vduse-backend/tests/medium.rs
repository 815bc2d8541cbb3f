// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the disk is taken into use, and when it is released.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{PATIENCE, Rig, StallDisk};
use vduse_backend::message::{Answer, Request as Ask};
use vduse_backend::{Outcome, ServerError};
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, IoQueue, Op, Submit, Token, Wait,
};
use virtio_blk_core::testdisk::Mode;
use virtio_blk_driver::request::Request;

/// What a test decides, and what happened.
#[derive(Default)]
struct Script {
    /// Somebody else has the disk.
    locked: bool,
    /// Taking it into use waits.
    slow: bool,
    /// What it holds can't be made stable.
    unstable: bool,
    active: bool,
    queues: usize,
    /// When it was taken into use, or should have been.
    tries: Vec<Instant>,
}

/// A disk that checks that it is in use whenever it is used, and never otherwise released.
#[derive(Clone)]
struct Handed {
    inner: StallDisk,
    script: Arc<(Mutex<Script>, Condvar)>,
}

impl Handed {
    fn rig(queues: u16) -> (Self, Rig) {
        Self::over(StallDisk::new(), queues)
    }

    fn over(inner: StallDisk, queues: u16) -> (Self, Rig) {
        let disk = Self {
            inner: inner.clone(),
            script: Arc::default(),
        };
        (disk.clone(), Rig::layered(Arc::new(disk), inner, queues))
    }

    fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.0.lock().unwrap());
        self.script.1.notify_all();
    }

    fn is_active(&self) -> bool {
        self.script.0.lock().unwrap().active
    }

    /// When it was to be taken into use, once that was more often than `count`.
    fn tries_after(&self, count: usize) -> Vec<Instant> {
        let script = self.script.0.lock().unwrap();
        let few = |script: &mut Script| script.tries.len() <= count;
        let waited = self.script.1.wait_timeout_while(script, PATIENCE, few);
        let (script, waited) = waited.unwrap();
        assert!(!waited.timed_out());
        script.tries.clone()
    }
}

impl Disk for Handed {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let mut script = self.script.0.lock().unwrap();
        assert!(script.active, "a queue of a disk that is not in use");
        script.queues += 1;
        Ok(Box::new(HandedQueue {
            inner: self.inner.open_queue(depth)?,
            disk: self.clone(),
        }))
    }

    fn activate(&self) -> Result<(), DiskError> {
        let script = self.script.0.lock().unwrap();
        let slow = |script: &mut Script| script.slow;
        let mut script = self.script.1.wait_while(script, slow).unwrap();
        assert!(!script.active);
        script.tries.push(Instant::now());
        self.script.1.notify_all();
        if script.locked {
            return Err(DiskError::Config("another server has it".to_owned()));
        }
        script.active = true;
        Ok(())
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        let mut script = self.script.0.lock().unwrap();
        assert!(script.active);
        assert_eq!(script.queues, 0, "let go of while there are queues");
        script.active = false;
        match script.unstable {
            true => Err(DiskError::from_errno(libc::EIO)),
            false => Ok(()),
        }
    }

    fn listen(&self, listener: DiskListener) {
        self.inner.listen(listener);
    }
}

struct HandedQueue {
    inner: Box<dyn IoQueue>,
    disk: Handed,
}

impl Drop for HandedQueue {
    fn drop(&mut self) {
        self.disk.set(|script| script.queues -= 1);
    }
}

impl IoQueue for HandedQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.inner.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.inner.reap(done)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.inner.flush_batch()
    }

    fn wait(&self) -> Wait<'_> {
        self.inner.wait()
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }
}

#[test]
fn the_disk_is_in_use_while_queues_run() {
    let (disk, mut rig) = Handed::rig(2);
    assert!(!disk.is_active(), "there is no driver");
    rig.start();
    rig.check();
    rig.ok(Ask::SetStatus(0));
    assert!(!disk.is_active(), "a reset");
    rig.start();
    rig.check();
    rig.told(0);
    assert!(disk.is_active(), "another queue runs");
    rig.told(1);
    assert!(!disk.is_active(), "whoever was told goes on elsewhere");
    rig.check();
    assert!(disk.is_active(), "or here");
    rig.ok(Ask::Suspend);
    assert!(!disk.is_active(), "suspended");
    rig.ok(Ask::SetStatus(0));
    rig.start();
    rig.check();
    for index in 0..2 {
        let ready = false;
        rig.ok(Ask::SetVqReady { index, ready });
    }
    assert!(!disk.is_active(), "all queues are disabled");
    for index in 0..2 {
        let ready = true;
        rig.ok(Ask::SetVqReady { index, ready });
    }
    rig.check();
    rig.stop().unwrap();
    assert!(!disk.is_active(), "the end");
    rig.succeed();
    rig.check();
    rig.die();
    assert!(!disk.is_active(), "an end by an error");
}

#[test]
fn a_disk_that_somebody_else_has_refuses_the_driver() {
    let (disk, mut rig) = Handed::rig(1);
    disk.set(|script| script.locked = true);
    assert!(rig.bus.negotiate(rig.bus.device_features()));
    rig.set_queues_up();
    assert!(!rig.bus.set_driver_ok());
    assert!(!disk.is_active());
    disk.set(|script| script.locked = false);
    assert!(rig.bus.set_driver_ok());
    rig.check();
}

/// Two servers of one disk: the second gets it when the first is suspended.
#[test]
fn a_device_moves_from_one_server_to_another() {
    let (disk, mut rig) = Handed::rig(2);
    rig.start();
    rig.check();
    let other = Handed {
        script: Arc::default(),
        ..disk.clone()
    };
    rig.ok(Ask::Suspend);
    other.set(|script| script.locked = disk.is_active());
    let mut destination = Rig::layered(Arc::new(other), rig.disk.clone(), 2);
    destination.start_index = rig.told(0);
    destination.start();
    destination.check();
}

#[test]
fn a_disk_that_takes_its_time_delays_no_message() {
    let (disk, mut rig) = Handed::rig(1);
    disk.set(|script| script.slow = true);
    // A fifth of the time-out passes, and the driver is agreed with.
    rig.start();
    rig.submit(0, &Request::write(0, &[1; 512]));
    // Whether it could be somebody else's is not known.
    assert_eq!(rig.bus.ask(Ask::Suspend), Some(Answer::Failed));
    rig.ok(Ask::SetStatus(0));
    rig.disk.inner().take_ops();
    rig.start();
    let token = rig.submit(0, &Request::read(0, 512));
    disk.set(|script| script.slow = false);
    assert_eq!(rig.answer(0).token, token);
    assert_eq!(
        rig.disk.inner().take_ops().len(),
        1,
        "the first driver is gone"
    );
    rig.check();
}

/// What a dead server had in flight is in flight before a queue runs that has it.
#[test]
fn a_device_is_not_drained_before_what_was_in_flight_is_finished() {
    let (disk, mut rig) = Handed::over(StallDisk::held(), 1);
    rig.start();
    let token = rig.submit(0, &Request::write(0, &[1; 512]));
    while rig.disk.inner().held() == 0 {
        std::thread::yield_now();
    }
    rig.die();
    rig.disk.inner().set_mode(Mode::AtFlush);
    disk.set(|script| script.slow = true);
    rig.succeed();
    assert_eq!(rig.bus.ask(Ask::Suspend), Some(Answer::Failed));
    let state = Ask::GetVqState { index: 0 };
    assert_eq!(rig.bus.ask(state), Some(Answer::Failed));
    disk.set(|script| script.slow = false);
    rig.ok(Ask::Suspend);
    let done = rig.queues[0].poll().unwrap().unwrap();
    assert_eq!(done.token, token);
    assert_eq!(rig.told(0), 1);
}

/// A server that was killed may have the lock for a moment.
#[test]
fn a_take_over_tries_again_while_somebody_else_has_the_disk() {
    let (disk, mut rig) = Handed::rig(1);
    rig.start();
    rig.check();
    rig.die();
    disk.set(|script| script.locked = true);
    let before = disk.tries_after(0).len();
    rig.succeed();
    let token = rig.submit(0, &Request::read(0, 512));
    let tries = disk.tries_after(before + 1);
    // However often it is woken up.
    let pause = tries[before + 1].duration_since(tries[before]);
    assert!(pause >= Duration::from_millis(900), "{pause:?}");
    assert!(rig.queues[0].poll().unwrap().is_none());
    disk.set(|script| script.locked = false);
    assert_eq!(rig.answer(0).token, token);
}

/// What is not stable is not on the medium that somebody else continues with.
#[test]
fn a_suspend_fails_if_data_is_lost_with_it() {
    let (disk, mut rig) = Handed::rig(1);
    rig.start();
    rig.check();
    disk.set(|script| script.unstable = true);
    assert_eq!(rig.bus.ask(Ask::Suspend), Some(Answer::Failed));
    rig.check();
    let state = Ask::GetVqState { index: 0 };
    assert_eq!(rig.bus.ask(state), Some(Answer::Failed));
    rig.check();
    // A reset is one all the same.
    let begin = Instant::now();
    rig.ok(Ask::SetStatus(0));
    assert!(begin.elapsed() < PATIENCE);
    disk.set(|script| script.unstable = false);
    rig.start();
    rig.check();
}

/// A message that can't be refused has lost it: the next one says so, and each after that.
#[test]
fn a_loss_that_nobody_was_told_of_is_told_later() {
    let (disk, mut rig) = Handed::rig(1);
    let ready = |ready| Ask::SetVqReady { index: 0, ready };
    let state = Ask::GetVqState { index: 0 };
    rig.start();
    rig.check();
    disk.set(|script| script.unstable = true);
    rig.ok(ready(false));
    assert!(!disk.is_active());
    for _ in 0..2 {
        assert_eq!(rig.bus.ask(state), Some(Answer::Failed));
        assert_eq!(rig.bus.ask(Ask::Suspend), Some(Answer::Failed));
    }
    disk.set(|script| script.unstable = false);
    rig.ok(ready(true));
    rig.check();
    rig.ok(Ask::Suspend);
    // What a reset loses is not the next driver's.
    rig.ok(Ask::SetStatus(0));
    rig.start();
    disk.set(|script| script.unstable = true);
    rig.ok(Ask::SetStatus(0));
    assert!(matches!(rig.bus.ask(state), Some(Answer::VqState { .. })));
}

/// Also if the driver has reset the device before, as it does when it goes.
#[test]
fn the_end_tells_what_is_lost() {
    for reset in [false, true] {
        let (disk, mut rig) = Handed::rig(1);
        rig.start();
        rig.check();
        disk.set(|script| script.unstable = true);
        if reset {
            rig.ok(Ask::SetStatus(0));
            rig.bus.attach(false);
        }
        match rig.stop() {
            Err(ServerError::Lost { outcome, .. }) if reset => {
                assert_eq!(outcome, Outcome::Removed);
            }
            Err(ServerError::Lost { outcome, .. }) => assert_eq!(outcome, Outcome::Attached),
            other => panic!("{other:?}"),
        }
        disk.set(|script| script.unstable = false);
    }
}

/// A disk that still works on requests from before a reset is not released.
#[test]
fn a_disk_that_hangs_stays_in_use() {
    let (disk, mut rig) = Handed::rig(1);
    rig.start();
    rig.hang(0, &Request::write(5, &[5; 512]));
    rig.ok(Ask::SetStatus(0));
    assert!(disk.is_active());
    rig.disk.go_on();
    let deadline = Instant::now() + PATIENCE;
    while disk.is_active() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    rig.start();
    rig.check();
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use virtio_blk_core::disk::{Caps, IoQueue};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A disk that does what a test says, when it says it.
struct Scripted {
    /// What is asked for.
    asked: Mutex<Sender<bool>>,
    /// What becomes of it; `None`: a panic.
    script: Mutex<Receiver<Option<Result<(), DiskError>>>>,
}

impl Scripted {
    fn done(&self, active: bool) -> Result<(), DiskError> {
        self.asked.lock().unwrap().send(active).unwrap();
        let next = self.script.lock().unwrap().recv().unwrap();
        next.expect("a disk that panics")
    }
}

impl Disk for Scripted {
    fn caps(&self) -> Caps {
        Caps::basic(8)
    }

    fn open_queue(&self, _depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Err(DiskError::Unsupported)
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.done(true)
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.done(false)
    }
}

type Script = Sender<Option<Result<(), DiskError>>>;

fn medium() -> (Medium, Receiver<bool>, Script) {
    let (asked, asks) = channel();
    let (script, next) = channel();
    let disk = Scripted {
        asked: Mutex::new(asked),
        script: Mutex::new(next),
    };
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    (Medium::new(Arc::new(disk), Arc::new(wake)), asks, script)
}

fn done(medium: &Medium) -> Result<(), String> {
    medium.wait(Instant::now() + PATIENCE).unwrap()
}

#[test]
fn a_disk_is_taken_into_use_and_let_go_of_once() {
    let (medium, asks, script) = medium();
    medium.want(false);
    assert_eq!(done(&medium), Ok(()), "nothing to do");
    for active in [true, false, true] {
        script.send(Some(Ok(()))).unwrap();
        medium.want(active);
        assert_eq!(done(&medium), Ok(()));
        medium.want(active);
        assert_eq!(done(&medium), Ok(()));
        assert_eq!(asks.try_iter().collect::<Vec<_>>(), [active]);
        let deadline = Instant::now() + PATIENCE;
        while medium.0.wake.read().is_err() {
            assert!(Instant::now() < deadline, "it rings");
            std::thread::yield_now();
        }
    }
}

#[test]
fn nobody_waits_longer_than_wanted() {
    let (medium, asks, script) = medium();
    medium.want(true);
    assert!(asks.recv().unwrap());
    assert_eq!(medium.wait(Instant::now()), None);
    // No longer wanted, before it is there.
    medium.want(false);
    script.send(Some(Ok(()))).unwrap();
    assert!(!asks.recv().unwrap());
    assert_eq!(medium.wait(Instant::now()), None);
    script.send(Some(Ok(()))).unwrap();
    assert_eq!(done(&medium), Ok(()));
}

#[test]
fn failures_are_told_and_tried_again() {
    let (medium, asks, script) = medium();
    let locked = || Some(Err(DiskError::Config("it is locked".to_owned())));
    script.send(locked()).unwrap();
    medium.want(true);
    assert_eq!(done(&medium), Err("it is locked".to_owned()));
    script.send(Some(Ok(()))).unwrap();
    medium.want(true);
    assert_eq!(done(&medium), Ok(()));
    // What can't be made stable is let go of all the same.
    script.send(locked()).unwrap();
    medium.want(false);
    assert_eq!(done(&medium), Err("it is locked".to_owned()));
    medium.want(false);
    assert_eq!(done(&medium), Ok(()));
    assert_eq!(asks.try_iter().collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn a_panic_of_the_disk_is_a_failure() {
    let (medium, _asks, script) = medium();
    script.send(None).unwrap();
    medium.want(true);
    assert!(done(&medium).unwrap_err().contains("panicked"));
}

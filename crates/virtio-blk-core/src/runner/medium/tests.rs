// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::disk::{Caps, IoQueue};
use crate::testdisk::TestDisk;

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
    let (medium, asks, script, _) = heard();
    (medium, asks, script)
}

/// Also with what the listener is told.
fn heard() -> (Medium, Receiver<bool>, Script, Receiver<String>) {
    let (asked, asks) = channel();
    let (script, next) = channel();
    let disk = Scripted {
        asked: Mutex::new(asked),
        script: Mutex::new(next),
    };
    let (told, events) = channel();
    let told = Mutex::new(told);
    let listener = move |event: MediumEvent<'_>| {
        // Most tests don't listen.
        let _ = told.lock().unwrap().send(format!("{event:?}"));
    };
    (Medium::new(Arc::new(disk), listener), asks, script, events)
}

fn taken(medium: &Medium) -> Result<(), String> {
    let taken = medium.wait_taken(Instant::now() + PATIENCE).unwrap();
    taken.map_err(|refused| refused.to_string())
}

fn left(medium: &Medium) -> Result<(), String> {
    medium.wait_left(Instant::now() + PATIENCE).unwrap()
}

fn fails(why: &str) -> Option<Result<(), DiskError>> {
    Some(Err(DiskError::Config(why.to_owned())))
}

#[test]
fn a_disk_is_taken_into_use_and_let_go_of_once() {
    let (medium, asks, script, events) = heard();
    medium.want(false);
    assert_eq!(left(&medium), Ok(()), "nothing to do");
    for active in [true, false, true] {
        script.send(Some(Ok(()))).unwrap();
        for _ in 0..2 {
            medium.want(active);
            let done = if active { taken } else { left };
            assert_eq!(done(&medium), Ok(()));
        }
        assert_eq!(asks.try_iter().collect::<Vec<_>>(), [active]);
        assert_eq!(events.recv_timeout(PATIENCE).unwrap(), "Settled");
    }
}

/// Also what nobody waits for any more.
#[test]
fn failures_are_told_when_they_happen() {
    let (medium, asks, script, events) = heard();
    medium.want(true);
    assert!(asks.recv().unwrap());
    medium.want(false);
    script.send(fails("it is locked")).unwrap();
    let event = |word: &str| {
        let event = events.recv_timeout(PATIENCE).unwrap();
        assert!(event.starts_with(word), "{event}");
    };
    event("Refused");
    event("Settled");
    script.send(Some(Ok(()))).unwrap();
    medium.want(true);
    event("Settled");
    script.send(fails("no room")).unwrap();
    medium.want(false);
    event("Lost");
    event("Settled");
}

#[test]
fn nobody_waits_longer_than_wanted() {
    let (medium, asks, script) = medium();
    medium.want(true);
    assert!(asks.recv().unwrap());
    assert_eq!(medium.wait_taken(Instant::now()), None);
    // No longer wanted, before it is there.
    medium.want(false);
    script.send(Some(Ok(()))).unwrap();
    assert!(!asks.recv().unwrap());
    assert_eq!(medium.wait_left(Instant::now()), None);
    script.send(Some(Ok(()))).unwrap();
    assert_eq!(left(&medium), Ok(()));
}

#[test]
fn a_refusal_is_told_until_something_else_is_wanted() {
    let (medium, asks, script) = medium();
    script.send(fails("it is locked")).unwrap();
    let begin = Instant::now();
    medium.want(true);
    for _ in 0..2 {
        assert!(taken(&medium).unwrap_err().contains("it is locked"));
    }
    let refused = medium.refused().unwrap();
    assert!(refused.until >= begin + RETRY, "a pause comes first");
    script.send(Some(Ok(()))).unwrap();
    medium.want(true);
    assert_eq!(taken(&medium), Ok(()));
    assert_eq!(medium.refused(), None);
    assert_eq!(asks.try_iter().collect::<Vec<_>>(), [true, true]);
}

/// The disk may still write for it: nobody else may have the disk.
#[test]
fn a_queue_that_was_left_behind_keeps_the_disk() {
    let (medium, asks, script, events) = heard();
    script.send(Some(Ok(()))).unwrap();
    medium.want(true);
    assert_eq!(taken(&medium), Ok(()));
    let queues = [medium.leave_behind(), medium.leave_behind()];
    medium.want(false);
    assert_eq!(medium.wait_left(Instant::now()), None);
    let [first, last] = queues;
    drop(first);
    assert_eq!(medium.wait_left(Instant::now()), None);
    assert_eq!(asks.try_iter().collect::<Vec<_>>(), [true]);
    // The transport may be gone by then.
    drop(medium);
    drop(last);
    script.send(Some(Ok(()))).unwrap();
    assert!(!asks.recv().unwrap());
    for _ in 0..2 {
        let event = events.recv_timeout(PATIENCE).unwrap();
        assert!(event.starts_with("Settled"), "{event}");
    }
    assert!(events.recv().is_err(), "nothing is left");
}

/// Each caller that asks is told, however often, and however often the disk is not wanted.
#[test]
fn what_is_lost_is_told_until_the_disk_is_in_use_again() {
    let (medium, asks, script) = medium();
    for reset in [false, true] {
        script.send(Some(Ok(()))).unwrap();
        medium.want(true);
        assert_eq!(taken(&medium), Ok(()));
        assert!(medium.take_lost().is_none());
        script.send(fails("no room")).unwrap();
        for _ in 0..2 {
            medium.want(false);
            assert!(left(&medium).unwrap_err().contains("no room"));
        }
        // Taken into use in vain.
        script.send(fails("it is locked")).unwrap();
        medium.want(true);
        assert!(taken(&medium).is_err());
        medium.want(false);
        assert!(left(&medium).unwrap_err().contains("no room"));
        if reset {
            medium.reset();
            medium.want(false);
            assert_eq!(left(&medium), Ok(()), "as a power cut");
            let lost = medium.take_lost().unwrap();
            assert!(lost.to_string().contains("no room"), "the end tells it");
        }
    }
    let asked: Vec<bool> = asks.try_iter().collect();
    assert_eq!(asked, [true, false, true].repeat(2));
}

/// The driver resets the device while the disk is at work, and the next one comes.
#[test]
fn what_a_reset_finds_at_work_fails_no_message() {
    let (medium, asks, script) = medium();
    medium.want(true);
    assert!(asks.recv().unwrap());
    medium.want(false);
    medium.reset();
    for done in [Some(Ok(())), fails("no room")] {
        script.send(done).unwrap();
    }
    assert_eq!(left(&medium), Ok(()));
    script.send(Some(Ok(()))).unwrap();
    medium.want(true);
    assert_eq!(taken(&medium), Ok(()));
    script.send(fails("no room")).unwrap();
    medium.want(false);
    assert!(left(&medium).is_err(), "this driver is told");
}

#[test]
fn a_panic_of_the_disk_is_a_failure() {
    let (medium, asks, script) = medium();
    script.send(None).unwrap();
    medium.want(true);
    assert!(taken(&medium).unwrap_err().contains("panicked"));
    script.send(Some(Ok(()))).unwrap();
    medium.want(true);
    assert_eq!(taken(&medium), Ok(()));
    script.send(None).unwrap();
    for _ in 0..2 {
        medium.want(false);
        assert!(left(&medium).unwrap_err().contains("panicked"));
    }
    let asked: Vec<bool> = asks.try_iter().collect();
    assert_eq!(asked, [true, true, false], "nothing is asked of it again");
}

#[test]
fn a_disk_that_was_let_go_of_is_held_by_nobody_else() {
    for _ in 0..200 {
        let disk: Arc<dyn Disk> = Arc::new(TestDisk::new(Caps::basic(8)));
        let medium = Medium::new(disk.clone(), |_| ());
        medium.want(true);
        taken(&medium).unwrap();
        medium.want(false);
        left(&medium).unwrap();
        drop(medium);
        assert_eq!(Arc::strong_count(&disk), 1);
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whose lock is broken.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::*;

impl Rig {
    /// The file of the image.
    fn file(&self) -> PathBuf {
        let mut files = std::fs::read_dir(self.state.path()).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none());
        file
    }

    /// A process as which the cluster knew `client` was killed while it had the image open.
    fn killed(&self, client: u64) {
        drop(self.open());
        std::fs::write(self.file(), format!("client.{client}\n")).unwrap();
    }

    fn locked_by(&self, lockers: &[(&str, &str)]) {
        let lockers = lockers
            .iter()
            .map(|(client, at)| ((*client).to_owned(), (*at).to_owned()));
        *self.fake.lockers.lock().unwrap() = lockers.collect();
    }

    fn broken(&self) -> Vec<String> {
        self.fake.broken.lock().unwrap().clone()
    }
}

#[test]
fn the_lock_of_a_predecessor_that_was_killed_is_broken() {
    let rig = Rig::new();
    rig.killed(17);
    rig.locked_by(&[("client.17", "10.0.0.1:0/99")]);
    let _disk = rig.open();
    assert_eq!(rig.broken(), ["10.0.0.1:0/99"]);
}

#[test]
fn no_other_lock_is() {
    for (client, lockers) in [
        (17, &[("client.171", "10.0.0.1:0/99")][..]),
        (17, &[("client.1", "10.0.0.1:0/99")]),
        (17, &[]),
    ] {
        let rig = Rig::new();
        rig.killed(client);
        rig.locked_by(lockers);
        let _disk = rig.open();
        assert_eq!(rig.broken(), [""; 0], "{lockers:?}");
    }
}

#[test]
fn a_process_that_ended_in_an_orderly_way_leaves_nothing_to_break() {
    let rig = Rig::new();
    drop(rig.open());
    assert_eq!(std::fs::read_to_string(rig.file()).unwrap(), "");
    // It is the same client's: the tests' library knows only one.
    rig.locked_by(&[("client.4242", "10.0.0.1:0/99")]);
    let _disk = rig.open();
    assert_eq!(rig.broken(), [""; 0]);
}

/// Then the cluster may still have its lock.
#[test]
fn a_close_that_failed_leaves_the_name() {
    let rig = Rig::new();
    rig.fake.fail("rbd_close", -libc::ETIMEDOUT);
    drop(rig.open());
    rig.fake.fail("rbd_close", 0);
    rig.locked_by(&[("client.4242", "10.0.0.1:0/99")]);
    let _disk = rig.open();
    assert_eq!(rig.broken(), ["10.0.0.1:0/99"]);
}

#[test]
fn the_name_is_noted_before_anything_can_be_locked() {
    let rig = Rig::new();
    let disk = rig.open();
    assert_eq!(
        std::fs::read_to_string(rig.file()).unwrap(),
        "client.4242\n"
    );
    // A second one is refused, and changes nothing; who only reads is not.
    let error = rig.try_open(&rig.options()).err().unwrap();
    assert!(matches!(error, RbdError::Claimed { .. }), "{error}");
    assert_eq!(
        std::fs::read_to_string(rig.file()).unwrap(),
        "client.4242\n"
    );
    rig.try_open(&rig.options().read_only(true)).unwrap();
    rig.try_open(&rig.options().state(State::Off)).unwrap();
    drop(disk);
    rig.open();
}

#[test]
fn an_image_that_is_locked_by_hand_is_refused() {
    let rig = Rig::new();
    rig.killed(17);
    rig.locked_by(&[("client.17", "10.0.0.1:0/99")]);
    *rig.fake.cookie.lock().unwrap() = "mine".to_owned();
    for state in [State::Off, State::In(rig.state.path().to_owned())] {
        let error = rig.try_open(&rig.options().state(state)).err().unwrap();
        let text = error.to_string();
        assert!(
            text.contains("lock rm pool/disk 'mine' client.17"),
            "{text}"
        );
    }
    assert_eq!(rig.broken(), [""; 0]);
    // Nothing is written there.
    rig.try_open(&rig.options().read_only(true)).unwrap();
}

#[test]
fn a_lock_that_cannot_be_broken_is_waited_for() {
    let rig = Rig::new();
    rig.killed(17);
    rig.locked_by(&[("client.17", "10.0.0.1:0/99")]);
    rig.fake.fail("rbd_lock_break", -libc::EPERM);
    rig.open();
    rig.fake.fail("rbd_lock_break", 0);
    assert_eq!(rig.broken(), [""; 0]);
}

#[test]
fn an_image_without_the_lock_is_claimed_all_the_same() {
    let rig = Rig::new();
    rig.fake.features.store(1, Ordering::Relaxed);
    rig.killed(17);
    rig.locked_by(&[("client.17", "10.0.0.1:0/99")]);
    let _disk = rig.open();
    assert_eq!(rig.broken(), [""; 0]);
    rig.try_open(&rig.options()).err().unwrap();
}

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
        assert!(text.contains("lock rm pool/disk mine client.17`"), "{text}");
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
    // The next one has it still to break, though the one between ended in an orderly way, and the one after it nothing.
    rig.open();
    assert_eq!(rig.broken(), ["10.0.0.1:0/99"]);
    rig.open();
    assert_eq!(rig.broken().len(), 1);
    assert_eq!(std::fs::read_to_string(rig.file()).unwrap(), "");
}

#[test]
fn a_lock_that_could_not_be_broken_is_known_to_who_follows_a_second_kill() {
    let rig = Rig::new();
    rig.killed(17);
    rig.locked_by(&[("client.17", "10.0.0.1:0/99")]);
    rig.fake.fail("rbd_lock_break", -libc::EPERM);
    let disk = rig.open();
    let names = std::fs::read_to_string(rig.file()).unwrap();
    assert_eq!(names, "client.4242\nclient.17\n");
    drop(disk);
}

#[test]
fn a_lock_by_hand_under_the_librarys_name_is_refused() {
    let rig = Rig::new();
    rig.locked_by(&[("client.17", "10.0.0.1:0/99")]);
    for tag in ["", "mine"] {
        *rig.fake.tag.lock().unwrap() = tag.to_owned();
        let error = rig.try_open(&rig.options()).err().unwrap();
        assert!(matches!(error, RbdError::Locked { .. }), "{error}");
    }
    *rig.fake.tag.lock().unwrap() = "internal".to_owned();
    rig.open();
}

#[test]
fn names_of_locks_do_no_harm_in_a_message() {
    let rig = Rig::new();
    rig.locked_by(&[("client.17; reboot", "\x1b[2J")]);
    *rig.fake.cookie.lock().unwrap() = "it's $(reboot)\n".to_owned();
    let text = rig.try_open(&rig.options()).err().unwrap().to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    let command = r"lock rm pool/disk $'it\'s $(reboot)\x0a' 'client.17; reboot'`";
    assert!(text.contains(command), "{text}");
}

#[test]
fn an_image_of_the_first_format_is_not_claimed() {
    let rig = Rig::new();
    rig.fake.features.store(0, Ordering::Relaxed);
    rig.fake.fail("rbd_get_id", -libc::EINVAL);
    let _disk = rig.open();
    assert_eq!(std::fs::read_dir(rig.state.path()).unwrap().count(), 0);
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

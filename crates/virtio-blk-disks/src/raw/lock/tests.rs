// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn image() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().unwrap()
}

#[test]
fn writers_exclude_everybody_and_readers_only_writers() {
    let image = image();
    let (one, two) = (open(image.path()), open(image.path()));
    for (first, second, together) in [
        (true, true, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        let now = Duration::ZERO;
        lock(&one, first, now, image.path()).unwrap();
        assert_eq!(lock(&two, second, now, image.path()).is_ok(), together);
        unlock(&one);
        // A failure leaves nothing behind.
        let third = open(image.path());
        unlock(&two);
        lock(&third, true, now, image.path()).unwrap();
        unlock(&third);
    }
}

#[test]
fn a_failure_leaves_no_lock_behind() {
    let image = image();
    let (one, two) = (open(image.path()), open(image.path()));
    lock(&one, false, Duration::ZERO, image.path()).unwrap();
    assert!(lock(&two, true, Duration::ZERO, image.path()).is_err());
    // Another reader would see the failed writer's byte.
    lock(&open(image.path()), false, Duration::ZERO, image.path()).unwrap();
}

#[test]
fn a_lock_that_is_let_go_in_time_is_waited_for() {
    let image = image();
    let (one, two) = (open(image.path()), open(image.path()));
    lock(&one, true, Duration::ZERO, image.path()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lock(&two, true, Duration::from_secs(60), image.path()));
        unlock(&one);
        waiting.join().unwrap().unwrap();
    });
}

/// Two that start together must not keep each other out for ever.
#[test]
fn of_two_writers_that_come_together_each_gets_its_turn() {
    let image = image();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file = open(image.path());
                for _ in 0..10 {
                    lock(&file, true, Duration::from_secs(60), image.path()).unwrap();
                    unlock(&file);
                }
            });
        }
    });
}

#[test]
fn the_holder_is_named_if_that_can_be_found_out() {
    let image = image();
    let (one, two) = (open(image.path()), open(image.path()));
    lock(&one, true, Duration::ZERO, image.path()).unwrap();
    let error = lock(&two, true, Duration::ZERO, image.path()).unwrap_err();
    let message = error.to_string();
    // Some file systems have other numbers in /proc than in their files' metadata.
    let known = ["another disk of this process", "something else"];
    assert!(known.iter().any(|text| message.contains(text)), "{message}");
    assert!(!message.contains("another process"), "{message}");
    for holder in [
        Holder::ThisProcess,
        Holder::Process(7, "qemu".to_owned()),
        Holder::Unknown,
    ] {
        let text = holder.to_string();
        assert!(text.contains("fuser -v") && text.contains("lsof"), "{text}");
    }
    assert!(
        Holder::Process(7, "qemu".to_owned())
            .to_string()
            .contains("process 7 (qemu)")
    );
}

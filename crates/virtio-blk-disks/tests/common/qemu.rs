// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The judge of qcow2 images: `qemu-img`. A test that needs it fails without it.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `qemu-img`. Returns whatever it printed, also if it failed.
///
/// A lock that was given up outlives that where another test starts a process at this moment, which has a copy of
/// each descriptor until it runs its program: then it is tried again.
pub fn run(args: &[&str]) -> Output {
    let mut tries = 0;
    loop {
        let output = Command::new("qemu-img")
            .args(args)
            .output()
            .unwrap_or_else(|error| {
                panic!("can't run qemu-img ({error}): apt-get install qemu-utils")
            });
        let locked = String::from_utf8_lossy(&output.stderr).contains("lock");
        tries += 1;
        if output.status.success() || !locked || tries == 20 {
            return output;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Runs `qemu-img`, which must agree.
pub fn ok(args: &[&str]) {
    let output = run(args);
    assert!(
        output.status.success(),
        "qemu-img {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes an image of `size` bytes.
pub fn create(path: &Path, options: &str, size: usize) {
    let path = path.to_str().unwrap();
    ok(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        options,
        path,
        &size.to_string(),
    ]);
}

/// Checks that an image is sound and nothing in it is lost.
pub fn check(path: &Path) {
    ok(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
}

/// Checks that an image is sound. Clusters that belong to nothing are allowed: a process that was killed
/// leaves some.
pub fn check_after_crash(path: &Path) {
    let output = run(&["check", "-f", "qcow2", path.to_str().unwrap()]);
    // 3: leaked clusters only.
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compares an image's content, as QEMU reads it, with `content`.
pub fn compare(path: &Path, content: &[u8]) {
    let raw = path.with_extension("expected");
    std::fs::write(&raw, content).unwrap();
    let (path, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    ok(&["compare", "-q", "-f", "qcow2", "-F", "raw", path, raw]);
}

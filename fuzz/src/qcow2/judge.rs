// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's opinion of what was done to an image.

use std::path::Path;
use std::process::Command;

use super::{Host, Input, play};

/// What `qemu-img check` ends with.
fn status(path: &Path, bytes: &[u8]) -> Option<i32> {
    std::fs::write(path, bytes).expect("a temporary file");
    let output = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(path)
        .output();
    let output =
        output.unwrap_or_else(|e| panic!("can't run qemu-img ({e}): apt-get install qemu-utils"));
    output.status.code()
}

/// Does what the inputs say. An image in which `qemu-img check` finds nothing before is one in which it finds nothing
/// afterwards, not even a cluster that is lost. How many there were.
///
/// # Panics
/// It does find something, or the disk did what it must not do.
pub fn judge<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> usize {
    let path = std::env::temp_dir().join(format!("vblk-fuzz-{}.qcow2", std::process::id()));
    let mut judged = 0;
    for input in inputs {
        let (mut before, after) = (Host::new(input).content(), play(input).content());
        // Counts of clusters behind the end are lost ones, too, as soon as the file is that long.
        before.resize(before.len().max(after.len()), 0);
        if status(&path, &before) != Some(0) {
            continue;
        }
        let status = status(&path, &after);
        assert_eq!(status, Some(0), "{input:?}, in {}", path.display());
        judged += 1;
    }
    let _ = std::fs::remove_file(path);
    judged
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program does what it says.

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn all_that_is_written_is_read_back() {
    let run = Command::new(env!("CARGO_BIN_EXE_embed")).output().unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let expected = "4096 chunks written, read back and compared; stopped at index 8192\n";
    assert_eq!(text, expected);
}

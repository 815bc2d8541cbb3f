// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program as it is run: it says which of its two forms ran, and what was seen.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::{Command, Stdio};

fn said(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    assert!(text.contains("What you saw"), "{text}");
    text
}

#[test]
fn without_a_virtual_machine() {
    let text = said(&["--in-process"]);
    assert!(
        text.starts_with("No virtual machine: --in-process was given."),
        "{text}"
    );
    assert!(!text.contains("guest:"), "{text}");
}

#[test]
fn in_the_strongest_form_that_works_here() {
    let text = said(&[]);
    let in_guest = text.contains("  guest: done\n");
    let in_process = text.contains("No virtual machine: ");
    assert!(in_guest != in_process, "{text}");
}

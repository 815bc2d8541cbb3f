// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counting instructions.

use std::process::Stdio;

use crate::command::{Error, command, target_dir};

/// Instructions inside the functions whose names match `toggle`, while a program of the workspace runs.
///
/// # Errors
/// valgrind or the program failed, or nothing was counted.
pub fn count(program: &str, toggle: &str, args: &[String]) -> Result<f64, Error> {
    let mut command = command(
        "valgrind",
        [
            "--tool=callgrind",
            "--collect-atstart=no",
            "--callgrind-out-file=/dev/null",
        ],
    );
    command
        .arg(format!("--toggle-collect={toggle}"))
        .arg(target_dir().join("release").join(program))
        .args(args);
    let output = command
        .stdout(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            command: "valgrind".into(),
            source,
        })?;
    let said = String::from_utf8_lossy(&output.stderr);
    match collected(&said) {
        Some(count) if output.status.success() && count > 0.0 => Ok(count),
        _ => Err(Error::Other(format!("callgrind counted nothing: {said}"))),
    }
}

/// The count that callgrind reports: `==1== Collected : 1234`.
fn collected(said: &str) -> Option<f64> {
    let (_, count) = said.split_once("Collected :")?;
    count.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::collected;

    #[test]
    fn callgrinds_count_is_found() {
        let said = "==7== \n==7== Events    : Ir\n==7== Collected : 1429609\n==7== \n";
        assert_eq!(collected(said), Some(1_429_609.0));
        assert_eq!(collected("==7== no counts"), None);
    }
}

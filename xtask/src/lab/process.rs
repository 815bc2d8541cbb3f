// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs started on the host.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::error::{Error, Result};

/// Runs a command to its end and returns what it wrote to its standard output.
///
/// # Errors
/// That it can't be started, or its last lines if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, "")
}

/// As [`output`], with `input` (short: less than a pipe holds) on its standard input.
///
/// # Errors
/// See [`output`].
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    let shown = shown(command);
    let mut run = || {
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = piped.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends without reading has its reason, and its status tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output()
    };
    let output = run().map_err(|source| Error::Io {
        what: format!("can't run `{shown}`"),
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::Tool {
        command: shown,
        status: output.status.to_string(),
        stderr: tail(&stderr, 25),
    })
}

/// Starts a program that ends with this process, however this process ends.
///
/// # Errors
/// That it can't be started.
pub fn spawn(command: &mut Command) -> Result<Child> {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe functions are called: prctl, getppid.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the signal was asked for.
            if libc::getppid().unsigned_abs() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    command.spawn().map_err(|source| Error::Io {
        what: format!("can't start `{}`", shown(command)),
        source,
    })
}

/// Asks a child that was not waited for yet to end (SIGTERM).
pub fn terminate(child: &Child) {
    if let Ok(id) = libc::pid_t::try_from(child.id()) {
        // SAFETY: plain system call. The child has not been reaped, so the id is still its own.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

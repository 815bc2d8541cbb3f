// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask verify`.

use std::process::ExitCode;

use crate::command::{Error, command, run as execute, target_dir};

/// Options of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// For the client, `vblk-testing verify`: see `cargo xtask verify -- --help`. Without any: two
    /// million requests to `vblk` on a raw image and a million on memory
    #[arg(last = true)]
    client: Vec<String>,
}

/// Builds client and server for speed, and runs the one against the other.
///
/// # Errors
/// The build fails, or something was wrong: the client has said what.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    execute(&mut command(
        "cargo",
        ["build", "--release", "-p", "vblk", "-p", "vblk-testing"],
    ))?;
    let programs = target_dir().join("release");
    let client = |args: &[&str]| {
        execute(
            command(programs.join("vblk-testing"), ["verify", "--vblk"])
                .arg(programs.join("vblk"))
                .args(args),
        )
    };
    if args.client.is_empty() {
        client(&["--disk", "raw", "--ops", "2000000"])?;
        client(&["--disk", "memory", "--ops", "1000000", "--seed", "2"])?;
    } else {
        let args: Vec<&str> = args.client.iter().map(String::as_str).collect();
        client(&args)?;
    }
    Ok(ExitCode::SUCCESS)
}

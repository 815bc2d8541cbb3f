// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask verify`.

use std::process::ExitCode;

use crate::command::{Error, command, run as execute, target_dir};

/// Options of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// For the client instead of the usual runs: see `cargo xtask verify -- --help`
    #[arg(last = true)]
    client: Vec<String>,
}

/// What is run without further options. An image on a tmpfs takes most of the requests: a real disk's
/// flushes would take most of the time.
const RUNS: &[&[&str]] = &[
    &["--disk=raw", "--dir=/dev/shm", "--ops=2000000", "--seed=1"],
    &["--disk=raw", "--ops=250000", "--seed=2"],
    &["--disk=raw", "--engine=sync", "--ops=250000", "--seed=3"],
    &["--disk=memory", "--ops=1000000", "--seed=4"],
];

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
        for run in RUNS {
            println!("vblk-testing verify {}", run.join(" "));
            client(run)?;
        }
    } else {
        let args: Vec<&str> = args.client.iter().map(String::as_str).collect();
        client(&args)?;
    }
    Ok(ExitCode::SUCCESS)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask verify`.

use std::process::ExitCode;

use crate::command::{Error, command, need_program, run as execute, target_dir};

/// Options of `cargo xtask verify`.
#[derive(clap::Args)]
pub struct Args {
    /// A quarter of the requests of each run
    #[arg(long, conflicts_with = "client")]
    quick: bool,
    /// Through servers of network block devices instead: our own, nbdkit and qemu-nbd
    #[arg(long, conflicts_with = "client")]
    nbd: bool,
    /// For the client instead of the usual runs: see `cargo xtask verify -- --help`
    #[arg(last = true)]
    client: Vec<String>,
}

/// What is run without further options, and with how many requests each. An image on a tmpfs takes most of the requests: a real disk's
/// flushes would take most of the time.
const RUNS: &[(u32, &[&str])] = &[
    (2_000_000, &["--disk=raw", "--dir=/dev/shm", "--seed=1"]),
    (250_000, &["--disk=raw", "--seed=2"]),
    (250_000, &["--disk=raw", "--engine=sync", "--seed=3"]),
    (1_000_000, &["--disk=memory", "--seed=4"]),
];

/// What is run through servers of network block devices.
const NBD_RUNS: &[(u32, &[&str])] = &[
    (2_000_000, &["--nbd=vblk", "--dir=/dev/shm", "--seed=5"]),
    (2_000_000, &["--nbd=nbdkit", "--dir=/dev/shm", "--seed=6"]),
    (2_000_000, &["--nbd=qemu-nbd", "--dir=/dev/shm", "--seed=7"]),
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
        let runs = if args.nbd { NBD_RUNS } else { RUNS };
        if args.nbd {
            need_program("nbdkit", "nbdkit")?;
            need_program("qemu-nbd", "qemu-utils")?;
        }
        for (requests, run) in runs {
            let requests = if args.quick { requests / 4 } else { *requests };
            let ops = format!("--ops={requests}");
            let run = [run, &[ops.as_str()][..]].concat();
            println!("vblk-testing verify {}", run.join(" "));
            client(&run)?;
        }
    } else {
        let args: Vec<&str> = args.client.iter().map(String::as_str).collect();
        client(&args)?;
    }
    Ok(ExitCode::SUCCESS)
}

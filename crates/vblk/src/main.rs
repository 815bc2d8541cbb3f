// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod cli;
mod disk_info;
mod features;
mod output;
mod serve;
mod signals;
mod status;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, DiskCommand, ServeCommand};

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    match cli.command {
        Command::Serve(ServeCommand::VhostUser(args)) => serve::vhost_user(&args, cli.json),
        Command::Disk(DiskCommand::Info(args)) => disk_info::run(&args, cli.json),
        Command::Features(args) => features::run(&args, cli.json),
    }
}

/// The error and its causes on one line, each cause once.
fn describe(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("VBLK_LOG", level))
        .format_timestamp(None)
        .format_target(false)
        .init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vblk: {}", describe(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

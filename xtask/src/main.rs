// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's chores: `cargo xtask SUBCOMMAND`. One module per subcommand.

mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run lab scripts in a small virtual machine with a Debian kernel
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let result: Result<ExitCode, Box<dyn std::error::Error>> = match Cli::parse().command {
        Command::Lab(args) => lab::run(&args).map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        let mut source = error.source();
        while let Some(inner) = source {
            eprintln!("  because: {inner}");
            source = inner.source();
        }
        ExitCode::FAILURE
    })
}

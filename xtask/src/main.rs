// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's chores: `cargo xtask SUBCOMMAND`. One module per subcommand.

mod api;
mod bench;
mod cluster;
mod command;
mod coverage;
mod fuzz;
mod lab;
mod replace;
mod request_path;
mod verify;

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
    /// Run the tests, measure their coverage and compare it with the recorded score
    Coverage(coverage::Args),
    /// Run the fuzz targets, from their seeds, for some time each
    Fuzz(fuzz::Args),
    /// Millions of random requests to a vhost-user server, by an independent driver, every byte checked
    Verify(verify::Args),
    /// Disks of a Ceph cluster and of NBD servers, which are started here, under verified load
    Cluster(cluster::Args),
    /// Count the instructions of a request, and measure vblk beside qemu-storage-daemon
    Bench(bench::Args),
    /// List the files whose code runs for one request, for docs/architecture.md
    RequestPath(request_path::Args),
    /// Count public types and functions, and lines, of each crate
    Api(api::Args),
}

fn main() -> ExitCode {
    let result: Result<ExitCode, Box<dyn std::error::Error>> = match Cli::parse().command {
        Command::Lab(args) => lab::run(&args).map_err(Into::into),
        Command::Coverage(args) => coverage::run(&args).map_err(Into::into),
        Command::Fuzz(args) => fuzz::run(&args).map_err(Into::into),
        Command::Verify(args) => verify::run(&args).map_err(Into::into),
        Command::Cluster(args) => cluster::run(&args).map_err(Into::into),
        Command::Bench(args) => bench::run(&args).map_err(Into::into),
        Command::RequestPath(args) => request_path::run(&args).map_err(Into::into),
        Command::Api(args) => api::run(&args).map_err(Into::into),
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

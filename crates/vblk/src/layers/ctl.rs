// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk ctl`.

use std::error::Error;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::control::{Client, Request};
use super::layers_help;
use crate::output;

/// Shown after the help of `vblk ctl`.
pub const HELP: &str = concat!(
    "\
Examples:
  vblk ctl /run/disk0.ctl layers throttle=iops:2000,meter    limit the disk and measure it
  vblk ctl /run/disk0.ctl layers none                        and no more
  vblk ctl /run/disk0.ctl dirty backup --take                what changed since the last time

",
    layers_help!()
);

/// Options of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// The --control socket of a running server.
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    #[command(subcommand)]
    command: CtlCommand,
}

/// What to ask for.
#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Show what the disk does.
    Stats,
    /// Show the layers, or replace them while the disk is in use.
    Layers {
        /// All layers there shall be, from the medium upwards; `none` for none.
        #[arg(value_name = "LAYER[,LAYER…]", value_delimiter = ',')]
        set: Vec<String>,
    },
    /// Look at the size of the disk again.
    Refresh,
    /// Show what changed.
    Dirty {
        /// The bitmap's name.
        #[arg(value_name = "NAME")]
        bitmap: String,
        /// Clear the marks: the next call shows what changed since.
        #[arg(long)]
        take: bool,
    },
}

/// Asks, and prints the answer.
pub fn run(args: CtlArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let request = match args.command {
        CtlCommand::Stats => Request::Stats { since: false },
        CtlCommand::Layers { set } => Request::Layers {
            set: match set.as_slice() {
                [] => None,
                [none] if none == "none" => Some(Vec::new()),
                _ => Some(set),
            },
        },
        CtlCommand::Refresh => Request::Refresh {},
        CtlCommand::Dirty { bitmap, take } => Request::Dirty { bitmap, take },
    };
    let answer = Client::connect(&args.socket)?.ask(&request)?;
    output::print(&answer, json)?;
    Ok(())
}

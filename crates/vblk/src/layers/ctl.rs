// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk ctl`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use virtio_blk_disks::{DiskSpec, SpecError};

use super::act::MAX_HOLD;
use super::client::Client;
use super::control::Request;
use super::{layers_help, table};
use crate::output;

/// How long a server may take: a drain waits for the disk, and then for its flush.
const PATIENCE: Duration = Duration::from_secs(300);

/// Shown after the help of `vblk ctl`.
pub const HELP: &str = concat!(
    "\
Examples:
  vblk ctl /run/disk0.ctl layers throttle=iops:2000,meter    limit the disk and measure it
  vblk ctl /run/disk0.ctl layers none                        and no more
  vblk ctl /run/disk0.ctl dirty backup --take                what changed since the last time
  vblk ctl /run/disk0.ctl drain --hold 10; cp --reflink disk.img copy.img; vblk ctl /run/disk0.ctl resume
                                                             a copy of one moment

",
    layers_help!()
);

/// Options of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArgs {
    /// The --control socket of a running server.
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// The disk meant, where the server has several: the name of its device, or its socket.
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    #[command(subcommand)]
    command: CtlCommand,
}

/// What to ask for.
#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Show what the disk does.
    Stats,
    /// Show the names of the disks.
    Disks,
    /// Show the layers, or replace them while the disk is in use.
    Layers {
        /// All layers there shall be, from the medium upwards; `none` for none.
        #[arg(value_name = "LAYER[,LAYER…]", value_delimiter = ',')]
        set: Vec<String>,
    },
    /// Look at the size of the disk again.
    Refresh,
    /// Grow a raw file while it is in use; its driver is told.
    Resize {
        /// The new size, such as 16G.
        #[arg(value_name = "SIZE", value_parser = bytes)]
        bytes: u64,
    },
    /// End what is in flight, and flush: everything that the driver was told is done is then in the image.
    Drain {
        /// Keep requests that come afterwards waiting for so long, unless `resume` comes first.
        #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_HOLD))]
        hold: u64,
    },
    /// Go on after `drain --hold`, and try again what `rerror` and `werror` keep. Fails if the hold had ended before.
    Resume,
    /// Show what changed.
    Dirty {
        /// The bitmap's name.
        #[arg(value_name = "NAME")]
        bitmap: String,
        /// Clear the marks: the next call shows what changed since.
        #[arg(long)]
        take: bool,
        /// Have the server write the marks to a file; they also stay.
        #[arg(long, value_name = "FILE", conflicts_with = "take")]
        save: Option<PathBuf>,
        /// Have the server add the marks of such a file, and mark what the disk has grown by since.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["take", "save"])]
        load: Option<PathBuf>,
    },
}

/// A SIZE as a DISK has it.
fn bytes(text: &str) -> Result<u64, SpecError> {
    match format!("memory:{text}").parse()? {
        DiskSpec::Memory { bytes } => Ok(bytes),
        _ => Err(SpecError::Size {
            value: text.to_owned(),
        }),
    }
}

/// Asks, and prints the answer.
pub fn run(args: CtlArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let request = match args.command {
        CtlCommand::Stats => Request::Stats { since: false },
        CtlCommand::Disks => Request::Disks {},
        CtlCommand::Layers { set } => Request::Layers {
            set: match set.as_slice() {
                [] => None,
                [none] if none == "none" => Some(Vec::new()),
                _ => Some(set),
            },
        },
        CtlCommand::Refresh => Request::Refresh {},
        CtlCommand::Resize { bytes } => Request::Resize { bytes },
        CtlCommand::Drain { hold } => Request::Drain { hold },
        CtlCommand::Resume => Request::Resume {},
        CtlCommand::Dirty {
            bitmap,
            take,
            save,
            load,
        } => Request::Dirty {
            bitmap,
            take,
            save: save.map(std::path::absolute).transpose()?,
            load: load.map(std::path::absolute).transpose()?,
        },
    };
    let is_stats = matches!(request, Request::Stats { .. });
    let answer = Client::connect(&args.socket, PATIENCE)?.ask(args.disk.as_deref(), &request)?;
    if is_stats && !json {
        output::write(&table::of(&serde_json::from_value(answer)?))?;
    } else {
        output::print(&answer, json)?;
    }
    Ok(())
}

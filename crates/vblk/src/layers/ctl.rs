// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk ctl`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use virtio_blk_disks::disk_arg::MemoryOptions;
use virtio_blk_disks::{ArgError, DiskArg};

use super::act::MAX_HOLD;
use super::client::Client;
use super::control::Request;
use super::edit::Edit;
use super::marks::Dirty;
use super::nbd::Exporting;
use super::{layers_help, table};
use crate::output;

/// How long a server may take: a drain waits for the disk, and then for its flush.
const PATIENCE: Duration = Duration::from_secs(300);

/// Shown after the help of `vblk ctl`.
pub fn help() -> String {
    format!("{EXAMPLES}\n\n{}", layers_help())
}

const EXAMPLES: &str = "\
Examples:
  What the disk did, and what failed:
    vblk ctl /run/disk0.ctl stats
  Limit the disk and measure it; limit it more; and no more:
    vblk ctl /run/disk0.ctl layers --add throttle=iops:2000 --add meter
    vblk ctl /run/disk0.ctl layers --set throttle=iops:500
    vblk ctl /run/disk0.ctl layers --remove throttle
  What changed since the last time; the same, for a copy (then --commit or
  --abort its token):
    vblk ctl /run/disk0.ctl dirty backup
    vblk ctl /run/disk0.ctl dirty backup --take
  A copy of one moment, which is good if the last command succeeds:
    vblk ctl /run/disk0.ctl drain --hold 10
    cp --reflink=auto disk.img copy.img
    vblk ctl /run/disk0.ctl resume
  The disk of a running guest for a backup tool, and no more:
    vblk ctl /run/disk0.ctl export nbd --socket /run/disk0.nbd
    vblk ctl /run/disk0.ctl export stop
docs/backup.md has a whole incremental backup.";

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
    /// Show the layers, or change them while the disk is in use.
    Layers(LayersArgs),
    /// Look at the size of the disk again.
    Refresh,
    /// Grow the disk while it is in use: a raw file or a qcow2 image; its driver is told.
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
    /// Resume after `drain --hold`, and try again what `rerror` and `werror` keep. Fails if the hold had ended before.
    Resume,
    /// Show what changed, or do something to a dirty bitmap.
    Dirty(DirtyArgs),
    /// Export the disk beside its server, for clients that read it.
    #[command(subcommand)]
    Export(ExportCommand),
}

/// How to export.
#[derive(Debug, Subcommand)]
enum ExportCommand {
    /// As a network block device that is read-only, with the dirty bitmaps as contexts.
    Nbd {
        /// Unix socket to listen on.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// The export's name [default: the empty name].
        #[arg(long, value_name = "NAME", default_value = "")]
        export: String,
    },
    /// No more.
    Stop,
}

impl TryFrom<ExportCommand> for Exporting {
    type Error = std::io::Error;

    fn try_from(command: ExportCommand) -> Result<Self, std::io::Error> {
        Ok(match command {
            ExportCommand::Nbd { socket, export } => Self {
                socket: Some(std::path::absolute(socket)?),
                name: export,
            },
            ExportCommand::Stop => Self {
                socket: None,
                name: String::new(),
            },
        })
    }
}

/// Options of `ctl layers`. Removed first, then set, then added.
#[derive(Debug, Args)]
struct LayersArgs {
    /// All layers there shall be, from the medium upwards; `none` for none.
    #[arg(value_name = "LAYER[,LAYER…]", value_delimiter = ',', conflicts_with_all = ["add", "change", "remove"])]
    all: Vec<String>,
    /// Put a layer on top of the others (repeat for more).
    #[arg(long, value_name = "LAYER")]
    add: Vec<String>,
    /// Give a layer that is there these settings.
    #[arg(long = "set", value_name = "LAYER")]
    change: Vec<String>,
    /// Take a layer away, by its name: meter, throttle=group:a, dirty=backup (its marks are lost).
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// Dirty bitmaps may go that are not named, with their marks.
    #[arg(long)]
    drop_bitmaps: bool,
}

impl From<LayersArgs> for Edit {
    fn from(args: LayersArgs) -> Self {
        Self {
            set: match args.all.as_slice() {
                [] => None,
                [none] if none == "none" => Some(Vec::new()),
                _ => Some(args.all),
            },
            remove: args.remove,
            change: args.change,
            add: args.add,
            drop_bitmaps: args.drop_bitmaps,
        }
    }
}

/// Options of `ctl dirty`.
#[derive(Debug, Args)]
struct DirtyArgs {
    /// The bitmap's name.
    #[arg(value_name = "NAME")]
    bitmap: String,
    /// Take the marks for a copy, under a token. What was taken before and not committed is part of it.
    #[arg(long)]
    take: bool,
    /// The copy is safe: forget what was taken.
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["take", "abort", "new", "save", "load"])]
    commit: Option<String>,
    /// There is no copy: give back what was taken.
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["take", "new", "save", "load"])]
    abort: Option<String>,
    /// Forget all marks: from now on it says what changes after this.
    #[arg(long, conflicts_with_all = ["take", "save", "load"])]
    new: bool,
    /// Have the server write the marks to a file; they also stay. With --take: those that were taken.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Have the server add the marks of such a file, and mark what the disk has grown by since. You guarantee that
    /// nothing changed between the moment at which it was saved and the start of the server.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["take", "save"])]
    load: Option<PathBuf>,
}

impl TryFrom<DirtyArgs> for Dirty {
    type Error = std::io::Error;

    fn try_from(args: DirtyArgs) -> Result<Self, std::io::Error> {
        Ok(Self {
            bitmap: args.bitmap,
            take: args.take,
            commit: args.commit,
            abort: args.abort,
            new: args.new,
            save: args.save.map(std::path::absolute).transpose()?,
            load: args.load.map(std::path::absolute).transpose()?,
        })
    }
}

/// A SIZE as a DISK has it.
pub fn bytes(text: &str) -> Result<u64, ArgError> {
    let arg: DiskArg = format!("memory:{text}").parse()?;
    let memory: Option<&MemoryOptions> = arg.options();
    memory
        .map(|memory| memory.bytes)
        .ok_or_else(|| ArgError::Size {
            value: text.to_owned(),
        })
}

/// Asks, and prints the answer.
pub fn run(args: CtlArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let request = match args.command {
        CtlCommand::Stats => Request::Stats { since: false },
        CtlCommand::Disks => Request::Disks {},
        CtlCommand::Layers(args) => Request::Layers(args.into()),
        CtlCommand::Refresh => Request::Refresh {},
        CtlCommand::Resize { bytes } => Request::Resize { bytes },
        CtlCommand::Drain { hold } => Request::Drain { hold },
        CtlCommand::Resume => Request::Resume {},
        CtlCommand::Dirty(args) => Request::Dirty(args.try_into()?),
        CtlCommand::Export(command) => Request::Export(command.try_into()?),
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

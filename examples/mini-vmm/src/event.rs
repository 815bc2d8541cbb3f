// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens to a machine and what is asked of it, on the way to its owner.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;

/// What happens to a machine, told to its owner.
#[derive(Debug)]
pub enum Event {
    /// The guest wants to start again.
    Reset,
    /// The guest switched itself off; a status for the shell.
    PowerOff(u8),
    /// It can't continue.
    Failed(Error),
    /// Somebody asks for something.
    Control(Request),
    /// The guest printed a line, and the console's output comes here ([`crate::BuiltinGuest`]).
    Line(String),
}

/// What can be asked of a running machine. On the socket: `{"command":"resize","disk":0,"mib":512}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Subcommand)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// What the disks did so far
    Stats,
    /// Stop the vCPUs and let all requests in flight finish
    Pause,
    /// Resume
    Resume,
    /// Change a disk's size
    Resize {
        /// Its number, counted from 0
        disk: usize,
        /// MiB
        mib: u64,
    },
    /// Write the machine's state and memory into a directory; disks stay where they are
    Snapshot {
        /// Made if it is missing
        directory: PathBuf,
    },
    /// Plug in a PCI disk; the guest finds it with `echo 1 >/sys/bus/pci/rescan`
    AddDisk {
        /// As with --disk
        name: String,
    },
    /// Pull a PCI disk; the guest should have released it (`remove` in its directory in sysfs)
    RemoveDisk {
        /// Its number
        disk: usize,
    },
    /// Move the guest of a vDPA device to another path
    Switch {
        /// Where to
        path: Way,
        /// The disk's number
        #[arg(long, default_value_t = 0)]
        #[serde(default)]
        disk: usize,
    },
    /// Replace the layers of a disk with path=auto; the path follows
    Layers {
        /// throttle=…, meter, verify and others; none at all: the fast path
        layers: Vec<String>,
        /// The disk's number
        #[arg(long, default_value_t = 0)]
        #[serde(default)]
        disk: usize,
    },
    /// Switch off, now
    PowerOff,
}

/// A path of a vDPA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The device works on the guest's rings
    Fast,
    /// Requests pass the VMM
    Slow,
}

/// The answer to a command: what it has to say, or why not.
pub type Reply = std::result::Result<Value, String>;

/// A command on its way, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub reply: std::sync::mpsc::SyncSender<Reply>,
}

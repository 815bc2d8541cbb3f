// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a machine is made of.

use serde::{Deserialize, Serialize};

use crate::boot::Linux;
use crate::builtin::Task;

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Pci,
    Mmio,
}

/// What is run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Payload {
    Linux(Linux),
    /// The built-in guest.
    Builtin(Task),
}

/// A machine to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Bytes.
    pub memory: u64,
    pub cpus: u8,
    pub payload: Payload,
}

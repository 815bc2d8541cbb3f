// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The built-in guest (`guest/`), as `build.rs` made it.

use std::io::Cursor;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use serde::{Deserialize, Serialize};

use crate::cpu::Entry;
use crate::error::{Error, Result};
use crate::memory::{MMIO_WINDOW, Memory};

const IMAGE: &[u8] = include_bytes!(env!("GUEST"));

/// Attack the VMM before using the disk.
const HOSTILE: u64 = 1;
/// Use the disk until a key is typed.
const REPEAT: u64 = 2;
/// Below its image.
const STACK: u64 = 0x1f_f000;

/// What it does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Writes, flushes, reads back and compares.
    Verify,
    /// The same with other data again and again, until a key is typed.
    Repeat,
    /// Attacks the VMM, with this seed, then [`Task::Verify`].
    Attack(u64),
}

/// Loads it.
pub fn load(memory: &Memory, task: Task) -> Result<Entry> {
    let loaded = Elf::load(&**memory, None, &mut Cursor::new(IMAGE), None);
    let loaded = loaded.map_err(|error| Error::Boot {
        image: "the built-in guest".to_owned(),
        why: error.to_string(),
    })?;
    let (mode, seed) = match task {
        Task::Verify => (0, 0),
        Task::Repeat => (REPEAT, 0),
        Task::Attack(seed) => (HOSTILE, seed),
    };
    Ok(Entry {
        rip: loaded.kernel_load.0,
        // As after a call.
        rsp: STACK - 8,
        rdi: MMIO_WINDOW,
        rsi: mode,
        rdx: seed,
    })
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The built-in guest (`guest/`), as `build.rs` made it.

use std::io::Cursor;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;

use crate::cpu::Entry;
use crate::error::{Error, Result};
use crate::memory::{MMIO_WINDOW, Memory};

const IMAGE: &[u8] = include_bytes!(env!("GUEST"));

/// Attack the VMM instead of using the disk.
const HOSTILE: u64 = 1;
/// Below its image.
const STACK: u64 = 0x1f_f000;

/// Loads it. `hostile` has the seed of its attacks.
pub fn load(memory: &Memory, hostile: Option<u64>) -> Result<Entry> {
    let loaded = Elf::load(&**memory, None, &mut Cursor::new(IMAGE), None);
    let loaded = loaded.map_err(|error| Error::Boot {
        image: "the built-in guest".to_owned(),
        why: error.to_string(),
    })?;
    Ok(Entry {
        rip: loaded.kernel_load.0,
        // As after a call.
        rsp: STACK - 8,
        rdi: MMIO_WINDOW,
        rsi: if hostile.is_some() { HOSTILE } else { 0 },
        rdx: hostile.unwrap_or(0),
    })
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loading Linux by its 64-bit boot protocol (Documentation/arch/x86/boot.rst): a bzImage or an ELF
//! kernel, an initramfs, a command line.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, load_cmdline};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::cpu::Entry;
use crate::error::{Error, OnFile, Result};
use crate::memory::{
    ACPI_TABLES, COMMAND_LINE, HIGH_MEMORY, LOW_MEMORY_END, Memory, ZERO_PAGE, ranges,
};

const COMMAND_LINE_MAX: usize = 2048;
const RAM: u32 = 1;
/// A bzImage's 64-bit code starts this far behind its 32-bit code.
const ENTRY_64: u64 = 0x200;
const LOADER_UNKNOWN: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const HAS_64_BIT_ENTRY: u16 = 1;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");

/// What to boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Linux {
    pub kernel: PathBuf,
    pub initramfs: Option<PathBuf>,
    pub command_line: String,
}

/// Puts everything into guest memory.
pub fn load(memory: &Memory, linux: &Linux) -> Result<Entry> {
    let fail = |why: String| Error::Boot {
        image: linux.kernel.display().to_string(),
        why,
    };
    let mut file = File::open(&linux.kernel).on("open", &linux.kernel)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).on("read", &linux.kernel)?;
    file.rewind().on("read", &linux.kernel)?;
    let high = Some(GuestAddress(HIGH_MEMORY));
    let mut params = boot_params::default();
    let rip = if magic == *b"\x7fELF" {
        let loaded = Elf::load(&**memory, None, &mut file, high);
        params.hdr.header = HEADER_MAGIC;
        params.hdr.boot_flag = 0xaa55;
        loaded
            .map_err(|error| fail(error.to_string()))?
            .kernel_load
            .0
    } else {
        let loaded = BzImage::load(&**memory, None, &mut file, high);
        let loaded = loaded.map_err(|error| fail(error.to_string()))?;
        params.hdr = loaded.setup_header.unwrap_or_default();
        if params.hdr.xloadflags & HAS_64_BIT_ENTRY == 0 {
            return Err(fail("is no 64-bit kernel".to_owned()));
        }
        loaded.kernel_load.0 + ENTRY_64
    };
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.loadflags |= LOADED_HIGH;

    let command_line = Cmdline::try_from(&linux.command_line, COMMAND_LINE_MAX)
        .map_err(|error| fail(format!("command line: {error}")))?;
    load_cmdline(&**memory, GuestAddress(COMMAND_LINE), &command_line)
        .map_err(|error| fail(format!("command line: {error}")))?;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = linux.command_line.len() as u32;
    if let Some(path) = &linux.initramfs {
        let (start, len) = load_initramfs(memory, path)?;
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (start, len);
    }
    params.acpi_rsdp_addr = ACPI_TABLES;
    let total = memory.iter().map(|region| region.len()).sum();
    for (place, (start, len)) in params.e820_table.iter_mut().zip(memory_map(total)) {
        *place = boot_e820_entry {
            addr: start,
            size: len,
            r#type: RAM,
        };
        params.e820_entries += 1;
    }
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, &**memory)
        .map_err(|error| fail(error.to_string()))?;
    Ok(Entry {
        rip,
        rsp: ZERO_PAGE,
        rsi: ZERO_PAGE,
        ..Entry::default()
    })
}

/// What the guest may use: all RAM but the hole below 1 MiB.
fn memory_map(total: u64) -> Vec<(u64, u64)> {
    let mut map = vec![(0, LOW_MEMORY_END)];
    map.extend(ranges(total).into_iter().map(|(start, len)| {
        let first = start.max(HIGH_MEMORY);
        (first, (start + len).saturating_sub(first))
    }));
    map
}

/// At the end of low RAM, out of the unpacking kernel's way, below what any kernel can reach.
fn load_initramfs(memory: &Memory, path: &Path) -> Result<(u32, u32)> {
    const LIMIT: u64 = 0x3700_0000;
    let mut file = File::open(path).on("open", path)?;
    let len = file.metadata().on("examine", path)?.len();
    let low = memory.iter().next().map_or(0, |region| region.len());
    let too_large = || Error::Boot {
        image: path.display().to_string(),
        why: "doesn't fit into guest memory".to_owned(),
    };
    let start = low.min(LIMIT).checked_sub(len).ok_or_else(too_large)? & !0xfff;
    if start < HIGH_MEMORY {
        return Err(too_large());
    }
    let size = usize::try_from(len).map_err(|_| too_large())?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size)
        .map_err(|error| Error::Memory(error.to_string()))?;
    Ok((start as u32, len as u32))
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory, and what lies where in guest physical address space.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::error::{Context, Error, Result};

/// A guest's memory, shared by all that work on it.
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// RAM ends here and continues at [`HIGH_RAM`]; devices are between.
const LOW_RAM_END: u64 = 0xc000_0000;
const HIGH_RAM: u64 = 1 << 32;

/// PCI devices' memory BARs.
pub const PCI_WINDOW: u64 = 0xc000_0000;
pub const PCI_WINDOW_SIZE: u64 = 0x1000_0000;
/// virtio-mmio devices, a page each.
pub const MMIO_WINDOW: u64 = 0xd000_0000;
pub const MMIO_SLOT: u64 = 0x1000;
pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Intel's virtualisation wants three pages of its own for real mode, and one for an identity map.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Below 1 MiB: what the VMM prepares for the boot processor, then what firmware would leave.
pub const GDT: u64 = 0x500;
pub const ZERO_PAGE: u64 = 0x7000;
pub const PAGE_TABLES: u64 = 0x9000;
pub const COMMAND_LINE: u64 = 0x2_0000;
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
pub const ACPI_TABLES: u64 = 0xe_0000;
/// ffff:0000 in real mode.
pub const RESET_VECTOR: u64 = 0xf_fff0;
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The ranges of RAM for a guest with `bytes` of it.
pub fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM, bytes - low));
    }
    ranges
}

/// RAM out of a file in memory, so that device back-ends in other processes and in the kernel can map it
/// too (vhost-vdpa needs shared, file-backed memory).
pub fn allocate(bytes: u64) -> Result<Memory> {
    let fd = memfd_create("guest-ram", MemfdFlags::CLOEXEC).map_err(std::io::Error::from);
    let file = File::from(fd.context("no file for guest memory")?);
    file.set_len(bytes).context("no space for guest memory")?;
    let file = Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges(bytes) {
        let size = usize::try_from(len).map_err(|_| Error::Memory("too large".to_owned()))?;
        let part = FileOffset::from_arc(file.clone(), offset);
        regions.push((GuestAddress(start), size, Some(part)));
        offset += len;
    }
    GuestMemoryMmap::from_ranges_with_files(regions)
        .map(Arc::new)
        .map_err(|error| Error::Memory(error.to_string()))
}

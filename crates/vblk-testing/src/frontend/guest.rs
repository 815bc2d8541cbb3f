// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that can be shared.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use malformed_queues::testmem::Space;
use vhost::VhostUserMemoryRegionInfo;
use virtio_blk_driver::request::ArenaConfig;
use virtio_blk_driver::ring::RingConfig;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::{GuestMemory, Queue, Result};

/// What this client's own addresses differ by from the guest's.
const USER_OFFSET: u64 = 0x7000_0000_0000;

/// Memory in regions with a file each, and what is left of it.
pub struct Guest {
    memory: GuestMemory,
    parts: Vec<(u64, u64, File)>,
    space: Space,
}

/// A file in memory of `len` bytes.
///
/// # Errors
/// The system has none.
pub fn memory_file(len: u64) -> std::io::Result<File> {
    // SAFETY: the name is a valid C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

impl Guest {
    /// Memory at these guest addresses, of so many bytes each.
    ///
    /// # Errors
    /// The system has none.
    pub fn new(regions: &[(u64, u64)]) -> Result<Self> {
        let mut parts = Vec::new();
        let mut ranges = Vec::new();
        for &(addr, len) in regions {
            let file = memory_file(len)?;
            let offset = FileOffset::new(file.try_clone()?, 0);
            ranges.push((GuestAddress(addr), usize::try_from(len)?, Some(offset)));
            parts.push((addr, len, file));
        }
        let space: Vec<_> = regions
            .iter()
            .map(|&(addr, len)| (GuestAddress(addr), len))
            .collect();
        Ok(Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges)?),
            parts,
            space: Space::new(&space),
        })
    }

    /// The memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What this client calls a guest address.
    pub const fn user_address(addr: u64) -> u64 {
        addr + USER_OFFSET
    }

    /// The regions, to share.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.parts
            .iter()
            .map(|(addr, len, file)| VhostUserMemoryRegionInfo {
                guest_phys_addr: *addr,
                memory_size: *len,
                userspace_addr: Self::user_address(*addr),
                mmap_offset: 0,
                mmap_handle: file.as_raw_fd(),
            })
            .collect()
    }

    /// A queue of `size` in this memory with requests of up to `data_len` bytes, starting at index
    /// `start`.
    ///
    /// # Errors
    /// There is no room.
    pub fn queue(&mut self, size: u16, data_len: u32, start: u16) -> Result<Queue> {
        let ring = RingConfig {
            event_idx: true,
            indirect: true,
            start,
        };
        let arena = ArenaConfig {
            slots: size,
            data_len,
            ..ArenaConfig::default()
        };
        // A page of its own, so that dirty pages tell what was written.
        self.space.take(0, 4096)?;
        let driver = self.space.driver(self.memory.clone(), size, ring, arena)?;
        Queue::new(driver)
    }

    /// Takes `len` bytes from a page boundary on.
    ///
    /// # Errors
    /// There is no room.
    pub fn take(&mut self, len: u64) -> Result<GuestAddress> {
        Ok(self.space.take(len, 4096)?)
    }
}

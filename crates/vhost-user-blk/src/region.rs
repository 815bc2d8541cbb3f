// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One region of the client's memory.

use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::guest_memory::Result;
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress,
    VolatileMemory, VolatileSlice,
};

use crate::dirty_log::LogBitmap;
use crate::shared_file::SharedFile;

/// A region of guest memory in a file of the client's, which may shrink it at any time.
#[derive(Debug)]
pub(crate) struct Region {
    start: GuestAddress,
    file: SharedFile,
    bitmap: LogBitmap,
}

impl Region {
    /// A region that begins at `start`; `None` if it reaches beyond the address space.
    pub(crate) fn new(start: GuestAddress, file: SharedFile, bitmap: LogBitmap) -> Option<Self> {
        start.0.checked_add(file.len() as u64)?;
        Some(Self {
            start,
            file,
            bitmap,
        })
    }
}

impl GuestMemoryRegion for Region {
    type B = LogBitmap;

    fn len(&self) -> GuestUsize {
        self.file.len() as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, LogBitmap> {
        self.bitmap.clone()
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        Ok(self.get_slice(addr, 1)?.ptr_guard_mut().as_ptr())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, LogBitmap>>> {
        let offset = usize::try_from(offset.0).unwrap_or(usize::MAX);
        let plain = self.file.get_slice(offset, count)?;
        // SAFETY: the same memory for as long, with a bitmap in addition.
        Ok(unsafe {
            VolatileSlice::with_bitmap(
                plain.ptr_guard_mut().as_ptr(),
                plain.len(),
                self.bitmap.slice_at(offset),
                None,
            )
        })
    }
}

impl GuestMemoryRegionBytes for Region {}

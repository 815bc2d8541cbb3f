// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that a client shares as a file.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use guarded_mmap::{Mapping, Protection};
use virtio_blk_core::memory::HostMemory;
use vm_memory::{VolatileMemory, VolatileMemoryError, VolatileSlice};

/// Every page size is a multiple of this, in bytes.
const PAGE: u64 = 4096;

/// An eventfd that is signalled when memory of the client turns out to be gone: the session has to end.
pub(crate) type Alarm = Arc<OwnedFd>;

/// A mapped range of a file of the client's. The client may shrink the file at any time: what is touched
/// then becomes zeroes, and the alarm is signalled.
#[derive(Debug)]
pub(crate) struct SharedFile(Mapping);

impl SharedFile {
    /// Maps `len` bytes from `offset` of a file.
    ///
    /// # Errors
    /// The range is empty, wraps, does not begin at a page, or reaches beyond a regular file; or the system
    /// refuses.
    pub(crate) fn map(file: &File, offset: u64, len: u64, alarm: &Alarm) -> io::Result<Self> {
        let meta = file.metadata()?;
        let inside = offset.checked_add(len).is_some_and(|end| end <= meta.len());
        let size = usize::try_from(len).unwrap_or(0);
        // Structures in it are aligned to their address in memory.
        let aligned = offset.is_multiple_of(PAGE);
        if size == 0 || !aligned || meta.is_file() && !inside {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} of a file of {}", meta.len()),
            ));
        }
        let mapping = Mapping::new(file, offset, size, Protection::ReadWrite)?;
        Ok(Self(mapping.with_alarm(alarm.clone())))
    }

    /// The memory, kept mapped.
    pub(crate) fn into_memory(self) -> HostMemory {
        let (base, len) = (self.0.as_ptr(), self.0.len());
        // SAFETY: the mapping has these bytes for reading and writing as long as it lives, and nobody has
        // references into it.
        unsafe { HostMemory::new(base, len, Arc::new(self.0)) }
    }
}

impl VolatileMemory for SharedFile {
    type B = ();

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get_slice(
        &self,
        offset: usize,
        count: usize,
    ) -> Result<VolatileSlice<'_>, VolatileMemoryError> {
        let end = self.compute_end_offset(offset, count)?;
        debug_assert!(end <= self.0.len());
        // SAFETY: inside the mapping, which lives as long as the slice.
        Ok(unsafe { VolatileSlice::new(self.0.as_ptr().add(offset), count) })
    }
}

/// An alarm for tests.
#[cfg(test)]
pub(crate) fn alarm() -> Alarm {
    use rustix::event::{EventfdFlags, eventfd};
    Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
}

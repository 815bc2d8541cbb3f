// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that a client shares as a file.

use std::fs::File;
use std::io;

use vm_memory::{FileOffset, MmapRegion};

/// Checks that `len` bytes from `offset` lie inside a regular file: touching a mapping beyond its end
/// would end the process. (A client that shrinks its file later still can; memory it seals it can't.)
///
/// # Errors
/// The range is empty, wraps, or reaches beyond the file.
pub(crate) fn check_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let meta = file.metadata()?;
    let inside = offset.checked_add(len).is_some_and(|end| end <= meta.len());
    if len == 0 || meta.is_file() && !inside {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} of a file of {}", meta.len()),
        ));
    }
    Ok(())
}

/// Maps `len` bytes from `offset` of a file, shared.
///
/// # Errors
/// As for [`check_range`], or the system refuses.
pub(crate) fn map(file: File, offset: u64, len: u64) -> io::Result<MmapRegion<()>> {
    check_range(&file, offset, len)?;
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    MmapRegion::from_file(FileOffset::new(file, offset), len).map_err(io::Error::other)
}

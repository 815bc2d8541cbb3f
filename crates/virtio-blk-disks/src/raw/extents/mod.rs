// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a file has data.

use std::ops::Range;

use virtio_blk_core::disk::{Allocation, DiskError, Extent, Extents};

use super::medium::Medium;
use super::sys;

/// What is from an offset on that data and holes are looked for at.
enum Found {
    At(u64),
    /// Nothing of the kind, up to the file's end.
    Nothing,
    /// The file system can't tell.
    Unknown,
}

fn seek(medium: &Medium, offset: u64, whence: i32) -> Result<Found, DiskError> {
    match sys::seek(medium.file.file(), offset, whence) {
        Ok(at) => Ok(Found::At(at)),
        Err(libc::ENXIO) => Ok(Found::Nothing),
        Err(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTTY) => Ok(Found::Unknown),
        Err(errno) => Err(DiskError::from_errno(errno)),
    }
}

/// The extents of a range, at most `most`. Each begins and ends at a block of the disk's: a block that has a hole in it
/// is data.
///
/// # Errors
/// The range lies beyond the end, or the host's.
pub(super) fn extents(
    medium: &Medium,
    range: Range<u64>,
    most: usize,
) -> Result<Vec<Extent>, DiskError> {
    let caps = medium.caps();
    let block = u64::from(caps.align.guest_block);
    if range.end > caps.capacity_bytes() {
        return Err(DiskError::OutOfRange);
    }
    let mut extents = Extents::new(most);
    let mut at = range.start;
    // A block device has no holes that the kernel would tell of.
    let mut known = !medium.is_block_device();
    while at < range.end {
        let data = match known {
            true => seek(medium, at, libc::SEEK_DATA)?,
            false => Found::Unknown,
        };
        let begins = match data {
            Found::At(data) => (data - data % block).clamp(at, range.end),
            Found::Nothing => range.end,
            Found::Unknown => at,
        };
        if !extents.push(begins - at, Allocation::Hole) {
            break;
        }
        at = begins;
        if at == range.end {
            break;
        }
        let hole = match data {
            Found::At(data) => seek(medium, data, libc::SEEK_HOLE)?,
            Found::Nothing | Found::Unknown => Found::Unknown,
        };
        let ends = match hole {
            // At least a block: the file may change in between, and the next look would find the same again.
            Found::At(hole) => {
                let end = hole.checked_next_multiple_of(block).unwrap_or(range.end);
                end.max(at + block).min(range.end)
            }
            Found::Nothing | Found::Unknown => {
                known = false;
                range.end
            }
        };
        if !extents.push(ends - at, Allocation::Data) {
            break;
        }
        at = ends;
    }
    Ok(extents.into_vec())
}

#[cfg(test)]
mod tests;

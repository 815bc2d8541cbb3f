// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The format as it lies in the file: bytes to values and back, nothing else.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`; where a bound is not the specification's it is that of QEMU's
//! `block/qcow2.h`, so that an image one of the two refuses is refused by the other.

mod bitmap;
mod entry;
mod error;
mod extension;
mod geometry;
mod header;
mod refcount;

pub use bitmap::{ALL_ONES, BitmapEntry, bitmap_directory, bitmap_flag};
pub use entry::{COPIED, Entry, OFFSET, Place};
pub use error::FormatError;
pub use extension::Extensions;
pub use geometry::Geometry;
pub use header::{Compression, Header, autoclear, field, incompatible};
pub use refcount::Counts;

/// The 4 bytes at `at`, 0 behind the end.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at.saturating_add(4))
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// The 8 bytes at `at`, 0 behind the end.
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at.saturating_add(8))
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

/// Stores bytes at `at`, as far as there is room.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(at..at.saturating_add(value.len())) {
        room.copy_from_slice(value);
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The alignments that direct I/O needs.

use std::fs::File;
use std::path::Path;

use crate::raw::bounce::Chunk;
use crate::raw::error::OpenError;
use crate::raw::sys::{self, BlockInfo, DioAlign};

/// An alignment that every file system and device takes.
const SAFE: u32 = 4096;

/// Alignments in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Align {
    /// Of addresses.
    pub memory: u32,
    /// Of offsets in the file, and of lengths.
    pub offset: u32,
}

impl Align {
    /// What the page cache needs.
    pub const NONE: Self = Self {
        memory: 1,
        offset: 1,
    };
}

/// The alignments for direct I/O on an open file.
///
/// # Errors
/// The kernel says that the file can't do direct I/O.
pub(super) fn align(
    file: &File,
    device: Option<&BlockInfo>,
    path: &Path,
) -> Result<Align, OpenError> {
    match sys::dio_align(file) {
        DioAlign::Known { memory, offset } => Ok(sane(memory, offset)),
        DioAlign::Never => Err(OpenError::NoDirect {
            path: path.to_owned(),
        }),
        DioAlign::Untold => Ok(match device {
            Some(info) => sane(info.logical, info.logical),
            None => by_trial(|align| takes(file, align)),
        }),
    }
}

/// Powers of two, as everything here relies on.
fn sane(memory: u32, offset: u32) -> Align {
    let power = |value: u32| {
        if value.is_power_of_two() { value } else { SAFE }
    };
    Align {
        memory: power(memory),
        offset: power(offset),
    }
}

/// Finds the alignments by reading: `read(n)` reads `n` bytes at offset `n` into memory at an odd
/// multiple of `n`, and returns whether the kernel took that and there were bytes.
fn by_trial(read: impl Fn(u32) -> bool) -> Align {
    let found = [512, 1024, 2048].into_iter().find(|align| read(*align));
    let align = found.unwrap_or(SAFE);
    Align {
        memory: align,
        offset: align,
    }
}

/// One trial on a file. A read at its end says nothing, because some file systems look at the
/// alignment only when there are bytes.
fn takes(file: &File, align: u32) -> bool {
    let Ok(chunk) = Chunk::new(SAFE as usize) else {
        return false;
    };
    let len = align as usize;
    let mut segment = chunk.segment(len);
    segment.iov_base = segment.iov_base.wrapping_byte_add(len);
    // SAFETY: `align` is at most 2048, so the segment lies inside the chunk.
    unsafe { sys::preadv2(file, &[segment], align.into(), 0) > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trial_takes_the_first_that_works_and_is_careful_otherwise() {
        let both = |value| Align {
            memory: value,
            offset: value,
        };
        assert_eq!(by_trial(|_| true), both(512));
        assert_eq!(by_trial(|align| align >= 2048), both(2048));
        assert_eq!(by_trial(|_| false), both(SAFE));
    }

    #[test]
    fn nonsense_from_the_kernel_becomes_the_safe_value() {
        let align = sane(3, 512);
        assert_eq!((align.memory, align.offset), (SAFE, 512));
    }

    #[test]
    fn a_trial_reads_only_where_there_are_bytes() {
        let file = tempfile::tempfile().unwrap();
        assert!(!takes(&file, 512));
        file.set_len(8192).unwrap();
        // The page cache takes every alignment.
        assert!(takes(&file, 512));
        assert!(takes(&file, 2048));
    }
}

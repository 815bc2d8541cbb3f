// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why an operation, or a disk, failed.

use std::io;

/// Why an operation on a disk failed, or a disk could not be used.
///
/// The device maps it to a status byte in one place; nothing below the device knows status bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The medium does not offer this kind of operation.
    #[error("the disk does not support this operation")]
    Unsupported,
    /// The operation reaches beyond the medium.
    #[error("the operation reaches beyond the end of the disk")]
    OutOfRange,
    /// The operation would change a read-only medium.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The offset, the length or the buffer is not a multiple of what the medium needs.
    #[error("the operation is not aligned to the disk's block size")]
    Misaligned,
    /// The operation was cancelled before it had an effect that it reports.
    #[error("the operation was cancelled")]
    Cancelled,
    /// An earlier flush or write-back of this medium failed: what completed before may not be stable, and
    /// can't become so any more. See [`Disk::flush_error`](super::Disk::flush_error).
    #[error(
        "an earlier flush failed ({}): completed writes may be lost; stop the disk, check its content and open \
         it again",
        io::Error::from_raw_os_error(*errno)
    )]
    FlushLost {
        /// The `errno` of the failure.
        errno: i32,
    },
    /// The host refused or failed it.
    #[error("disk I/O failed: {0}")]
    Io(#[from] io::Error),
    /// The disk was made with settings it can't honour; the text says which and what to change.
    #[error("{0}")]
    Config(String),
}

impl DiskError {
    /// The error of a system call that set `errno` to `code`.
    pub fn from_errno(code: i32) -> Self {
        Self::Io(io::Error::from_raw_os_error(code))
    }

    /// The host's `errno` behind the error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io(error) => error.raw_os_error(),
            Self::FlushLost { errno } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the medium is out of space.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)))
    }
}

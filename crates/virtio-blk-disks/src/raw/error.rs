// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a file could not become a disk.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use virtio_blk_core::disk::DiskError;

use super::lock::Holder;

/// Why a file could not become a disk. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A system call failed.
    #[error("can't {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is {found}: a raw disk needs a regular file or a block device", path = path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// The host set the block device read-only.
    #[error(
        "{path} is read-only on this host: use readonly=on, or make it writable (`blockdev --setrw {path}`)",
        path = path.display()
    )]
    ReadOnlyDevice {
        /// The device.
        path: PathBuf,
    },
    /// Somebody else holds a lock on the file.
    #[error(
        "{path} is locked: {holder}; or, if you are certain that nothing else writes to the file, open it with \
         lock=off (waited {waited:?} for it)",
        path = path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who does.
        holder: Holder,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file system can't lock files.
    #[error(
        "can't lock {path}: {source}. If nothing else uses the file, open it with lock=off",
        path = path.display()
    )]
    NoLocks {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No direct I/O on this file.
    #[error(
        "the file system of {path} offers no direct I/O (O_DIRECT): use direct=off, or move the file",
        path = path.display()
    )]
    NoDirect {
        /// The file.
        path: PathBuf,
    },
    /// The block size is impossible here.
    #[error("block={block} is impossible for {path}: {why}", path = path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// The block size asked for, in bytes.
        block: u32,
        /// Why, and what is possible.
        why: String,
    },
    /// The size is no multiple of the block size.
    #[error(
        "the size of {path} is {size} bytes, not a multiple of the block size {block}: \
         `truncate -s %{block} {path}` adds the missing bytes as zeroes, and with readonly=on they are read so",
        path = path.display()
    )]
    OddSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The block size in bytes.
        block: u32,
    },
    /// The wanted engine is not available.
    #[error("engine=io_uring is not available for {path}: {why}. Use engine=auto or engine=sync", path = path.display())]
    Engine {
        /// The file.
        path: PathBuf,
        /// What is missing, and where to look.
        why: String,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

impl From<OpenError> for DiskError {
    /// The text says everything: the file, what failed, what to do.
    fn from(error: OpenError) -> Self {
        Self::Config(error.to_string())
    }
}

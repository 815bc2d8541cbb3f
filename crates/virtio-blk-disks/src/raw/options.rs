// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a file is to be used as a disk.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::lock::Lock;
use crate::disk_arg;
#[cfg(feature = "inject")]
use crate::inject::Injector;

/// How the I/O is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Engine {
    /// What is best for the file on this host, see [`super::RawDisk::engine`].
    #[default]
    Auto,
    /// An io_uring per queue, for every operation.
    IoUring,
    /// System calls that block the caller of `submit` until they are finished.
    Sync,
}

/// How a file or block device is to be used as a disk: what [`super::RawDisk::open`] takes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawOptions {
    #[serde(skip)]
    pub(crate) path: PathBuf,
    #[serde(rename = "readonly")]
    pub(crate) read_only: bool,
    pub(crate) direct: bool,
    pub(crate) engine: Engine,
    pub(crate) discard: bool,
    #[serde(deserialize_with = "disk_arg::block")]
    pub(crate) block: Option<u32>,
    pub(crate) lock: Lock,
    #[serde(deserialize_with = "disk_arg::words::auto_or_off")]
    pub(crate) mmap: bool,
    #[serde(skip)]
    pub(crate) inspect: bool,
    #[serde(skip)]
    pub(crate) extend: bool,
    #[cfg(feature = "inject")]
    #[serde(skip)]
    pub(crate) inject: Option<Injector>,
}

impl Default for RawOptions {
    /// Of no path yet.
    fn default() -> Self {
        Self::new("")
    }
}

impl RawOptions {
    /// The file at `path`, writable, through the page cache, with discard and a lock.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            direct: false,
            engine: Engine::Auto,
            discard: true,
            block: None,
            lock: Lock::On,
            mmap: true,
            inspect: false,
            extend: false,
            #[cfg(feature = "inject")]
            inject: None,
        }
    }

    /// Whether the disk is read-only (default: no).
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Whether I/O goes past the page cache, `O_DIRECT` (default: no).
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// How the I/O is made (default: [`Engine::Auto`]).
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Whether discards, and write-zeroes that allow it, give space back to the host where it can take
    /// it (default: yes).
    #[must_use]
    pub fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// The logical block size in bytes that the guest sees: a power of two from 512 to 2 MiB. By
    /// default the smallest one the host takes: 512 through the page cache, the host's own unit for
    /// direct I/O and block devices.
    #[must_use]
    pub fn block_size(mut self, bytes: Option<u32>) -> Self {
        self.block = bytes;
        self
    }

    /// When the file is locked against other users, shared if read-only (default: [`Lock::On`], which `true` stands
    /// for; `false` for [`Lock::Off`]).
    #[must_use]
    pub fn lock(mut self, when: impl Into<Lock>) -> Self {
        self.lock = when.into();
        self
    }

    /// Whether reads of what the page cache has may be copied from a mapping of the file, without a
    /// system call, and writes to a file in memory (tmpfs) to one (default: yes). Only done through the page
    /// cache of a local file system or block device, and not by [`Engine::IoUring`]. The process then handles
    /// `SIGBUS`, see the `guarded-mmap` crate, and what is mapped counts as the process's memory (`RssFile`),
    /// though it is the page cache.
    #[must_use]
    pub fn mmap(mut self, yes: bool) -> Self {
        self.mmap = yes;
        self
    }

    /// Whether the file is only looked at (default: no): it is opened for reading, without a lock and, where that is
    /// permitted, without a new access time; nothing about it is changed, also while others use it. The disk says
    /// what it could do if it were opened to be used, and completes every change with
    /// [`DiskError::ReadOnly`](virtio_blk_core::disk::DiskError::ReadOnly).
    #[must_use]
    pub fn inspect(mut self, yes: bool) -> Self {
        self.inspect = yes;
        self
    }

    /// Whether a regular file that ends within a block is made longer, up to the block's end, when it is opened for
    /// writing and when it is looked at again (default: no, it is refused); with [`Lock::Handover`], while the disk is in
    /// use. For files whose end means nothing, as those of other formats.
    #[must_use]
    pub fn extend(mut self, yes: bool) -> Self {
        self.extend = yes;
        self
    }

    /// Whether operations may change the file.
    pub(super) const fn is_writable(&self) -> bool {
        !self.read_only && !self.inspect
    }

    /// Has the disk's system calls counted and failed by an injector, for tests (default: none).
    #[cfg(feature = "inject")]
    #[must_use]
    pub fn inject(mut self, injector: &Injector) -> Self {
        self.inject = Some(injector.clone());
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A raw image: a regular file, or a block device of the host, byte for byte.

mod bounce;
mod cached;
mod engine;
mod error;
mod job;
mod medium;
mod options;
mod probe;
mod sys;

use std::path::Path;
use std::sync::Arc;

use virtio_blk_core::disk::{Caps, Disk, DiskError, DiskListener, IoQueue};

use engine::Plan;
pub use error::OpenError;
use medium::Medium;
pub use options::{Engine, RawOptions};

/// A regular file, or a block device of the host, as a disk.
///
/// What the file can do is found out when it is opened: alignments for direct I/O, whether holes can be
/// punched, the limits of a block device. Everything works on any number of queues at once.
#[derive(Debug)]
pub struct RawDisk {
    medium: Arc<Medium>,
    plan: Plan,
}

/// Whether disks of this process can use io_uring.
///
/// # Errors
/// Why not, in words that say what to change.
pub fn io_uring_support() -> Result<(), String> {
    engine::available()
}

impl RawDisk {
    /// Opens, locks and examines the file.
    ///
    /// # Errors
    /// Each names the file and says what to change, see [`OpenError`].
    pub fn open(options: &RawOptions) -> Result<Self, OpenError> {
        let medium = Arc::new(probe::open(options)?);
        let plan = Plan::choose(options.engine, &medium)?;
        Ok(Self { medium, plan })
    }

    /// How this disk makes its I/O; after [`Engine::Auto`], what was chosen:
    ///
    /// - [`Engine::Sync`] where io_uring is not available, and for files in memory (tmpfs);
    /// - [`Engine::IoUring`] for direct I/O;
    /// - [`Engine::Auto`] itself stands for the mixture used through the page cache: what the page
    ///   cache can answer at once is done inside `submit` by a system call, which costs less than a
    ///   round through io_uring; what has to wait for the device goes through io_uring.
    pub fn engine(&self) -> Engine {
        self.plan.engine()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.medium.path
    }
}

impl Disk for RawDisk {
    fn caps(&self) -> Caps {
        self.medium.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.plan.open_queue(&self.medium, depth)
    }

    fn refresh(&self) -> Result<(), DiskError> {
        Ok(self.medium.refresh()?)
    }

    fn listen(&self, listener: DiskListener) {
        self.medium.listeners.add(listener);
    }
}

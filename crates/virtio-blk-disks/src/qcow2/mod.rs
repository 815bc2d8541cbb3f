// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images in the qcow2 format of QEMU (`docs/interop/qcow2.rst` there).
//!
//! The format is the `imago` crate's work; here are the limits that hold against images made to harm, and
//! the threads that do the work, as the library blocks.
//!
//! Not possible: encryption, zstd compression, extended L2 entries, external data files. Opening such an
//! image says so. Clusters compressed with zlib are read, and written
//! uncompressed. Images of version 2 (`compat=0.10`) offer neither discard nor write-zeroes.

mod header;
mod image;
mod queue;

use std::path::PathBuf;
use std::sync::Arc;

use virtio_blk_core::disk::{Caps, Disk, DiskError, EraseLimits, IoQueue, SECTOR_SIZE, ZeroLimits};

pub use header::Qcow2Error;
use image::Image;
use queue::Qcow2Queue;

/// The most threads of one queue.
const MAX_WORKERS: u16 = 8;
/// The most queues of one image: each has threads.
const MAX_QUEUES: u16 = 64;
/// The most sectors of one discard or write-zeroes: 1 GiB.
const MAX_ERASE_SECTORS: u32 = 1 << 21;

/// How an image is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) backing: bool,
    pub(crate) lock: bool,
}

impl Qcow2Options {
    /// Writable, locked, without backing files.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            backing: false,
            lock: true,
        }
    }

    /// Opens the image read-only.
    #[must_use]
    pub const fn read_only(mut self, on: bool) -> Self {
        self.read_only = on;
        self
    }

    /// Follows the image's reference to a backing file, and that file's, to 16 of them. **The image says
    /// which files these are**: allow it only for images whose origin you trust.
    #[must_use]
    pub const fn backing(mut self, allow: bool) -> Self {
        self.backing = allow;
        self
    }

    /// Locks the file against other users (the default).
    #[must_use]
    pub const fn lock(mut self, on: bool) -> Self {
        self.lock = on;
        self
    }
}

/// A qcow2 image.
///
/// Each queue has up to eight threads. A flush writes the metadata kept in memory and syncs the file.
/// Discards and write-zeroes wait for everything else that is going on; discards free whole clusters.
pub struct Qcow2Disk {
    image: Arc<Image>,
    caps: Caps,
}

impl Qcow2Disk {
    /// Opens an image.
    ///
    /// # Errors
    /// [`Qcow2Error`]: it can't be opened, is no usable qcow2 image, or needs something that is not
    /// possible or was not allowed.
    pub fn open(options: &Qcow2Options) -> Result<Self, Qcow2Error> {
        let (image, header) = Image::open(options)?;
        let cluster_sectors = u32::try_from(header.cluster / SECTOR_SIZE).unwrap_or(1);
        let mut caps = Caps::basic(header.size / SECTOR_SIZE);
        caps.read_only = options.read_only;
        caps.flush = true;
        caps.max_queues = MAX_QUEUES;
        if header.has_zeroes {
            caps.discard = Some(EraseLimits {
                max_sectors: MAX_ERASE_SECTORS,
                max_segments: 1,
                alignment: cluster_sectors,
            });
            caps.write_zeroes = Some(ZeroLimits {
                max_sectors: MAX_ERASE_SECTORS,
                max_segments: 1,
                may_unmap: true,
            });
        }
        Ok(Self {
            image: Arc::new(image),
            caps,
        })
    }
}

impl Disk for Qcow2Disk {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let workers = depth.clamp(1, MAX_WORKERS);
        Ok(Box::new(Qcow2Queue::open(
            self.image.clone(),
            self.caps,
            depth.max(1),
            workers,
        )?))
    }
}

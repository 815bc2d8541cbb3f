// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image in the qcow2 format, through the crate `imago`, whose types stay in here.
//!
//! The library keeps the tables; the data never passes through it. Reads and writes of allocated clusters
//! go to their place in the file by the engine of [`crate::RawDisk`], on the owner's thread. Everything else
//! (allocation, copies from a backing file, compressed clusters, zeroes, discards, flushes) is done by four
//! threads of the disk.

mod chain;
mod error;
mod gate;
mod header;
mod image;
mod map;
mod options;
mod order;
mod pool;
mod queue;
mod storage;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use virtio_blk_core::disk::{
    Alignments, Caps, Disk, DiskError, EraseLimits, IoQueue, SECTOR_SIZE, Topology, ZeroLimits,
};

use crate::{RawDisk, RawOptions};
pub use error::OpenError;
use image::Image;
pub use options::Qcow2Options;
use pool::Pool;
use queue::Qcow2Queue;

/// Most segments in one erasing request.
const MAX_ERASE_SEGMENTS: u32 = 32;
/// Most sectors in one segment: 2 GiB.
const MAX_ERASE_SECTORS: u32 = 1 << 22;
/// Bytes that the host transfers best.
const PHYSICAL: u32 = 4096;

/// A qcow2 image as a disk.
///
/// Works on any number of queues at once. Writes may sit in the tables' cache until a flush: what was
/// written since the last one is lost with the process, not only with the host. Dropping the disk and its
/// queues writes everything to the file.
///
/// A panic of the library is caught: the operation fails, and so does every later one; nothing more is
/// written.
pub struct Qcow2Disk {
    image: Arc<Image>,
    file: RawDisk,
    path: PathBuf,
    caps: Caps,
    /// Started by the first queue, ended by the last.
    pool: Mutex<Weak<Pool>>,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// Opens, locks and checks the image and, where that is allowed, its backing files.
    ///
    /// # Errors
    /// Each names the file and says what to change, see [`OpenError`].
    pub fn open(options: &Qcow2Options) -> Result<Self, OpenError> {
        let path = options.path();
        let opened = std::panic::catch_unwind(|| chain::open(options))
            .unwrap_or_else(|_| Err(OpenError::damaged(path, "the library failed on it")))?;
        let raw = RawOptions::new(path)
            .read_only(options.read_only)
            .engine(options.engine);
        let file = opened
            .file
            .try_clone()
            .map_err(|source| OpenError::Library {
                path: path.to_owned(),
                source,
            })?;
        let file = RawDisk::over(file, &raw)?;
        let caps = caps(&opened.header, options.read_only);
        caps.validate()
            .map_err(|error| OpenError::damaged(path, error.to_string()))?;
        Ok(Self {
            image: Arc::new(Image::new(opened, options.read_only, options.discard)),
            file,
            path: path.to_owned(),
            caps,
            pool: Mutex::default(),
        })
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn caps(header: &header::Header, read_only: bool) -> Caps {
    let cluster = u32::try_from(header.cluster() / SECTOR_SIZE).unwrap_or(1);
    let mut caps = Caps {
        align: Alignments {
            guest_block: SECTOR_SIZE as u32,
            host_offset: 1,
            host_memory: 1,
        },
        topology: Topology {
            physical_block_exp: (PHYSICAL / SECTOR_SIZE as u32).ilog2() as u8,
            alignment_offset: 0,
            min_io_size: (PHYSICAL / SECTOR_SIZE as u32) as u16,
            opt_io_size: cluster,
        },
        read_only,
        flush: true,
        ..Caps::basic(header.size / SECTOR_SIZE)
    };
    // Version 2 has no way to say that a cluster is zero.
    if !read_only && header.version >= 3 {
        caps.discard = Some(EraseLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            alignment: cluster,
        });
        caps.write_zeroes = Some(ZeroLimits {
            max_sectors: MAX_ERASE_SECTORS,
            max_segments: MAX_ERASE_SEGMENTS,
            may_unmap: true,
        });
    }
    caps
}

impl Disk for Qcow2Disk {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let mut shared = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match shared.upgrade() {
            Some(pool) => pool,
            None => {
                let pool = Arc::new(Pool::new(&self.image)?);
                *shared = Arc::downgrade(&pool);
                pool
            }
        };
        drop(shared);
        let inner = self.file.open_queue(depth)?;
        let queue = Qcow2Queue::new(self.image.clone(), pool, inner, depth)?;
        Ok(Box::new(queue))
    }
}

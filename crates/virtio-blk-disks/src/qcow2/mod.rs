// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image in the qcow2 format, through the crate `imago`, whose types stay in here.
//!
//! The library keeps the tables; the data never passes through it. Reads and writes of allocated clusters
//! go to their place in the file by the engine of [`crate::RawDisk`], on the owner's thread. Everything else
//! (allocation, copies from a backing file, compressed clusters, zeroes, discards, flushes) is done by four
//! threads of the disk.

mod chain;
mod changes;
mod counts;
mod error;
mod frozen;
mod gate;
mod header;
mod host;
mod image;
mod map;
mod options;
mod order;
mod pool;
mod queue;
mod stable;
mod storage;
mod tables;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use virtio_blk_core::disk::{
    Alignments, Caps, Disk, DiskError, DiskListener, EraseLimits, IoQueue, SECTOR_SIZE, Topology,
    ZeroLimits,
};

pub use error::OpenError;
use host::DiskHost;
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
/// Works on any number of queues at once. What has completed is in the file, so that it outlives the
/// process; a flush makes it stable. After a power cut, and after the end of the process without a drop of the
/// disk and its queues, the image is sound, but may count clusters as used that are free (some 16 MiB, holes
/// in the file, per such end: `qemu-img check -r leaks` frees them).
///
/// An image grows: with a limit on the size of files (`RLIMIT_FSIZE`), the process must ignore `SIGXFSZ`.
///
/// A panic of the library is caught: the operation fails, and so does every later one; nothing more is
/// written.
pub struct Qcow2Disk {
    image: Arc<Image>,
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
        Self::new(opened, options)
    }

    /// What a disk on the image can do, without a change of any kind: the files are opened read-only and without a lock,
    /// so that an image in use can be looked at. What somebody changes meanwhile can make it look damaged.
    ///
    /// # Errors
    /// As of [`Qcow2Disk::open`], but for locks.
    pub fn inspect(options: &Qcow2Options) -> Result<Caps, OpenError> {
        let look = options.clone().read_only(true).lock(false);
        let path = options.path();
        let opened = std::panic::catch_unwind(|| chain::open(&look))
            .unwrap_or_else(|_| Err(OpenError::damaged(path, "the library failed on it")))?;
        Ok(caps(&opened.header, options.read_only))
    }

    /// Opens an image that another disk holds, from its first byte on. Of the options, the path is only a name, and
    /// where backing files are searched.
    ///
    /// # Errors
    /// As of [`Qcow2Disk::open`]; a disk whose blocks are larger than 512 bytes, or that is read-only while the
    /// image is to be written.
    pub fn over(disk: Arc<dyn Disk>, options: &Qcow2Options) -> Result<Self, OpenError> {
        let path = options.path();
        let caps = disk.caps();
        if u64::from(caps.align.guest_block) != SECTOR_SIZE || caps.read_only && !options.read_only
        {
            return Err(OpenError::unsupported(
                path,
                "a disk below it that is read-only or has blocks of more than 512 bytes",
            ));
        }
        let host = Arc::new(DiskHost::new(disk).map_err(|error| OpenError::Library {
            path: path.to_owned(),
            source: std::io::Error::other(error),
        })?);
        let opened =
            std::panic::catch_unwind(AssertUnwindSafe(|| chain::open_on(host, options)))
                .unwrap_or_else(|_| Err(OpenError::damaged(path, "the library failed on it")))?;
        Self::new(opened, options)
    }

    fn new(opened: chain::Opened, options: &Qcow2Options) -> Result<Self, OpenError> {
        let path = options.path();
        let caps = caps(&opened.header, options.read_only);
        caps.validate()
            .map_err(|error| OpenError::damaged(path, error.to_string()))?;
        Ok(Self {
            image: Arc::new(Image::new(opened, options.read_only, options.discard)),
            path: path.to_owned(),
            caps,
            pool: Mutex::default(),
        })
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Persistent dirty bitmaps of the image that the first write makes inconsistent: nobody keeps them up to date
    /// here, and QEMU ignores them from then on. 0 after that write, and for a read-only disk.
    pub fn persistent_bitmaps(&self) -> u32 {
        self.image.bitmaps()
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

    fn flush_error(&self) -> Option<DiskError> {
        self.image.error()
    }

    fn listen(&self, listener: DiskListener) {
        self.image.listeners.add(listener);
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
        let inner = self.image.host.open_queue(depth)?;
        let queue = Qcow2Queue::new(self.image.clone(), pool, inner, depth)?;
        Ok(Box::new(queue))
    }
}

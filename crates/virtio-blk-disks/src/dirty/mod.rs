// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A layer that remembers which blocks were changed: the base of incremental backup and of migration.
//!
//! Any number of named [`DirtyBitmap`]s at a time, started and stopped while the disk is in use.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_core::disk::Disk;
//! use virtio_blk_disks::MemoryDisk;
//! use virtio_blk_disks::dirty::DirtyDisk;
//!
//! let disk = DirtyDisk::new(Arc::new(MemoryDisk::new(4 << 20)?));
//! let bitmap = disk.start("backup", 64 << 10)?;
//! // … the guest writes …
//! for (offset, len) in bitmap.take().ranges {
//!     println!("copy {len} bytes from {offset}");
//! }
//! std::fs::write("/dev/null", bitmap.save())?;
//! disk.stop("backup");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bitmap;
mod marker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue, SECTOR_SIZE};

pub use bitmap::{BitmapError, Changes, DirtyBitmap};
use marker::Marker;

use crate::observe::ObservedQueue;

/// The bitmaps at work.
type Bitmaps = Vec<(String, Arc<DirtyBitmap>)>;

/// A disk whose changes are marked in bitmaps.
///
/// A block is marked when the operation that changed it has ended, well or badly, before its owner learns
/// of it. So a bitmap that is started while operations are in flight misses none of them, and
/// [`DirtyBitmap::take`] loses no write: what had not ended is found the next time. Whoever needs the last
/// changes takes once more after the queues have stopped.
pub struct DirtyDisk<D: ?Sized = dyn Disk> {
    bitmaps: Arc<ArcSwap<Bitmaps>>,
    /// Held while the list is exchanged.
    changing: Arc<Mutex<()>>,
    inner: Arc<D>,
}

impl<D: Disk + ?Sized> DirtyDisk<D> {
    /// Puts the layer over a disk. Without bitmaps it costs a look at an empty list for each write.
    pub fn new(inner: Arc<D>) -> Self {
        Self {
            bitmaps: Arc::default(),
            changing: Arc::default(),
            inner,
        }
    }

    /// The same layer, with its bitmaps, over another view of the disk.
    pub(crate) fn over(&self, inner: Arc<D>) -> Self {
        Self {
            bitmaps: self.bitmaps.clone(),
            changing: self.changing.clone(),
            inner,
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a bitmap, clean, with blocks of `granularity` bytes.
    ///
    /// # Errors
    /// [`BitmapError`]: the name is taken, or the granularity does not fit.
    pub fn start(&self, name: &str, granularity: u64) -> Result<Arc<DirtyBitmap>, BitmapError> {
        let capacity = self.inner.caps().capacity.saturating_mul(SECTOR_SIZE);
        let bitmap = Arc::new(DirtyBitmap::new(capacity, granularity)?);
        self.attach(name, bitmap.clone())?;
        Ok(bitmap)
    }

    /// Goes on with a bitmap that was saved. If the disk has another size than it had then,
    /// [`Changes::beyond`] tells so with the next changes there.
    ///
    /// # Errors
    /// The name is taken.
    pub fn attach(&self, name: &str, bitmap: Arc<DirtyBitmap>) -> Result<(), BitmapError> {
        let _changing = self.changing();
        let mut bitmaps = Bitmaps::clone(&self.bitmaps.load());
        if bitmaps.iter().any(|(found, _)| found == name) {
            return Err(BitmapError::Exists(name.to_owned()));
        }
        bitmaps.push((name.to_owned(), bitmap));
        self.bitmaps.store(Arc::new(bitmaps));
        Ok(())
    }

    /// Ends a bitmap, and hands it out. `None` if there is none of that name.
    pub fn stop(&self, name: &str) -> Option<Arc<DirtyBitmap>> {
        let _changing = self.changing();
        let mut bitmaps = Bitmaps::clone(&self.bitmaps.load());
        let index = bitmaps.iter().position(|(found, _)| found == name)?;
        let (_, bitmap) = bitmaps.remove(index);
        self.bitmaps.store(Arc::new(bitmaps));
        Some(bitmap)
    }

    /// The bitmap of a name.
    pub fn bitmap(&self, name: &str) -> Option<Arc<DirtyBitmap>> {
        let bitmaps = self.bitmaps.load();
        let found = bitmaps.iter().find(|(found, _)| found == name);
        found.map(|(_, bitmap)| bitmap.clone())
    }

    /// The names of all bitmaps, in the order of their start.
    pub fn names(&self) -> Vec<String> {
        let bitmaps = self.bitmaps.load();
        bitmaps.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl<D: Disk + ?Sized> Disk for DirtyDisk<D> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let inner = self.inner.open_queue(depth)?;
        let bitmaps = self.bitmaps.clone();
        Ok(Box::new(ObservedQueue::new(
            Marker { bitmaps },
            inner,
            depth,
        )))
    }

    crate::forward::control!(self, self.inner);
}

#[cfg(test)]
mod tests;

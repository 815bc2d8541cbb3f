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
//! let take = bitmap.take();
//! for (offset, len) in &take.changes.ranges {
//!     println!("copy {len} bytes from {offset}");
//! }
//! // The copy is safe. Had it failed: `abort`.
//! bitmap.commit(take.token)?;
//! disk.stop("backup");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bitmap;
mod changes;
mod dirty_marker;
mod error;
mod format;
mod open;
mod options;
mod persist;
mod stored;
mod words;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use virtio_blk_core::disk::{
    Caps, Disk, DiskError, DiskEvent, Handover, IoQueue, SECTOR_SIZE, StoredBitmap,
};

pub use bitmap::{DirtyBitmap, Run};
pub use changes::{Changes, Generation, Take, TakeToken};
use dirty_marker::{DirtyMarker, PersistentMarker};
pub use error::BitmapError;
pub use options::{DirtyOptions, GRANULARITY};
use persist::Persist;
pub use persist::PersistOptions;
use stored::StoredMarker;

use crate::layer::{Layer, Layered};
use crate::observe::ObservedQueue;

/// The bitmaps in use.
type Bitmaps = Vec<(String, Arc<DirtyBitmap>)>;

/// A disk whose changes are marked in bitmaps.
///
/// A block is marked when the operation that changed it has ended, well or badly, before its owner learns
/// of it. So a bitmap that is started while operations are in flight misses none of them, and
/// [`DirtyBitmap::take`] loses no write: what had not ended is found the next time. To have the last
/// changes, take once more after the queues have stopped.
///
/// While the disk underneath is released ([`Disk::handover`]), others may change it unseen: everything counts as
/// changed then, and afterwards, too, if the disk can't prove that it is as it was.
///
/// One bitmap may have a file ([`DirtyDisk::open`]), in which a block is marked before its change is given to the
/// disk: if that fails, so does the operation.
pub type DirtyDisk<D = dyn Disk> = Layered<Dirty, D>;

/// The layer of a [`DirtyDisk`].
#[derive(Clone)]
pub struct Dirty {
    bitmaps: Arc<ArcSwap<Bitmaps>>,
    /// Held while the list is exchanged, or all of it is told something.
    changing: Arc<Mutex<()>>,
    /// The file of one of them.
    file: Option<Arc<Persist>>,
    /// The disk's own bitmap, which goes along with one of them.
    stored: Option<Arc<dyn StoredBitmap>>,
}

impl Dirty {
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all bitmaps.
    ///
    /// # Errors
    /// The first, after all were told.
    fn tell(
        &self,
        what: impl Fn(&DirtyBitmap) -> Result<(), BitmapError>,
    ) -> Result<(), BitmapError> {
        let _changing = self.changing();
        let tell = |told: Result<(), _>, (_, bitmap): &(_, Arc<DirtyBitmap>)| {
            let this = what(bitmap);
            told.and(this)
        };
        self.bitmaps.load().iter().fold(Ok(()), tell)
    }
}

/// Why a bitmap that a stack starts knows nothing.
const NEW: &str = "it is new: what changed before is not known";

impl<D: Disk + ?Sized> DirtyDisk<D> {
    /// Puts the layer over a disk. Without bitmaps it costs a look at an empty list for each write.
    pub fn new(inner: Arc<D>) -> Self {
        let bitmaps = Arc::<ArcSwap<Bitmaps>>::default();
        let changing = Arc::<Mutex<()>>::default();
        let (grown, turn) = (Arc::downgrade(&bitmaps), changing.clone());
        inner.listen(Arc::new(move |event| {
            if let (DiskEvent::Resized { capacity }, Some(bitmaps)) = (event, grown.upgrade()) {
                let _changing = turn.lock().unwrap_or_else(PoisonError::into_inner);
                for (_, bitmap) in bitmaps.load().iter() {
                    bitmap.resize(capacity.saturating_mul(SECTOR_SIZE));
                }
            }
        }));
        let layer = Dirty {
            bitmaps,
            changing,
            file: None,
            stored: None,
        };
        Self::with(layer, inner)
    }

    /// The layer with one bitmap that knows nothing of what changed before it was started, so that everything counts
    /// as changed; unless `persist` names a file in which it was kept until now, or, without `persist`, the disk has a
    /// bitmap of that name itself ([`Disk::stored_bitmap`]): then it continues with that, in blocks of its size, and what
    /// is committed is forgotten there, too. If the disk was changed in between without this layer, the file must be
    /// removed; the disk's own bitmap knows.
    ///
    /// # Errors
    /// [`BitmapError`]: the granularity does not fit, or the file or the disk's own bitmap can't be used.
    pub fn open(
        inner: Arc<D>,
        name: &str,
        granularity: u64,
        persist: Option<&PersistOptions>,
    ) -> Result<Self, BitmapError> {
        let plain = Self::new(inner);
        let (size, mut layer) = (plain.size(), plain.layer().clone());
        let bitmap = match persist {
            None => match plain.inner().stored_bitmap(name)? {
                None => Arc::new(DirtyBitmap::incomplete(size, granularity, NEW)?),
                Some(found) => {
                    let own = found.bitmap.granularity();
                    if granularity != own && granularity != GRANULARITY {
                        return Err(BitmapError::Stored {
                            name: name.to_owned(),
                            granularity: own,
                        });
                    }
                    let bitmap = stored::open(size, &found)?;
                    layer.stored = Some(found.bitmap);
                    bitmap
                }
            },
            Some(options) => {
                let file = open::New {
                    name,
                    size,
                    granularity,
                    boot: open::boot(),
                    hands_over: plain.inner().handover() != Handover::Never,
                };
                let (bitmap, file) = open::open(options, &file)?;
                layer.file = Some(file);
                bitmap
            }
        };
        let this = Self::with(layer, plain.inner().clone());
        this.attach(name, bitmap)?;
        Ok(this)
    }

    fn size(&self) -> u64 {
        self.inner().caps().capacity.saturating_mul(SECTOR_SIZE)
    }

    /// Notes in the bitmap's file that it does not see the disk's changes any more.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn forget(&self) -> Result<(), BitmapError> {
        let why = "its layer was removed while the disk was in use";
        match &self.layer().file {
            Some(file) => file.bitmap.doubt(why),
            None => Ok(()),
        }
    }

    fn bitmaps(&self) -> &ArcSwap<Bitmaps> {
        &self.layer().bitmaps
    }

    /// Starts a bitmap with blocks of `granularity` bytes. It is clean: it says what changes from now on.
    ///
    /// # Errors
    /// [`BitmapError`]: the name is taken, or the granularity does not fit.
    pub fn start(&self, name: &str, granularity: u64) -> Result<Arc<DirtyBitmap>, BitmapError> {
        let bitmap = Arc::new(DirtyBitmap::new(self.size(), granularity)?);
        self.attach(name, bitmap.clone())?;
        Ok(bitmap)
    }

    /// Continues with a bitmap. What the disk has grown by since counts as changed.
    ///
    /// # Errors
    /// The name is taken, or the bitmap's file can't be written.
    pub fn attach(&self, name: &str, bitmap: Arc<DirtyBitmap>) -> Result<(), BitmapError> {
        let _changing = self.layer().changing();
        let mut bitmaps = Bitmaps::clone(&self.bitmaps().load());
        if bitmaps.iter().any(|(found, _)| found == name) {
            return Err(BitmapError::Exists(name.to_owned()));
        }
        bitmaps.push((name.to_owned(), bitmap.clone()));
        self.bitmaps().store(Arc::new(bitmaps));
        // Afterwards, so that none falls between this look and a listener's. That one waits: it may know better.
        bitmap.resize(self.size());
        match self.inner().handover() {
            Handover::Released(_) => bitmap.look_away(),
            // It was not there for what changed since the disk is in use.
            Handover::Held(_) | Handover::Never => bitmap.look_again(None),
        }
    }

    /// Ends a bitmap, and returns it. `None` if there is none of that name.
    pub fn stop(&self, name: &str) -> Option<Arc<DirtyBitmap>> {
        let _changing = self.layer().changing();
        let mut bitmaps = Bitmaps::clone(&self.bitmaps().load());
        let index = bitmaps.iter().position(|(found, _)| found == name)?;
        let (_, bitmap) = bitmaps.remove(index);
        self.bitmaps().store(Arc::new(bitmaps));
        Some(bitmap)
    }

    /// The bitmap of a name.
    pub fn bitmap(&self, name: &str) -> Option<Arc<DirtyBitmap>> {
        let bitmaps = self.bitmaps().load();
        let found = bitmaps.iter().find(|(found, _)| found == name);
        found.map(|(_, bitmap)| bitmap.clone())
    }

    /// The names of all bitmaps, in the order of their start.
    pub fn names(&self) -> Vec<String> {
        let bitmaps = self.bitmaps().load();
        bitmaps.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl Layer for Dirty {
    fn open_queue(
        &self,
        inner: Box<dyn IoQueue>,
        depth: u16,
        _: &Caps,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        let marker = DirtyMarker {
            bitmaps: self.bitmaps.clone(),
        };
        Ok(match (&self.file, &self.stored) {
            (None, None) => Box::new(ObservedQueue::new(marker, inner, depth)),
            (None, Some(stored)) => {
                let stored = stored.clone();
                let marker = StoredMarker { marker, stored };
                Box::new(ObservedQueue::new(marker, inner, depth))
            }
            (Some(file), _) => {
                let file = file.clone();
                let marker = PersistentMarker { marker, file };
                Box::new(ObservedQueue::new(marker, inner, depth))
            }
        })
    }

    fn activate<D: Disk + ?Sized>(&self, inner: &D) -> Result<(), DiskError> {
        inner.activate()?;
        if let Handover::Held(found) = inner.handover()
            && let Err(error) = self.tell(|bitmap| bitmap.look_again(found))
        {
            log::error!("{error}: after a restart everything may count as changed");
        }
        Ok(())
    }

    fn deactivate<D: Disk + ?Sized>(&self, inner: &D) -> Result<(), DiskError> {
        let Handover::Held(_) = inner.handover() else {
            return inner.deactivate();
        };
        // Before: a file that does not know of it must not outlive us. If it can't be told, it says at least that the
        // disk is one that is handed over.
        let told = self.tell(DirtyBitmap::look_away);
        let left = inner.deactivate();
        let noted = self.tell(|bitmap| match inner.handover() {
            Handover::Released(stamp) => {
                bitmap.look_away()?;
                // What could not be made stable is not what the stamp is of, though another disk than the one that
                // failed made it.
                let stamp = stamp.filter(|_| left.is_ok());
                stamp.map_or(Ok(()), |stamp| bitmap.note_left(stamp))
            }
            Handover::Held(_) | Handover::Never => bitmap.stay(),
        });
        if let Err(error) = told.and(noted) {
            // The disk is in order all the same.
            log::error!("{error}: after a restart everything may count as changed");
        }
        left
    }
}

#[cfg(test)]
mod tests;

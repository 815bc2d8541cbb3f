// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk on an image.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use virtio_blk_core::disk::{
    self, Caps, Disk, DiskError, DiskEvent, DiskListener, FoundBitmap, Handover, IoQueue,
    SECTOR_SIZE,
};

use crate::bitmaps::MarkingQueue;
use crate::error::OpenError;
use crate::files::{Access, Files};
use crate::image::Image;
use crate::open::{self, Opening};
use crate::options::Qcow2Options;
use crate::pool::Pool;
use crate::queue::Qcow2Queue;
use crate::sync::lock;

/// A qcow2 image as a disk.
///
/// Works on any number of queues at once. What has completed is in the file, so that it outlives the process; a flush
/// makes it stable. After a power cut, and after the end of the process without a drop of the disk and its queues, the
/// image is sound, but may count clusters as used that are free (at most 64 MiB, holes in the file, per such end:
/// `qemu-img check -r leaks` frees them).
///
/// A metadata write that fails fails its operation, and what the file had is written again before the next flush succeeds.
/// A failed flush freezes the image: every later change and flush fails and says why ([`Disk::flush_error`] too), and reads
/// still work. Open it anew then: what was flushed is there.
pub struct Qcow2Disk {
    shared: Arc<Shared>,
    /// As found at opening; the capacity in it is not kept up to date.
    caps: Caps,
}

/// What the disk shares with its queues, of which the last may have to let go of the image.
struct Shared {
    opening: Opening,
    /// It is in use only between [`Disk::activate`] and [`Disk::deactivate`].
    hands_over: bool,
    /// The image's file.
    disk: Arc<dyn Disk>,
    /// Held while the disk becomes active or inactive, or larger: that can take a while.
    turn: Mutex<()>,
    state: Mutex<State>,
    /// What could not be made stable when the disk was active before: it has to be opened anew.
    failed: OnceLock<Arc<Image>>,
}

#[derive(Default)]
struct State {
    /// None while the disk is not active.
    open: Option<Open>,
    /// Bytes that the guest sees, when it was open last.
    size: u64,
    /// The guest's data is in another file than the tables, as of then.
    external: bool,
}

/// An image that is in use.
struct Open {
    image: Arc<Image>,
    /// Started by the first queue, ended by the last.
    pool: Arc<Mutex<Weak<Pool>>>,
    /// Open queues.
    queues: usize,
    /// The last queue lets go of it.
    leaving: bool,
}

/// A queue's share of the image. The last one lets go of it, if the disk was deactivated before.
pub struct Leave(Arc<Shared>);

impl Drop for Leave {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let Some(open) = &mut state.open else {
            return;
        };
        open.queues -= 1;
        if open.queues > 0 || !open.leaving {
            return;
        }
        drop(state);
        let _turn = lock(&self.0.turn);
        let mut state = self.0.state();
        let is_left = |open: &mut Open| open.leaving && open.queues == 0;
        let open = state.open.take_if(is_left);
        drop(state);
        if let Some(open) = open
            && let Err(error) = self.0.close(open)
        {
            log::error!("a qcow2 image was let go of after its last queue: {error}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Makes an image stable, and lets go of what it lies on.
    fn close(&self, open: Open) -> Result<(), DiskError> {
        self.state().size = open.image.size();
        let stable = open.image.close().map_err(|error| {
            let changes = &open.image.base.changes;
            let error = changes.freeze("making it stable for the next user", error);
            let _ = self.failed.set(open.image.clone());
            error
        });
        // The files that it names come first: the next user of the image opens them at once.
        drop(open);
        stable.and(self.disk.deactivate())
    }

    fn inactive(&self) -> DiskError {
        DiskError::Config(format!(
            "{} is not in use: with lock=handover another server may have it, and it must be activated before its first queue \
             starts",
            self.opening.path.display()
        ))
    }

    /// The image, if the disk is active.
    fn image(&self) -> Result<Arc<Image>, DiskError> {
        let state = self.state();
        let open = state.open.as_ref().filter(|open| !open.leaving);
        open.map(|open| open.image.clone())
            .ok_or_else(|| self.inactive())
    }
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("path", &self.shared.opening.path)
            .finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// Opens and checks the image at `path` and, where that is allowed, the files that it names. `files` opens each.
    ///
    /// # Errors
    /// Each names the file and says what to change, see [`OpenError`].
    pub fn open(
        path: impl Into<PathBuf>,
        files: Arc<dyn Files>,
        options: Qcow2Options,
    ) -> Result<Self, OpenError> {
        Self::open_as(Opening {
            path: path.into(),
            files,
            options,
            chain: Arc::default(),
            listeners: Arc::default(),
        })
    }

    /// Opens an image that may stand in a chain.
    pub(crate) fn open_as(opening: Opening) -> Result<Self, OpenError> {
        opening.chain.add(&opening.path)?;
        let disk = opening.file(opening.access())?;
        if !opening.options.handover {
            let image = open::image(&disk, &opening)?;
            return Ok(Self::with_image(opening, disk, image, false));
        }
        // Somebody else has it now: it is looked at through another descriptor.
        let look = Opening {
            options: opening.options.inspect(true),
            ..opening.clone()
        };
        let (header, _) = open::header(&look.file(Access::Look)?, &look)?;
        let caps = open::caps(&header, &*disk, &opening)?;
        let state = State {
            open: None,
            size: caps.capacity_bytes(),
            external: header.external,
        };
        Ok(Self::new(opening, disk, caps, state, true))
    }

    /// Opens an image that another disk holds, from its first byte on. `path` is only a name, and where files are searched
    /// that it names. The image is read anew whenever the disk becomes active, as with [`Qcow2Options::handover`].
    ///
    /// # Errors
    /// As of [`Qcow2Disk::open`].
    pub fn over(
        disk: Arc<dyn Disk>,
        path: impl Into<PathBuf>,
        files: Arc<dyn Files>,
        options: Qcow2Options,
    ) -> Result<Self, OpenError> {
        let opening = Opening {
            path: path.into(),
            files,
            options,
            chain: Arc::default(),
            listeners: Arc::default(),
        };
        let image = open::image(&disk, &opening)?;
        Ok(Self::with_image(opening, disk, image, true))
    }

    fn with_image(opening: Opening, disk: Arc<dyn Disk>, image: Image, hands_over: bool) -> Self {
        let caps = image.caps();
        let state = State::of(Open::new(image));
        Self::new(opening, disk, caps, state, hands_over)
    }

    fn new(
        opening: Opening,
        disk: Arc<dyn Disk>,
        caps: Caps,
        state: State,
        hands_over: bool,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                opening,
                hands_over,
                disk,
                turn: Mutex::default(),
                state: Mutex::new(state),
                failed: OnceLock::new(),
            }),
            caps,
        }
    }

    /// The image's name.
    pub fn path(&self) -> &Path {
        &self.shared.opening.path
    }

    /// Persistent dirty bitmaps of the image that the first write makes inconsistent, as they can't be kept up to date: they
    /// are of an unknown kind, or larger than 256 MiB. QEMU ignores them from then on. 0 after that write, and for a
    /// read-only disk. See [`Qcow2Disk::bitmaps`] for those that are kept up to date.
    pub fn persistent_bitmaps(&self) -> u32 {
        self.shared.image().map_or(0, |image| image.bitmaps())
    }

    /// The image.
    ///
    /// # Errors
    /// The disk is not active.
    pub(crate) fn image(&self) -> Result<Arc<Image>, DiskError> {
        self.shared.image()
    }

    /// Whether the image is in use only between [`Disk::activate`] and [`Disk::deactivate`].
    pub(crate) fn hands_over(&self) -> bool {
        self.shared.hands_over
    }

    /// Whether a queue is open.
    pub(crate) fn is_used(&self) -> bool {
        let state = self.shared.state();
        state.open.as_ref().is_some_and(|open| open.queues > 0)
    }

    /// A queue whose changes are marked in no bitmap, and its image.
    ///
    /// # Errors
    /// The disk is not active; the host has no more threads or descriptors; the disks'.
    pub(crate) fn queue(&self, depth: u16) -> Result<(Qcow2Queue, Arc<Image>), DiskError> {
        let mut state = self.shared.state();
        let open = state.open.as_mut().filter(|open| !open.leaving);
        let open = open.ok_or_else(|| self.shared.inactive())?;
        open.queues += 1;
        let (image, current) = (open.image.clone(), open.pool.clone());
        drop(state);
        // First, so that it is dropped last whatever fails.
        let leave = Leave(self.shared.clone());
        // The threads before may still have to end.
        let mut current = lock(&current);
        let pool = match current.upgrade() {
            Some(pool) => pool,
            None => Arc::new(Pool::new(&image)?),
        };
        *current = Arc::downgrade(&pool);
        drop(current);
        let queue = Qcow2Queue::new(leave, image.clone(), pool, depth)?;
        Ok((queue, image))
    }

    /// Tells everybody who listens.
    pub(crate) fn tell(&self, event: DiskEvent) {
        self.shared.opening.listeners.tell(event);
    }

    /// Opens the image anew. Only its size may differ from what a driver was told.
    fn reopen(&self) -> Result<Open, DiskError> {
        let shared = &self.shared;
        let opening = Opening {
            // What it names is searched anew.
            chain: Arc::default(),
            ..shared.opening.clone()
        };
        let image = open::image(&shared.disk, &opening)?;
        let found = image.caps();
        let expected = Caps {
            capacity: found.capacity,
            ..self.caps
        };
        if found.capacity < self.caps().capacity || found != expected {
            return Err(DiskError::Config(format!(
                "{} is another image than before: it is smaller, or has other clusters. Start with it anew",
                opening.path.display()
            )));
        }
        Ok(Open::new(image))
    }
}

impl State {
    /// Of an image that is in use.
    fn of(open: Open) -> Self {
        Self {
            size: open.image.size(),
            external: open.image.base.external,
            open: Some(open),
        }
    }
}

impl Open {
    fn new(image: Image) -> Self {
        Self {
            image: Arc::new(image),
            pool: Arc::default(),
            queues: 0,
            leaving: false,
        }
    }
}

impl Disk for Qcow2Disk {
    fn caps(&self) -> Caps {
        let state = self.shared.state();
        let open = state.open.as_ref();
        let size = open.map_or(state.size, |open| open.image.size());
        Caps {
            capacity: size / SECTOR_SIZE,
            ..self.caps
        }
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let (queue, image) = self.queue(depth)?;
        let bitmaps = image.base.bitmaps.get();
        let marked = bitmaps.map_or_else(Vec::new, |bitmaps| bitmaps.enabled());
        Ok(match &marked[..] {
            [] => Box::new(queue),
            _ => Box::new(MarkingQueue::new(queue, marked)),
        })
    }

    fn flush_error(&self) -> Option<DiskError> {
        let state = self.shared.state();
        let image = state.open.as_ref().map(|open| open.image.clone());
        drop(state);
        let own = image.as_ref().or(self.shared.failed.get());
        own.and_then(|image| image.base.changes.error())
            .or_else(|| self.shared.disk.flush_error())
    }

    /// With [`Qcow2Options::handover`], and over another disk, reads the image anew.
    fn activate(&self) -> Result<(), DiskError> {
        let shared = &self.shared;
        let _turn = lock(&shared.turn);
        if let Some(failed) = shared.failed.get() {
            failed.base.changes.check()?;
        }
        shared.disk.activate()?;
        let mut state = shared.state();
        if let Some(open) = &mut state.open {
            open.leaving = false;
            return Ok(());
        }
        drop(state);
        match self.reopen() {
            Ok(open) => {
                let now = State::of(open);
                let size = now.size;
                let old = std::mem::replace(&mut *shared.state(), now).size;
                if old != size {
                    let capacity = size / SECTOR_SIZE;
                    let event = DiskEvent::Resized { capacity };
                    shared.opening.listeners.tell(event);
                }
                Ok(())
            }
            Err(error) => {
                // What went wrong first is the answer.
                let _ = shared.disk.deactivate();
                Err(error)
            }
        }
    }

    /// Where [`Disk::activate`] reads the image anew, makes everything stable and forgets the tables. If a queue is still
    /// open (that of a flush that somebody asked for), the last one does that when it is dropped.
    fn deactivate(&self) -> Result<(), DiskError> {
        let shared = &self.shared;
        let _turn = lock(&shared.turn);
        if !shared.hands_over {
            return shared.disk.deactivate();
        }
        let mut state = shared.state();
        let Some(open) = &mut state.open else {
            return Ok(());
        };
        open.leaving = true;
        if open.queues > 0 {
            let image = open.image.clone();
            drop(state);
            return image.make_stable();
        }
        let open = state.open.take();
        drop(state);
        open.map_or(Ok(()), |open| shared.close(open))
    }

    fn handover(&self) -> Handover {
        let shared = &self.shared;
        let is_active = shared.image().is_ok();
        let external = shared.state().external;
        match shared.disk.handover() {
            // The last queue lets go of it, when nobody asks for a stamp any more.
            Handover::Held(_) if shared.hands_over && !is_active => Handover::Released(None),
            // Of the tables' file alone, a stamp says nothing.
            Handover::Held(_) if external => Handover::Held(None),
            Handover::Released(_) if external => Handover::Released(None),
            other => other,
        }
    }

    fn refresh(&self) -> Result<(), DiskError> {
        // Nobody else changes the image, and its file's size means nothing.
        Ok(())
    }

    /// Refused, too, for a size that the image can't have.
    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let _turn = lock(&self.shared.turn);
        self.grow(bytes)
    }

    /// Without [`Qcow2Options::handover`], and if the image promises that its bitmaps are up to date. One that was not closed
    /// is begun anew with everything marked, which is true, and so becomes one that can be used.
    fn stored_bitmap(&self, name: &str) -> Result<Option<FoundBitmap>, DiskError> {
        self.find_bitmap(name)
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<disk::Extent>, DiskError> {
        self.allocation(range, most)
    }

    fn listen(&self, listener: DiskListener) {
        self.shared.opening.listeners.add(listener);
    }
}

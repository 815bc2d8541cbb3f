// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk on an image.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use virtio_blk_core::disk::{Caps, Disk, DiskError, DiskListener, IoQueue, SECTOR_SIZE};

use crate::error::OpenError;
use crate::files::{Access, Files};
use crate::image::Image;
use crate::open::{self, Chain, Opening};
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
/// go on. Open it anew then: what was flushed is there.
pub struct Qcow2Disk {
    path: PathBuf,
    files: Arc<dyn Files>,
    options: Qcow2Options,
    /// The image's file.
    disk: Arc<dyn Disk>,
    /// As found at opening; the capacity in it is not kept up to date.
    caps: Caps,
    /// Held while the disk becomes active or inactive, or larger: that can take a while.
    turn: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None while the disk is not active.
    open: Option<Open>,
    /// Bytes that the guest sees, when it was open last.
    size: u64,
}

/// An image that is in use.
struct Open {
    image: Arc<Image>,
    /// Started by the first queue, ended by the last.
    pool: Weak<Pool>,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("path", &self.path)
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
        let path = path.into();
        Self::open_in(&path, files, options, Arc::default())
    }

    /// Opens an image that stands in a chain.
    pub(crate) fn open_in(
        path: &Path,
        files: Arc<dyn Files>,
        options: Qcow2Options,
        chain: Arc<Chain>,
    ) -> Result<Self, OpenError> {
        chain.add(path)?;
        let access = match options {
            Qcow2Options { inspect: true, .. } => Access::Look,
            Qcow2Options {
                read_only: true, ..
            } => Access::Read,
            _ => Access::Write,
        };
        let disk = files.open(path, access);
        let disk = disk.map_err(|error| OpenError::file(path, error))?;
        Self::on(path, disk, files, options, chain)
    }

    /// Opens an image that another disk holds, from its first byte on. `path` is only a name, and where files are searched
    /// that it names.
    ///
    /// # Errors
    /// As of [`Qcow2Disk::open`].
    pub fn over(
        disk: Arc<dyn Disk>,
        path: impl Into<PathBuf>,
        files: Arc<dyn Files>,
        options: Qcow2Options,
    ) -> Result<Self, OpenError> {
        Self::on(&path.into(), disk, files, options, Arc::default())
    }

    fn on(
        path: &Path,
        disk: Arc<dyn Disk>,
        files: Arc<dyn Files>,
        options: Qcow2Options,
        chain: Arc<Chain>,
    ) -> Result<Self, OpenError> {
        let opening = Opening {
            path,
            files: &files,
            options,
            chain: &chain,
        };
        let (caps, open) = if options.handover {
            // Somebody else has it now: it is looked at through another descriptor.
            let look = files.open(path, Access::Look);
            let look = look.map_err(|error| OpenError::file(path, error))?;
            let looking = Opening {
                options: options.inspect(true),
                ..opening
            };
            let (header, _) = open::header(&look, &looking)?;
            (open::caps(&header, &*disk, &opening)?, None)
        } else {
            let image = open::image(&disk, &opening)?;
            (image.caps(), Some(Open::new(image)))
        };
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                open,
                size: caps.capacity_bytes(),
            }),
            files,
            options,
            disk,
            caps,
            turn: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The image's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Persistent dirty bitmaps of the image that the first write makes inconsistent: nobody keeps them up to date here,
    /// and QEMU ignores them from then on. 0 after that write, and for a read-only disk.
    pub fn persistent_bitmaps(&self) -> u32 {
        self.state()
            .open
            .as_ref()
            .map_or(0, |open| open.image.bitmaps())
    }

    fn inactive(&self) -> DiskError {
        DiskError::Config(format!(
            "{} is not in use: it must be activated before its first queue starts",
            self.path.display()
        ))
    }

    /// Opens the image anew. Only its size may differ from what a driver was told.
    fn reopen(&self) -> Result<Open, DiskError> {
        // What it names is searched anew.
        let chain = Arc::default();
        let opening = Opening {
            path: &self.path,
            files: &self.files,
            options: self.options,
            chain: &chain,
        };
        chain.add(&self.path)?;
        let image = open::image(&self.disk, &opening)?;
        let found = image.caps();
        let expected = Caps {
            capacity: found.capacity,
            ..self.caps
        };
        if found.capacity < self.caps().capacity || found != expected {
            return Err(DiskError::Config(format!(
                "{} is another image than before: it is smaller, or has other clusters. Start with it anew",
                self.path.display()
            )));
        }
        Ok(Open::new(image))
    }
}

impl Open {
    fn new(image: Image) -> Self {
        Self {
            image: Arc::new(image),
            pool: Weak::new(),
        }
    }

    /// The threads.
    fn pool(&mut self) -> Result<Arc<Pool>, DiskError> {
        if let Some(pool) = self.pool.upgrade() {
            return Ok(pool);
        }
        let pool = Arc::new(Pool::new(&self.image)?);
        self.pool = Arc::downgrade(&pool);
        Ok(pool)
    }
}

impl Disk for Qcow2Disk {
    fn caps(&self) -> Caps {
        let state = self.state();
        let size = state
            .open
            .as_ref()
            .map_or(state.size, |open| open.image.size());
        Caps {
            capacity: size / SECTOR_SIZE,
            ..self.caps
        }
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let mut state = self.state();
        let open = state.open.as_mut().ok_or_else(|| self.inactive())?;
        let (image, pool) = (open.image.clone(), open.pool()?);
        drop(state);
        Ok(Box::new(Qcow2Queue::new(image, pool, depth)?))
    }

    fn flush_error(&self) -> Option<DiskError> {
        let frozen = |open: &Open| open.image.base.changes.error();
        let own = self.state().open.as_ref().and_then(frozen);
        own.or_else(|| self.disk.flush_error())
    }

    /// With [`Qcow2Options::handover`], reads the image anew.
    fn activate(&self) -> Result<(), DiskError> {
        let _turn = lock(&self.turn);
        self.disk.activate()?;
        if self.state().open.is_none() {
            match self.reopen() {
                Ok(open) => {
                    let mut state = self.state();
                    state.size = open.image.size();
                    state.open = Some(open);
                }
                Err(error) => {
                    // What went wrong first is the answer.
                    let _ = self.disk.deactivate();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// With [`Qcow2Options::handover`], makes everything stable and forgets the tables. Refused while a queue is open.
    fn deactivate(&self) -> Result<(), DiskError> {
        let _turn = lock(&self.turn);
        if !self.options.handover {
            return self.disk.deactivate();
        }
        let mut state = self.state();
        if (state.open.as_ref()).is_some_and(|open| Arc::strong_count(&open.image) > 1) {
            return Err(DiskError::Config(format!(
                "{} can't be let go of: a queue of it is open",
                self.path.display()
            )));
        }
        let open = state.open.take();
        if let Some(open) = &open {
            state.size = open.image.size();
        }
        drop(state);
        let stable = open.map_or(Ok(()), |open| open.image.close());
        stable.and(self.disk.deactivate())
    }

    fn refresh(&self) -> Result<(), DiskError> {
        // Nobody else changes the image, and its file's size means nothing.
        Ok(())
    }

    fn listen(&self, listener: DiskListener) {
        // A change of the file's size is none of the disk's.
        let _ = listener;
    }
}

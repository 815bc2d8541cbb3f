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
mod control;
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
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use virtio_blk_core::disk::{
    Alignments, Caps, Disk, DiskError, DiskListener, EraseLimits, Handover, IoQueue, SECTOR_SIZE,
    Topology, ZeroLimits,
};

use crate::Lock;
use control::Control;
pub use error::OpenError;
use frozen::Frozen;
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
/// The first failure in reading, writing or syncing tables freezes the image: every later change and flush fails and
/// says why ([`Disk::flush_error`] too, and listeners get [`DiskEvent::MediaError`]), nothing more is written, and reads
/// go on. Open it anew then: what was flushed is there. A write to a cluster that nothing refers to yet may fail, for
/// want of space for example, without that.
///
/// A panic of the library is caught and freezes the image; then reads fail as well.
///
/// [`DiskEvent::MediaError`]: virtio_blk_core::disk::DiskEvent::MediaError
pub struct Qcow2Disk {
    options: Qcow2Options,
    /// As found at opening; the capacity in it is not kept up to date.
    caps: Caps,
    control: Arc<Control>,
    medium: Arc<Medium>,
}

/// The image, shared with the queues: the last of them lets go of it, if it is there longer than the disk is active.
struct Medium {
    /// Held while the disk becomes active or inactive, or larger: that can take as long as the host's storage does.
    turn: Mutex<()>,
    /// None while the disk is not active. Nobody waits for storage while holding it.
    open: Mutex<Option<Open>>,
    /// What the image lies on, if it is no file.
    below: Option<Arc<dyn Disk>>,
    /// What ended all changes of the image when the disk was active before: it has to be opened anew.
    failed: OnceLock<Arc<Frozen>>,
}

/// An image that is in use.
struct Open {
    /// Shared with the queues, their threads, and who has the turn.
    image: Arc<Image>,
    /// Started by the first queue, ended by the last.
    pool: Weak<Pool>,
    /// The disk is not active any more, but a queue is open.
    leaving: bool,
}

impl Medium {
    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image, if it is to be left and nobody has it.
    fn left(&self) -> Option<Arc<Image>> {
        let state = self.state();
        let is_left = |open: &&Open| open.leaving && Arc::strong_count(&open.image) == 1;
        state
            .as_ref()
            .filter(is_left)
            .map(|open| open.image.clone())
    }

    /// Closes an image that is to be left, and that nobody else has. `None`: somebody has. As it holds the turn, the
    /// caller must not hold the state.
    fn close(&self, _turn: &MutexGuard<'_, ()>) -> Option<Result<(), DiskError>> {
        let image = self.left()?;
        // Until that has ended the state tells who asks of errors, and that the image is not let go of.
        let closed = image.finish();
        if closed.is_err() || image.error().is_some() {
            let _ = self.failed.set(image.frozen());
        }
        drop(image);
        let open = self.state().take();
        // Closes the files, which may take a while, too.
        drop(open);
        let below = self.below.as_ref().map_or(Ok(()), |disk| disk.deactivate());
        Some(closed.and(below))
    }
}

/// A queue's share of the medium. To be dropped after all else that the queue has, and by nobody who holds the turn or
/// the state.
struct Leave(Arc<Medium>);

impl Drop for Leave {
    fn drop(&mut self) {
        // Only the last one waits for its turn.
        if self.0.left().is_none() {
            return;
        }
        if let Some(Err(error)) = self.0.close(&self.0.turn()) {
            log::error!("a qcow2 image was let go of after its last queue: {error}");
        }
    }
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("path", &self.options.path)
            .finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// Opens, locks and checks the image and, where that is allowed, its backing files.
    ///
    /// # Errors
    /// Each names the file and says what to change, see [`OpenError`].
    pub fn open(options: &Qcow2Options) -> Result<Self, OpenError> {
        if options.lock == Lock::Handover && !options.inspect {
            let header = chain::header(options)?;
            return Self::new(&header, None, None, options);
        }
        let opened = open(None, options)?;
        let header = opened.header.clone();
        Self::new(&header, Some(opened), None, options)
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
        if u64::from(caps.align.guest_block) != SECTOR_SIZE
            || caps.read_only && options.is_writable()
        {
            return Err(OpenError::unsupported(
                path,
                "a disk below it that is read-only or has blocks of more than 512 bytes",
            ));
        }
        let opened = open(Some(&disk), options)?;
        let header = opened.header.clone();
        Self::new(&header, Some(opened), Some(disk), options)
    }

    fn new(
        header: &header::Header,
        opened: Option<chain::Opened>,
        below: Option<Arc<dyn Disk>>,
        options: &Qcow2Options,
    ) -> Result<Self, OpenError> {
        let caps = caps(header, options.read_only);
        caps.validate()
            .map_err(|error| OpenError::damaged(options.path(), error.to_string()))?;
        let control = Arc::new(Control::new(header.size));
        let open = opened.map(|opened| Open::new(opened, &control, options));
        Ok(Self {
            options: options.clone(),
            caps,
            control,
            medium: Arc::new(Medium {
                turn: Mutex::default(),
                open: Mutex::new(open),
                below,
                failed: OnceLock::new(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        self.medium.state()
    }

    /// Whether the image is closed while no queue is open, and read anew before the next.
    fn hands_over(&self) -> bool {
        let by_lock = self.options.lock == Lock::Handover && !self.options.inspect;
        self.medium.below.is_some() || by_lock
    }

    /// Opens the image anew. Only its size may differ from what a driver was told.
    fn reopen(&self) -> Result<Open, DiskError> {
        let opened = open(self.medium.below.as_ref(), &self.options)?;
        let found = caps(&opened.header, self.options.read_only);
        let grown = found.capacity >= self.caps().capacity;
        let expected = Caps {
            capacity: found.capacity,
            ..self.caps
        };
        if !grown || found != expected {
            return Err(DiskError::Config(format!(
                "{} is another image than before: it is smaller, or has other clusters. Start with it anew",
                self.options.path.display()
            )));
        }
        let size = opened.header.size;
        let open = Open::new(opened, &self.control, &self.options);
        self.control.set_capacity(size);
        Ok(open)
    }

    fn inactive(&self) -> DiskError {
        DiskError::Config(format!(
            "{} is not in use: it must be activated before its first queue starts",
            self.options.path.display()
        ))
    }

    /// The image.
    pub fn path(&self) -> &Path {
        self.options.path()
    }

    /// Persistent dirty bitmaps of the image that the first write makes inconsistent: nobody keeps them up to date
    /// here, and QEMU ignores them from then on. 0 after that write, and for a read-only disk.
    pub fn persistent_bitmaps(&self) -> u32 {
        self.state().as_ref().map_or(0, |open| open.image.bitmaps())
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

/// Opens an image in the file that the options name, or on another disk.
fn open(below: Option<&Arc<dyn Disk>>, options: &Qcow2Options) -> Result<chain::Opened, OpenError> {
    let path = options.path();
    let run = || match below {
        None => chain::open(options),
        Some(disk) => {
            let host = DiskHost::new(disk.clone()).map_err(|error| OpenError::Library {
                path: path.to_owned(),
                source: std::io::Error::other(error),
            })?;
            chain::open_on(Arc::new(host), options)
        }
    };
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(OpenError::damaged(path, "the library failed on it")))
}

impl Open {
    fn new(opened: chain::Opened, control: &Arc<Control>, options: &Qcow2Options) -> Self {
        let image = Image::new(opened, control.clone(), options.discard);
        Self {
            image: Arc::new(image),
            pool: Weak::new(),
            leaving: false,
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
        Caps {
            capacity: self.control.capacity() / SECTOR_SIZE,
            ..self.caps
        }
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        // First, so that it is dropped last whatever fails, and without the state's lock.
        let leave = Leave(self.medium.clone());
        let (image, pool) = {
            let mut state = self.state();
            let open = state.as_mut().filter(|open| !open.leaving);
            let open = open.ok_or_else(|| self.inactive())?;
            (open.image.clone(), open.pool()?)
        };
        let inner = image.host.open_queue(depth)?;
        let queue = Qcow2Queue::new(leave, image, pool, inner, depth)?;
        Ok(Box::new(queue))
    }

    fn flush_error(&self) -> Option<DiskError> {
        match &*self.state() {
            Some(open) => open.image.error(),
            None => self.medium.failed.get()?.error(),
        }
    }

    /// With [`Lock::Handover`], and over another disk, opens the image anew; waits up to 5 seconds for the lock of each
    /// of its files.
    fn activate(&self) -> Result<(), DiskError> {
        let _turn = self.medium.turn();
        if let Some(failed) = self.medium.failed.get() {
            failed.check()?;
        }
        if let Some(below) = &self.medium.below {
            below.activate()?;
        }
        let mut state = self.state();
        match &mut *state {
            Some(open) => open.leaving = false,
            None => {
                drop(state);
                let opened = self.reopen();
                if let (Err(_), Some(below)) = (&opened, &self.medium.below) {
                    // What went wrong first is the answer.
                    let _ = below.deactivate();
                }
                *self.state() = Some(opened?);
            }
        }
        Ok(())
    }

    /// Where [`Disk::activate`] opens the image anew, makes everything stable and closes it. If a queue is still open
    /// (that of a flush that somebody asked for), the last one closes it when it is dropped.
    fn deactivate(&self) -> Result<(), DiskError> {
        let turn = self.medium.turn();
        if !self.hands_over() {
            return Ok(());
        }
        match &mut *self.state() {
            Some(open) => open.leaving = true,
            None => return Ok(()),
        }
        if let Some(closed) = self.medium.close(&turn) {
            return closed;
        }
        let image = self.state().as_ref().map(|open| open.image.clone());
        let stable = image.map_or(Ok(()), |image| image.flush());
        // The last queue may have gone meanwhile, and left that to us.
        let closed = self.medium.close(&turn);
        stable.and(closed.unwrap_or(Ok(())))
    }

    fn handover(&self) -> Handover {
        if !self.hands_over() {
            return Handover::Never;
        }
        let state = self.state();
        let is_active = state.as_ref().is_some_and(|open| !open.leaving);
        let is_closed = state.is_none();
        drop(state);
        match &self.medium.below {
            Some(below) if is_active => below.handover(),
            Some(below) if is_closed => match below.handover() {
                // It is about to let go, too.
                Handover::Held(_) => Handover::Released(None),
                other => other,
            },
            _ if is_active => Handover::Held(None),
            _ => Handover::Released(None),
        }
    }

    /// Makes the guest's disk larger, stable. What is added reads as zeroes. Refused, too, while the disk is not active,
    /// and if the image's backing file reaches further than the image.
    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let _turn = self.medium.turn();
        let state = self.state();
        let open = state.as_ref().filter(|open| !open.leaving);
        let image = open.map(|open| open.image.clone());
        drop(state);
        image.ok_or_else(|| self.inactive())?.grow(bytes)
    }

    fn listen(&self, listener: DiskListener) {
        self.control.listeners.add(listener);
    }
}

#[cfg(test)]
mod tests;

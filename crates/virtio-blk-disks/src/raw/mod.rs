// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A raw image: a regular file, or a block device of the host, byte for byte.

mod bounce;
mod durable;
mod engine;
mod error;
mod extents;
mod host_file;
mod job;
mod lock;
mod medium;
mod options;
mod page_cache;
mod probe;
mod stamp;
pub(crate) mod sys;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::disk::{
    Caps, ContentStamp, Disk, DiskError, DiskListener, Extent, Handover, IoQueue,
};

use engine::Plan;
pub use error::OpenError;
pub use lock::{Holder, Lock};
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
    use_lock: Option<UseLock>,
}

/// A lock that is held while the disk is in use.
#[derive(Debug)]
struct UseLock {
    writer: bool,
    /// Held while the lock is taken or let go of, or the file made larger: that can take as long as another owner or the
    /// host's storage does, and listeners are told meanwhile.
    turn: Mutex<()>,
    /// Held for a look alone: listeners ask for it, whatever else they hold.
    state: Mutex<Use>,
}

/// Whether the lock is held.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// With the content as it was found.
    Held(Option<ContentStamp>),
    /// The same, but it is about to be let go of: no queue is opened.
    Leaving(Option<ContentStamp>),
    /// With the content as it was left.
    Released(Option<ContentStamp>),
}

/// Whether disks of this process can use io_uring.
///
/// # Errors
/// Why not, in words that say what to change.
pub fn io_uring_support() -> Result<(), String> {
    engine::available()
}

impl UseLock {
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Use {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, now: Use) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn is_held(&self) -> bool {
        matches!(self.get(), Use::Held(_))
    }
}

impl RawDisk {
    /// Opens, locks and examines the file.
    ///
    /// # Errors
    /// Each names the file and says what to change, see [`OpenError`].
    pub fn open(options: &RawOptions) -> Result<Self, OpenError> {
        let medium = Arc::new(probe::open(options)?);
        let plan = Plan::choose(options.engine, &medium)?;
        let by_use = options.lock == Lock::Handover && !options.inspect;
        Ok(Self {
            medium,
            plan,
            use_lock: by_use.then(|| UseLock {
                writer: !options.read_only,
                turn: Mutex::default(),
                state: Mutex::new(Use::Released(None)),
            }),
        })
    }

    /// How this disk makes its I/O; after [`Engine::Auto`], what was chosen:
    ///
    /// - [`Engine::Sync`] where io_uring is not available, and for files in memory (tmpfs);
    /// - [`Engine::IoUring`] for direct I/O;
    /// - [`Engine::Auto`] itself stands for the mixture used through the page cache: what the page
    ///   cache can do at once is done inside `execute` by a system call, which costs less than a
    ///   round through io_uring; what has to wait for the device goes through io_uring.
    pub fn engine(&self) -> Engine {
        self.plan.engine()
    }

    /// Why some queue of this disk makes system calls where [`Engine::Auto`] would have used io_uring: it was not
    /// available when the disk was opened, or could not be had for that queue. `None`: no reason to do without.
    pub fn engine_note(&self) -> Option<&str> {
        self.medium.engine_note()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.medium.path
    }

    fn inactive(&self) -> DiskError {
        DiskError::Config(format!(
            "{} is not in use: with lock=handover another server may have it, and it must be activated before its first queue \
             starts",
            self.medium.path.display()
        ))
    }
}

impl Disk for RawDisk {
    fn caps(&self) -> Caps {
        self.medium.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        if let Some(use_lock) = &self.use_lock
            && !use_lock.is_held()
        {
            return Err(self.inactive());
        }
        self.plan.open_queue(&self.medium, depth)
    }

    fn flush_error(&self) -> Option<DiskError> {
        self.medium.durability.check().err()
    }

    fn refresh(&self) -> Result<(), DiskError> {
        // While others may have the file, it is looked at and no more.
        let is_ours = (self.use_lock.as_ref()).is_none_or(UseLock::is_held);
        Ok(self.medium.refresh(is_ours)?)
    }

    /// Takes the lock of [`Lock::Handover`], waiting up to 5 seconds for who holds it, and looks at the size again.
    fn activate(&self) -> Result<(), DiskError> {
        let Some(use_lock) = &self.use_lock else {
            return Ok(());
        };
        let _turn = use_lock.turn();
        if use_lock.is_held() {
            return Ok(());
        }
        let (file, path) = (self.medium.file.file(), &self.medium.path);
        lock::lock(file, use_lock.writer, lock::HANDOVER_PATIENCE, path)?;
        let found = stamp::of(file);
        if let Err(error) = self.medium.refresh(true) {
            lock::unlock(file);
            return Err(error.into());
        }
        use_lock.set(Use::Held(found));
        Ok(())
    }

    /// Makes everything stable that was written, for who comes next may be another host, and lets go of the lock of
    /// [`Lock::Handover`].
    fn deactivate(&self) -> Result<(), DiskError> {
        let Some(use_lock) = &self.use_lock else {
            return Ok(());
        };
        let _turn = use_lock.turn();
        let Use::Held(found) = use_lock.get() else {
            return Ok(());
        };
        use_lock.set(Use::Leaving(found));
        let outcome = if use_lock.writer {
            self.medium.durability.sync(&self.medium.file)
        } else {
            0
        };
        let stable = match outcome {
            0 => Ok(()),
            errno => Err(DiskError::from_errno(-errno)),
        };
        let file = self.medium.file.file();
        // What was lost may have been there when somebody looked.
        let left = stable.as_ref().ok().and_then(|()| stamp::settled(file));
        use_lock.set(Use::Released(left));
        lock::unlock(file);
        stable
    }

    fn handover(&self) -> Handover {
        match self.use_lock.as_ref().map(UseLock::get) {
            None => Handover::Never,
            Some(Use::Held(found) | Use::Leaving(found)) => Handover::Held(found),
            Some(Use::Released(left)) => Handover::Released(left),
        }
    }

    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        // The owner of the lock may change the size meanwhile. It is not let go of before the end.
        let _turn = self.use_lock.as_ref().map(UseLock::turn);
        if (self.use_lock.as_ref()).is_some_and(|use_lock| !use_lock.is_held()) {
            return Err(self.inactive());
        }
        self.medium.resize(bytes)
    }

    fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<Extent>, DiskError> {
        // While others may have the file, what they write is not known to its page cache here.
        if (self.use_lock.as_ref()).is_some_and(|use_lock| !use_lock.is_held()) {
            return Err(self.inactive());
        }
        extents::extents(&self.medium, range, most)
    }

    fn listen(&self, listener: DiskListener) {
        self.medium.listeners.add(listener);
    }
}

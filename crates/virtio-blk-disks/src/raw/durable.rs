// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of a medium's writes is stable, and the errors that must not get lost.
//!
//! When Linux fails to write a page back, it drops it, and says so once to each open file description: the next
//! `fdatasync` of that one fails, and the one after it succeeds (`file_check_and_advance_wb_err` in the kernel's
//! `mm/filemap.c`). So two flushes that share a description could use up each other's error. Therefore
//!
//! - each queue flushes through a description of its own, one flush at a time;
//! - the medium has one more, for flushes that belong to no queue, and as a witness: it tells what was reported to
//!   other descriptions before a queue got its own;
//! - where a file can't be opened once more (no `/proc`, no permission), all flushes take turns on the only one;
//! - after a failure every flush fails, as long as the medium is open: what was dropped can't become stable.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use virtio_blk_core::disk::DiskError;

use super::host_file::HostFile;

/// The state of a medium's flushes.
#[derive(Debug)]
pub(super) struct Durability {
    /// The `errno` of the first failed flush; 0: none.
    lost: AtomicI32,
    /// The medium's own description, if there could be one. Held for the length of a flush, and until its failure
    /// is noted.
    own: Mutex<Option<HostFile>>,
    /// There is such a description.
    separate: bool,
}

impl Durability {
    /// For a medium that was just opened, and that is written to.
    pub fn new(file: &HostFile) -> Self {
        let own = file.reopen().ok();
        Self {
            lost: AtomicI32::new(0),
            separate: own.is_some(),
            own: Mutex::new(own),
        }
    }

    /// For a medium that is not written to.
    pub const fn read_only() -> Self {
        Self {
            lost: AtomicI32::new(0),
            separate: false,
            own: Mutex::new(None),
        }
    }

    /// Whether flushes don't use the description that data goes through, so that a call on that one may use up an
    /// error.
    pub const fn is_separate(&self) -> bool {
        self.separate
    }

    /// Remembers a failed flush. The first one counts.
    pub fn note(&self, errno: i32) {
        let _ = self
            .lost
            .compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether what a flush made stable is stable.
    ///
    /// # Errors
    /// `FlushLost`: an earlier flush failed.
    #[inline]
    pub fn check(&self) -> Result<(), DiskError> {
        match self.lost.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(DiskError::FlushLost { errno }),
        }
    }

    /// A description for the flushes of another queue. `None`: it can't be had, use [`Durability::sync`].
    pub fn open(&self, file: &HostFile) -> Option<HostFile> {
        if !self.separate {
            return None;
        }
        let new = file.reopen().ok()?;
        // A failure that is on its way to another queue, and that the new description is therefore not told of.
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = &*own {
            match own.write_back_error() {
                0 => {}
                failure => self.note(-failure),
            }
        }
        drop(own);
        Some(new)
    }

    /// Makes everything stable that was written to `file`, by a call that waits: 0 or a negated `errno`. Calls
    /// take turns.
    pub fn sync(&self, file: &HostFile) -> i32 {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(DiskError::FlushLost { errno }) = self.check() {
            return -errno;
        }
        loop {
            match own.as_ref().unwrap_or(file).fdatasync() {
                failure if failure == -libc::EINTR => {}
                0 => return 0,
                failure => {
                    self.note(-failure);
                    return failure;
                }
            }
        }
    }
}

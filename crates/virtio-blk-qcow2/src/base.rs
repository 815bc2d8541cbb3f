// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every part of an open image needs: the medium, the sizes, the header, and whether changes are allowed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use virtio_blk_core::disk::DiskError;

use crate::bitmaps::Bitmaps;
use crate::format::{Geometry, Header, autoclear, field, put};
use crate::freeze::Changes;
use crate::lane::Lane;
use crate::listeners::Listeners;
use crate::medium::{Medium, MetaIo, Put};
use crate::sync::lock;

/// Bytes of the file's beginning in which all fields are that ever change.
pub const HEAD: usize = 512;
/// Most faults of an image that are told in the log.
const MAX_TOLD: u64 = 10;

/// What every part of an open image needs.
#[derive(Debug)]
pub struct Base {
    /// The file.
    pub medium: Arc<Medium>,
    /// Sizes.
    pub geometry: Geometry,
    /// 2 or 3.
    pub version: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Whether changes are allowed.
    pub changes: Changes,
    /// Guest data is in another file.
    pub external: bool,
    /// The beginning of the header as it is in the file.
    head: Mutex<Vec<u8>>,
    /// Held while the image is prepared for changes.
    beginning: Mutex<()>,
    /// Persistent bitmaps, if they are kept up to date, or the image is read-only.
    pub bitmaps: OnceLock<Bitmaps>,
    /// Autoclear bits that survive a change by us.
    autoclear: u64,
    /// Faults that were found.
    told: AtomicU64,
    /// Where no data may be: what was metadata when the image was opened. Sorted first clusters and their number.
    tables: Vec<(u64, u64)>,
}

impl Base {
    /// `head` is the beginning of the file, `tables` the places of its metadata in clusters, sorted.
    pub fn new(
        medium: Arc<Medium>,
        header: &Header,
        head: Vec<u8>,
        tables: Vec<(u64, u64)>,
        listeners: Arc<Listeners>,
    ) -> Self {
        Self {
            medium,
            geometry: header.geometry,
            version: header.version,
            snapshots: header.snapshots.0,
            changes: Changes::new(listeners),
            external: header.external,
            head: Mutex::new(head),
            beginning: Mutex::default(),
            bitmaps: OnceLock::new(),
            autoclear: header.kept_autoclear(),
            told: AtomicU64::new(0),
            tables,
        }
    }

    /// Whether a cluster of the file was metadata when the image was opened.
    pub fn is_table(&self, cluster: u64) -> bool {
        let after = self.tables.partition_point(|(first, _)| *first <= cluster);
        after
            .checked_sub(1)
            .and_then(|index| self.tables.get(index))
            .is_some_and(|(first, count)| cluster - first < *count)
    }

    /// Writes metadata, unless the image is frozen: see [`Medium::write_meta`]. Failures in too many places freeze it.
    pub fn write_meta(&self, io: &mut dyn MetaIo, offset: u64, new: &[u8], old: &[u8]) -> Put {
        if let Err(error) = self.changes.check() {
            return Put::Failed(error);
        }
        match self.medium.write_meta(io, offset, new, old) {
            Put::Failed(error) if self.medium.is_past_hope() => {
                Put::Failed(self.changes.freeze("too many writes of tables", error))
            }
            put => put,
        }
    }

    /// Makes everything stable that was written, metadata first of all. A failure freezes the image, unless it is one
    /// of writing metadata again, which can be tried again.
    ///
    /// # Errors
    /// The image is frozen; the disk's.
    pub fn barrier(&self, lane: &mut Lane) -> Result<(), DiskError> {
        self.changes.check()?;
        self.medium.settle(lane)?;
        lane.flush()
            .map_err(|error| self.changes.freeze("a flush of its file", error))
    }

    /// Changes the header. A failure freezes the image: what the file's header says is not known.
    ///
    /// # Errors
    /// The disk's.
    pub fn update_header(
        &self,
        lane: &mut Lane,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        let mut head = lock(&self.head);
        let mut new = head.clone();
        change(&mut new);
        if *head == new {
            return Ok(());
        }
        match self.write_meta(lane, 0, &new, &head) {
            Put::Done => {
                *head = new;
                Ok(())
            }
            Put::Failed(error) => Err(self.changes.freeze("a write of its header", error)),
            Put::Later => Err(DiskError::from_errno(EAGAIN)),
        }
    }

    /// Prepares the image for the first change: features that the change makes stale are cleared, bitmaps are marked as in
    /// use, and stably so.
    ///
    /// # Errors
    /// The image is frozen; the disk's, and nothing is changed.
    pub fn begin_changes(&self, lane: &mut Lane) -> Result<(), DiskError> {
        self.changes.check()?;
        if self.changes.allowed() {
            return Ok(());
        }
        let _alone = lock(&self.beginning);
        let bitmaps = self.bitmaps.get();
        let stays = self.autoclear | bitmaps.map_or(0, |_| autoclear::BITMAPS);
        let now = crate::format::be64(&lock(&self.head), field::AUTOCLEAR);
        let stale = self.version >= 3 && now & !stays != 0;
        if stale {
            self.update_header(lane, |head| {
                put(head, field::AUTOCLEAR, &(now & stays).to_be_bytes());
            })?;
        }
        let begun = bitmaps.map_or(Ok(false), |bitmaps| bitmaps.begin(lane, self))?;
        if stale || begun {
            self.barrier(lane)?;
        }
        self.changes.allow();
        Ok(())
    }

    /// The error of an entry of a table that is not possible. The first few are told in the log: a guest can meet them as
    /// often as it likes.
    pub fn damaged(&self, what: &str) -> DiskError {
        let told = self.told.fetch_add(1, Ordering::Relaxed);
        if told < MAX_TOLD {
            log::error!("a qcow2 image is damaged: {what}. `qemu-img check` says more");
        }
        DiskError::from_errno(EIO)
    }
}

/// Linux's numbers of the errors that the crate makes itself.
pub const EIO: i32 = 5;
/// See [`EIO`].
pub const EAGAIN: i32 = 11;
/// See [`EIO`].
pub const ENOSPC: i32 = 28;
/// See [`EIO`].
pub const EFAULT: i32 = 14;

/// The part of a table of `total` bytes that is written when `range` of it changes: whole blocks of the medium, or the
/// whole table if that is smaller than a block.
pub fn window(range: std::ops::Range<usize>, block: usize, total: usize) -> std::ops::Range<usize> {
    if total <= block {
        return 0..total;
    }
    range.start - range.start % block..range.end.next_multiple_of(block).min(total)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Persistent dirty bitmaps: what the image itself remembers of its changes.
//!
//! They are read when the image is opened for writing, and in memory while it is used. Before the first change the file
//! says of each that it is in use; when the last queue is closed, they are stored, and it says so no more. After a kill or
//! a power cut in between it still does, so that everybody knows that they are out of date.
//!
//! Stored bits are in clusters of their own. The order is: the new clusters, stable; the places of the tables, stable; the
//! sizes of the tables and that they are not in use, stable; then the old clusters are free.

mod bits;
mod directory;
mod found;
mod queue;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use virtio_blk_core::disk::DiskError;

pub use bits::PersistentBitmap;
use bits::Piece;
use directory::{Directory, clusters, read_table};
pub use queue::MarkingQueue;

use crate::base::Base;
use crate::disk::Qcow2Disk;
use crate::format::{ALL_ONES, BitmapEntry, FormatError, Header, bitmap_directory};
use crate::image::Image;
use crate::lane::Lane;
use crate::refcounts::{Refcounts, Run};
use crate::sync::lock;

/// Most bytes of the directory and of all bits that are kept up to date.
const MAX_DIRECTORY: u64 = 1 << 20;
const MAX_BITS: u64 = 256 << 20;

/// What the directory of bitmaps says of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of a block that a bit stands for.
    pub granularity: u64,
    /// Changes of the disk are marked in it.
    pub enabled: bool,
    /// It was not closed, so that it is out of date: nobody can use it, and it can only be removed.
    pub inconsistent: bool,
}

impl BitmapInfo {
    fn of(entry: &BitmapEntry) -> Self {
        Self {
            name: entry.name.clone(),
            granularity: 1 << entry.granularity_bits,
            enabled: entry.is_enabled(),
            inconsistent: !entry.is_consistent(),
        }
    }
}

/// A bitmap that is kept up to date.
struct Kept {
    bitmap: Arc<PersistentBitmap>,
    /// As it is in the file, when it is not in use.
    entry: BitmapEntry,
    /// Where its table is in the file, and what it holds.
    place: (u64, Vec<u64>),
}

struct State {
    directory: Directory,
    kept: Vec<Kept>,
    /// The file says that they are in use.
    in_use: bool,
}

/// The persistent bitmaps of an image.
pub struct Bitmaps {
    /// As they were when the image was opened.
    entries: Vec<BitmapEntry>,
    state: Mutex<State>,
    /// Held while the image gets another size, or the bitmaps are stored.
    turn: Mutex<()>,
    /// Others may have the image now: nothing is stored any more.
    is_left: AtomicBool,
    /// Clusters that those which are kept up to date are in, as in the file; sorted.
    claims: Mutex<Vec<Run>>,
    /// Data is in one of them: nothing is stored any more, so that the data stays.
    is_spoiled: AtomicBool,
}

impl std::fmt::Debug for Bitmaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitmaps({:?})", self.entries)
    }
}

impl Bitmaps {
    /// Reads the directory, and if `bits` all bitmaps that are not out of date. `None`: there are none, or the image does
    /// not promise that they are up to date.
    ///
    /// # Errors
    /// `Damaged` or `Unsupported`: they can't be kept up to date; the disk's.
    pub fn read(
        header: &Header,
        base: &Base,
        lane: &mut Lane,
        bits: bool,
    ) -> Result<Result<Option<Self>, FormatError>, DiskError> {
        let extension = header.extensions.bitmaps.filter(|_| header.bitmaps() > 0);
        let Some(extension) = extension else {
            return Ok(Ok(None));
        };
        if extension.len > MAX_DIRECTORY {
            return Ok(Err(FormatError::Unsupported("so many bitmaps".into())));
        }
        let mut bytes = vec![0; extension.len as usize];
        lane.read(extension.offset, &mut bytes)?;
        let entries = match bitmap_directory(&bytes, extension.count) {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error)),
        };
        let (mut kept, mut left) = (Vec::new(), MAX_BITS);
        let wanted = |entry: &&BitmapEntry| bits && entry.is_consistent();
        for entry in entries.iter().filter(wanted) {
            match read_one(lane, base, header.size, entry, &mut left)? {
                Ok(one) => kept.push(one),
                Err(error) => return Ok(Err(error)),
            }
        }
        let claims = claims(base, &kept);
        if is_shared(&claims) {
            let what = "two parts of its bitmaps share a cluster";
            return Ok(Err(FormatError::damaged(what)));
        }
        Ok(Ok(Some(Self {
            entries,
            state: Mutex::new(State {
                directory: Directory::new(extension.offset, bytes),
                kept,
                in_use: false,
            }),
            turn: Mutex::default(),
            is_left: AtomicBool::new(false),
            claims: Mutex::new(claims),
            is_spoiled: AtomicBool::new(false),
        })))
    }

    /// Says that `count` clusters from `first` on are the guest's data. If a bitmap has one of them too, its bits are what
    /// the guest writes there, and what it gives up would be the guest's: none is stored any more, and all stay in use.
    pub fn meet_data(&self, first: u64, count: u64) {
        let claims = lock(&self.claims);
        let next = claims.partition_point(|run| run.first + run.count <= first);
        let is_hit = claims
            .get(next)
            .is_some_and(|run| run.first < first + count);
        drop(claims);
        if is_hit && !self.is_spoiled.swap(true, Ordering::AcqRel) {
            log::error!(
                "a qcow2 image is damaged: data is in a cluster of a dirty bitmap. The data stays; its bitmaps are out of \
                 date after the first change, and can only be removed"
            );
        }
    }

    fn is_spoiled(&self) -> bool {
        self.is_spoiled.load(Ordering::Acquire)
    }

    /// Bitmaps in which changes of the disk are marked.
    pub fn enabled(&self) -> Vec<Arc<PersistentBitmap>> {
        if self.is_spoiled() {
            return Vec::new();
        }
        let state = lock(&self.state);
        let kept = state.kept.iter().map(|kept| &kept.bitmap);
        kept.filter(|bitmap| bitmap.is_enabled()).cloned().collect()
    }

    /// Says in the file that they are in use. Whether that was news, which has to become stable before the first change.
    ///
    /// # Errors
    /// The disk's. Nothing may be changed then.
    pub fn begin(&self, lane: &mut Lane, base: &Base) -> Result<bool, DiskError> {
        let mut state = lock(&self.state);
        let State {
            directory,
            kept,
            in_use,
        } = &mut *state;
        if *in_use || kept.is_empty() {
            return Ok(false);
        }
        directory.set_in_use(lane, base, kept.iter().map(|kept| &kept.entry))?;
        *in_use = true;
        Ok(true)
    }

    /// Whether there is something to store.
    fn is_waiting(&self) -> bool {
        if self.is_left.load(Ordering::Acquire) || self.is_spoiled() {
            return false;
        }
        let state = lock(&self.state);
        state.in_use || state.kept.iter().any(|kept| kept.bitmap.is_changed())
    }

    /// Stores them. They are in use, and nobody marks anything.
    fn store(
        &self,
        lane: &mut Lane,
        base: &Base,
        refcounts: &Mutex<Refcounts>,
    ) -> Result<(), DiskError> {
        let mut state = lock(&self.state);
        let State {
            directory,
            kept,
            in_use,
        } = &mut *state;
        let mut written = Vec::new();
        for (index, kept) in kept.iter().enumerate() {
            if !kept.bitmap.is_changed() {
                continue;
            }
            match kept.write(lane, base, refcounts) {
                Ok(new) => written.push((index, new)),
                Err(error) => {
                    for (_, (at, table)) in written {
                        release(lane, refcounts, clusters(base, at, &table));
                    }
                    return Err(error);
                }
            }
        }
        base.barrier(lane)?;
        if !written.is_empty() {
            let mut entries: Vec<BitmapEntry> =
                kept.iter().map(|kept| kept.entry.clone()).collect();
            for (index, (at, table)) in &written {
                if let Some(entry) = entries.get_mut(*index) {
                    entry.table = *at;
                    entry.entries = u32::try_from(table.len()).unwrap_or(u32::MAX);
                }
            }
            // If that fails, either may be what the file has: the new ones stay counted, and are written anew.
            directory.set_places(lane, base, entries.iter())?;
            base.barrier(lane)?;
            for (kept, entry) in kept.iter_mut().zip(entries) {
                kept.entry = entry;
            }
            for (index, (at, table)) in written {
                if let Some(kept) = kept.get_mut(index) {
                    let (old_at, old) = std::mem::replace(&mut kept.place, (at, table));
                    kept.bitmap.set_changed(false);
                    release(lane, refcounts, clusters(base, old_at, &old));
                }
            }
            *lock(&self.claims) = claims(base, kept);
        }
        directory.set_closed(lane, base, kept.iter().map(|kept| &kept.entry))?;
        base.barrier(lane)?;
        *in_use = false;
        Ok(())
    }
}

/// The clusters that bitmaps are in, as in the file; sorted.
fn claims(base: &Base, kept: &[Kept]) -> Vec<Run> {
    let own = |kept: &Kept| clusters(base, kept.place.0, &kept.place.1);
    let mut claims: Vec<Run> = kept.iter().flat_map(own).collect();
    claims.sort_unstable_by_key(|run| run.first);
    claims
}

/// Whether a cluster is claimed twice.
fn is_shared(claims: &[Run]) -> bool {
    let shared = |pair: &[Run]| matches!(pair, [one, next] if one.first + one.count > next.first);
    claims.windows(2).any(shared)
}

/// Counts clusters once less to which nothing refers.
fn release(lane: &mut Lane, refcounts: &Mutex<Refcounts>, runs: Vec<Run>) {
    let mut refcounts = lock(refcounts);
    for run in runs {
        if let Err(error) = refcounts.release(lane, run, &mut Vec::new()) {
            log::warn!(
                "{} clusters of a bitmap stay counted ({error}): `vblk disk check --repair=leaks` frees them",
                run.count
            );
        }
    }
}

/// Reads the bits of a bitmap of a disk of `size` bytes. There may be `left` bytes of them, which become less.
fn read_one(
    lane: &mut Lane,
    base: &Base,
    size: u64,
    entry: &BitmapEntry,
    left: &mut u64,
) -> Result<Result<Kept, FormatError>, DiskError> {
    let len = size.div_ceil(1 << entry.granularity_bits).div_ceil(8);
    let Some(rest) = left.checked_sub(len) else {
        return Ok(Err(FormatError::Unsupported("bitmaps of that size".into())));
    };
    *left = rest;
    if u64::from(entry.entries) < base.geometry.clusters(len) {
        let what = format!("the bitmap {} is too small for the image", entry.name);
        return Ok(Err(FormatError::damaged(what)));
    }
    let table = match read_table(lane, base, entry)? {
        Ok(table) => table,
        Err(error) => return Ok(Err(error)),
    };
    let enabled = entry.is_enabled();
    let bitmap = PersistentBitmap::new(&entry.name, entry.granularity_bits, enabled, size);
    let cluster = base.geometry.cluster();
    let mut bytes = vec![0; cluster as usize];
    for (word, at) in table
        .iter()
        .zip((0..bitmap.len()).step_by(cluster as usize))
    {
        match *word {
            0 => continue,
            ALL_ONES => bytes.fill(0xff),
            place => lane.read(place, &mut bytes)?,
        }
        bitmap.fill(at, &bytes);
    }
    Ok(Ok(Kept {
        bitmap: Arc::new(bitmap),
        place: (entry.table, table),
        entry: entry.clone(),
    }))
}

impl Kept {
    /// Writes the bits to new clusters. The place of the new table, and what it holds.
    fn write(
        &self,
        lane: &mut Lane,
        base: &Base,
        refcounts: &Mutex<Refcounts>,
    ) -> Result<(u64, Vec<u64>), DiskError> {
        let mut table = Vec::new();
        let written = self.write_parts(lane, base, refcounts, &mut table);
        if written.is_err() {
            let own = clusters(base, 0, &table).into_iter().skip(1).collect();
            release(lane, refcounts, own);
        }
        Ok((written?, table))
    }

    fn write_parts(
        &self,
        lane: &mut Lane,
        base: &Base,
        refcounts: &Mutex<Refcounts>,
        table: &mut Vec<u64>,
    ) -> Result<u64, DiskError> {
        let geometry = base.geometry;
        let cluster = geometry.cluster();
        for at in (0..self.bitmap.len()).step_by(cluster as usize) {
            let word = match self.bitmap.piece(at, cluster as usize) {
                Piece::Zeroes => 0,
                Piece::Ones => ALL_ONES,
                Piece::Bytes(bytes) => {
                    let run = lock(refcounts).reserve(lane, 1)?;
                    let place = run.first << geometry.cluster_bits;
                    table.push(place);
                    lane.write(place, &bytes)?;
                    continue;
                }
            };
            table.push(word);
        }
        // Never smaller than before: see `Directory::set_places`.
        table.resize(table.len().max(self.place.1.len()).max(1), 0);
        let run = lock(refcounts).reserve_all(lane, geometry.clusters(table.len() as u64 * 8))?;
        let mut bytes: Vec<u8> = table.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.resize((run.count << geometry.cluster_bits) as usize, 0);
        let place = run.first << geometry.cluster_bits;
        if let Err(error) = lane.write(place, &bytes) {
            release(lane, refcounts, vec![run]);
            return Err(error);
        }
        Ok(place)
    }
}

impl Image {
    /// Stores the bitmaps, if there are any: no queue is open, and no thread at work. If that fails they stay in use, which
    /// is told in the log.
    pub fn settle_bitmaps(&self) {
        let Some(bitmaps) = self.base.bitmaps.get() else {
            return;
        };
        if self.read_only || self.base.changes.check().is_err() || !bitmaps.is_waiting() {
            return;
        }
        let _turn = lock(&bitmaps.turn);
        let stored = || {
            let mut lane = self.base.medium.lane()?;
            self.base.begin_changes(&mut lane)?;
            self.make_stable()?;
            bitmaps.store(&mut lane, &self.base, &self.refcounts)?;
            self.base.changes.rest();
            Ok::<(), DiskError>(())
        };
        if let Err(error) = stored() {
            log::error!(
                "the dirty bitmaps of a qcow2 image can't be stored ({error}): they are out of date from now on, and can only \
                 be removed"
            );
        }
    }

    /// Stores the bitmaps for the last time: others may have the image afterwards.
    pub fn leave_bitmaps(&self) {
        self.settle_bitmaps();
        if let Some(bitmaps) = self.base.bitmaps.get() {
            bitmaps.is_left.store(true, Ordering::Release);
        }
    }

    /// Does something that gives the image another size, and tells the bitmaps.
    ///
    /// # Errors
    /// Those of `resize`.
    pub fn resize_with_bitmaps(
        &self,
        resize: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let Some(bitmaps) = self.base.bitmaps.get() else {
            return resize();
        };
        let _turn = lock(&bitmaps.turn);
        let result = resize();
        for kept in &lock(&bitmaps.state).kept {
            kept.bitmap.grow(self.size());
        }
        result
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        self.settle_bitmaps();
    }
}

impl Qcow2Disk {
    /// The persistent dirty bitmaps of the image, as they were when it was opened. Those of which the image does not
    /// promise that they are up to date are not among them.
    ///
    /// # Errors
    /// The disk is not active.
    pub fn bitmaps(&self) -> Result<Vec<BitmapInfo>, DiskError> {
        let image = self.image()?;
        let bitmaps = image.base.bitmaps.get();
        let entries = bitmaps.map_or(&[][..], |bitmaps| &bitmaps.entries);
        Ok(entries.iter().map(BitmapInfo::of).collect())
    }

    /// The bitmap of this name, with its marks. Of a disk that is open for writing it is the one that is kept up to date and
    /// stored: what is marked or cleared in it is in the image when its last queue is closed. Of another it is a copy.
    /// `None`: there is none, or it is out of date.
    ///
    /// # Errors
    /// The disk is not active; the image is damaged; the disk's.
    pub fn bitmap(&self, name: &str) -> Result<Option<Arc<PersistentBitmap>>, DiskError> {
        let image = self.image()?;
        let Some(bitmaps) = image.base.bitmaps.get() else {
            return Ok(None);
        };
        if bitmaps.is_spoiled() {
            return Ok(None);
        }
        let state = lock(&bitmaps.state);
        let found = state.kept.iter().find(|kept| kept.bitmap.name() == name);
        if let Some(kept) = found {
            return Ok(Some(kept.bitmap.clone()));
        }
        if !image.read_only {
            return Ok(None);
        }
        let mut lane = image.base.medium.lane()?;
        let is_meant = |entry: &&BitmapEntry| entry.name == name && entry.is_consistent();
        let Some(entry) = bitmaps.entries.iter().find(is_meant) else {
            return Ok(None);
        };
        match read_one(&mut lane, &image.base, image.size(), entry, &mut {
            MAX_BITS
        })? {
            Ok(kept) => Ok(Some(kept.bitmap)),
            Err(error) => Err(DiskError::Config(format!(
                "{} has bitmaps that can't be read: {error}",
                self.path().display()
            ))),
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file of a bitmap that outlives its process.
//!
//! In the file a block is marked **before** a change of it is given to the disk, in memory after it has ended, as
//! always. So whatever a killed process had written, or was writing, is marked in the file, which then lies in the
//! host's page cache. After a power cut only what was stable counts: with [`PersistOptions::sync`], a bit for each
//! region of some megabytes, which is made stable before the first change in the region is given to the disk.
//!
//! A block's mark in the file goes when what was taken is committed, if nothing that changes its region is in flight.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::disk::DiskError;

use super::bitmap::DirtyBitmap;
use super::error::BitmapError;
use super::format::{self, Marks, PAGE, Use, WORDS_AT, region_bytes};
use super::words::{BITS, mask};

/// Words written with one system call.
const CHUNK: usize = 8192;

/// Where a bitmap is kept, and how well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistOptions {
    /// The file. It is made if it is not there.
    pub path: PathBuf,
    /// The bitmap outlives a power cut, and not only the end of the process.
    pub sync: bool,
}

/// A part of the disk.
#[derive(Default)]
struct Region {
    /// Changes in it that have begun and not ended.
    in_flight: AtomicU32,
    /// Its bit is set in the file, and stable.
    stable: AtomicBool,
}

/// What an operation changes, as far as the file has bits for it.
struct Span {
    /// Blocks.
    first: u64,
    last: u64,
    regions: RangeInclusive<u64>,
}

impl Span {
    fn words(&self) -> RangeInclusive<u64> {
        self.first / BITS..=self.last / BITS
    }
}

/// The file in use. It is closed when this is dropped, with all queues.
pub(super) struct Persist {
    pub(super) bitmap: Arc<DirtyBitmap>,
    name: String,
    path: PathBuf,
    file: File,
    used: Use,
    /// Bytes of the disk that the file has bits for: those it had when the file was opened.
    covered: u64,
    /// Bytes of a region.
    region: u64,
    regions: Box<[Region]>,
    /// Marks that are in the file for sure. It may have more.
    filed: Box<[AtomicU64]>,
    /// The disk was smaller than `covered`: what it has grown by again may not be marked in the file.
    shrunk: AtomicBool,
    /// That could not be written yet.
    untold: AtomicBool,
    /// The last write failed, which was logged.
    failing: AtomicBool,
    /// Held from a look at the whole bitmap until the file's header says what was seen.
    settling: Mutex<()>,
    /// Held to write. The bits of the regions as the file has them.
    writer: Mutex<Vec<u8>>,
}

/// An item of a list by a number that lies in it.
fn at<T>(list: &[T], index: u64) -> Option<&T> {
    usize::try_from(index)
        .ok()
        .and_then(|index| list.get(index))
}

impl Persist {
    /// Over a file that was just written: with the marks of `bitmap` in the words, and none in the regions but those of
    /// marked blocks, where it is `synced`.
    pub(super) fn new(
        bitmap: Arc<DirtyBitmap>,
        name: &str,
        path: PathBuf,
        file: File,
        used: Use,
        written: &Marks,
        regions: Vec<u8>,
    ) -> Arc<Self> {
        let region = region_bytes(written.size, written.granularity);
        let stable = |index: u64| {
            let bits = at(&regions, index / 8).copied().unwrap_or(0);
            Region {
                stable: AtomicBool::new(used.synced && bits >> (index % 8) & 1 != 0),
                ..Region::default()
            }
        };
        let this = Arc::new(Self {
            name: name.to_owned(),
            path,
            file,
            used,
            covered: written.size,
            region,
            regions: (0..written.size.div_ceil(region)).map(stable).collect(),
            filed: written.words.iter().copied().map(AtomicU64::new).collect(),
            shrunk: AtomicBool::new(false),
            untold: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            settling: Mutex::default(),
            writer: Mutex::new(regions),
            bitmap,
        });
        this.bitmap.keep_in(&this);
        this
    }

    fn writer(&self) -> MutexGuard<'_, Vec<u8>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, (offset, len): (u64, u64)) -> Option<Span> {
        let end = offset.saturating_add(len).min(self.covered);
        if offset >= end {
            return None;
        }
        let granularity = self.bitmap.granularity();
        Some(Span {
            first: offset / granularity,
            last: (end - 1) / granularity,
            regions: offset / self.region..=(end - 1) / self.region,
        })
    }

    fn regions(&self, span: &Span) -> impl Iterator<Item = &Region> {
        span.regions
            .clone()
            .filter_map(|index| at(&self.regions, index))
    }

    /// A change is about to be given to the disk: it is in the file when this returns.
    ///
    /// # Errors
    /// The file can't be written. The change must not be made.
    pub(super) fn begin(&self, range: (u64, u64)) -> Result<(), DiskError> {
        let Some(span) = self.span(range) else {
            return Ok(());
        };
        // Before the looks: either they find what `prune` has taken away, or `prune` finds us.
        for region in self.regions(&span) {
            region.in_flight.fetch_add(1, Ordering::SeqCst);
        }
        if self.has(&span) && !self.untold.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.write_begun(span).inspect_err(|_| self.end(range))
    }

    /// The error is the host's own: a policy for errors goes by its `errno`.
    #[cold]
    fn write_begun(&self, span: Span) -> Result<(), DiskError> {
        let told = match self.untold.load(Ordering::SeqCst) {
            true => self.tell_size(),
            false => Ok(()),
        };
        let written = told.and_then(|()| self.write_ahead(&[span]));
        let was_failing = self.failing.swap(written.is_err(), Ordering::SeqCst);
        Ok(written.inspect_err(|error| {
            if !was_failing {
                let path = self.path.display();
                log::error!(
                    "the dirty bitmap's file {path} can't be written: {error}. Until it can, writes to the disk fail"
                );
            }
        })?)
    }

    /// The disk has `size` bytes now.
    pub(super) fn resized(&self, size: u64) {
        if size < self.covered && !self.shrunk.swap(true, Ordering::SeqCst) {
            self.untold.store(true, Ordering::SeqCst);
            // If that fails, no write to the disk succeeds before it could be written.
            let _ = self.tell_size();
        }
    }

    fn tell_size(&self) -> io::Result<()> {
        let _settling = self.settling();
        self.write_header(self.bitmap.head(&self.name))?;
        self.untold.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn settling(&self) -> MutexGuard<'_, ()> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change that was begun has ended, and is marked in memory; or it was not made.
    pub(super) fn end(&self, range: (u64, u64)) {
        if let Some(span) = self.span(range) {
            for region in self.regions(&span) {
                region.in_flight.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn has(&self, span: &Span) -> bool {
        let marked = |index: u64| {
            let mask = mask(index, span.first, span.last);
            at(&self.filed, index).is_none_or(|word| word.load(Ordering::SeqCst) & mask == mask)
        };
        let stable = |region: &Region| region.stable.load(Ordering::SeqCst);
        span.words().all(marked) && (!self.used.synced || self.regions(span).all(stable))
    }

    /// Writes the marks of these changes.
    #[cold]
    fn write_ahead(&self, spans: &[Span]) -> io::Result<()> {
        let mut writer = self.writer();
        for span in spans {
            // Nobody may rely on a mark before it is written. After a failure the file may have more than is relied on.
            let marked = |index: u64| mask(index, span.first, span.last);
            self.write_words(span.words(), marked)?;
            for index in span.words() {
                if let Some(word) = at(&self.filed, index) {
                    word.fetch_or(marked(index), Ordering::SeqCst);
                }
            }
        }
        if !self.used.synced {
            return Ok(());
        }
        let all = || spans.iter().flat_map(|span| span.regions.clone());
        let unstable = |index: &u64| {
            at(&self.regions, *index).is_some_and(|region| !region.stable.load(Ordering::SeqCst))
        };
        if !all().any(|index| unstable(&index)) {
            return Ok(());
        }
        for index in all() {
            set_bit(&mut writer, index, true);
        }
        self.file.write_all_at(&writer, PAGE as u64)?;
        self.file.sync_data()?;
        for region in all().filter_map(|index| at(&self.regions, index)) {
            region.stable.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Writes words as they are in `filed`, with more marks by the number of the word. The writer's lock is held.
    fn write_words(&self, range: RangeInclusive<u64>, more: impl Fn(u64) -> u64) -> io::Result<()> {
        let count = (range.end() - range.start()).saturating_add(1);
        let first = usize::try_from(*range.start()).unwrap_or(usize::MAX);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let end = first.saturating_add(count).min(self.filed.len());
        let words = self.filed.get(first..end).unwrap_or_default();
        for (chunk, begin) in words.chunks(CHUNK).zip((first..).step_by(CHUNK)) {
            let words = chunk.iter().zip(begin as u64..).map(|(word, index)| {
                let word = word.load(Ordering::SeqCst) | more(index);
                word.to_le_bytes()
            });
            let bytes: Vec<u8> = words.flatten().collect();
            self.file
                .write_all_at(&bytes, (WORDS_AT + begin * 8) as u64)?;
        }
        Ok(())
    }

    /// Makes the file what the bitmap is, after something other than a change of the disk has changed it.
    ///
    /// # Errors
    /// The file can't be written: after a restart it has more marked than is, or says that it is incomplete.
    pub(super) fn settle(&self) -> Result<(), BitmapError> {
        let settled = || {
            let _settling = self.settling();
            let marks = self.bitmap.marks(&self.name, self.covered);
            if marks.incomplete.is_some() {
                return self.write_header(marks);
            }
            // What was added is there before the file is said to be complete.
            let added: Vec<Span> =
                super::changes::ranges(&marks.words, marks.granularity, marks.size)
                    .into_iter()
                    .filter_map(|range| self.span(range))
                    .filter(|span| !self.has(span))
                    .collect();
            self.write_ahead(&added)?;
            self.write_header(marks)?;
            (0..self.regions.len() as u64).try_for_each(|index| self.prune(index))
        };
        settled().map_err(|source| BitmapError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// Writes what the bitmap is, as it was seen by the one who is settling.
    fn write_header(&self, mut marks: Marks) -> io::Result<()> {
        marks.size = self.covered;
        if self.shrunk.load(Ordering::SeqCst) {
            marks.incomplete = marks.incomplete.or(Some("the disk was smaller meanwhile"));
        }
        let header = format::header(&marks, self.used);
        let _writer = self.writer();
        self.file.write_all_at(&header, 0)?;
        // What a power cut must not undo: that the bitmap is incomplete.
        self.file.sync_data()
    }

    /// Takes marks from the file that the bitmap does not have any more.
    fn prune(&self, index: u64) -> io::Result<()> {
        let Some(region) = at(&self.regions, index) else {
            return Ok(());
        };
        let begin = index * self.region;
        let Some(span) = self.span((begin, self.region)) else {
            return Ok(());
        };
        let mut writer = self.writer();
        let mut removed = Vec::new();
        for index in span.words() {
            let Some(word) = at(&self.filed, index) else {
                continue;
            };
            let extra = word.load(Ordering::SeqCst) & !self.bitmap.word(index);
            if extra != 0 {
                word.fetch_and(!extra, Ordering::SeqCst);
                removed.push((index, word, extra));
            }
        }
        if region.in_flight.load(Ordering::SeqCst) != 0 {
            // They are still in the file.
            for (_, word, extra) in removed {
                word.fetch_or(extra, Ordering::SeqCst);
            }
            return Ok(());
        }
        // What has ended since the first look.
        for (index, word, extra) in &removed {
            word.fetch_or(self.bitmap.word(*index) & extra, Ordering::SeqCst);
        }
        if let (Some((first, ..)), Some((last, ..))) = (removed.first(), removed.last()) {
            self.write_words(*first..=*last, |_| 0)?;
        }
        let mut words = span.words().filter_map(|index| at(&self.filed, index));
        if !region.stable.load(Ordering::SeqCst)
            || words.any(|word| word.load(Ordering::SeqCst) != 0)
        {
            return Ok(());
        }
        region.stable.store(false, Ordering::SeqCst);
        let is_marked = |index| self.bitmap.word(index) != 0;
        if region.in_flight.load(Ordering::SeqCst) != 0 || span.words().any(is_marked) {
            region.stable.store(true, Ordering::SeqCst);
            return Ok(());
        }
        set_bit(&mut writer, index, false);
        self.file.write_all_at(&writer, PAGE as u64)
    }

    /// Writes the last marks, and that they are the last.
    fn close(&self) -> io::Result<()> {
        let marks = self.bitmap.marks(&self.name, self.covered);
        let regions = self.writer();
        let whole = format::encode(&marks, self.used.boot, &regions);
        let body = whole.get(WORDS_AT..).unwrap_or_default();
        self.file.write_all_at(body, WORDS_AT as u64)?;
        self.file.set_len(whole.len() as u64)?;
        self.file.sync_data()?;
        self.file
            .write_all_at(whole.get(..PAGE).unwrap_or_default(), 0)?;
        self.file.sync_all()
    }
}

impl Drop for Persist {
    fn drop(&mut self) {
        // Then the file says that it is in use, as after a kill: it has all marks, and perhaps more.
        if let Err(error) = self.close() {
            log::warn!("{}: it can't be closed: {error}", self.path.display());
        }
    }
}

/// Sets or clears the bit of a region.
pub(super) fn set_bit(bits: &mut [u8], index: u64, on: bool) {
    let byte = usize::try_from(index / 8)
        .ok()
        .and_then(|at| bits.get_mut(at));
    if let Some(byte) = byte {
        let mask = 1 << (index % 8);
        *byte = if on { *byte | mask } else { *byte & !mask };
    }
}

#[cfg(test)]
mod tests;

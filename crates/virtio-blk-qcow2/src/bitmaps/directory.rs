// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The directory of bitmaps as it is in the file, and the tables that it names.

use virtio_blk_core::disk::DiskError;

use crate::base::{Base, EIO};
use crate::format::{ALL_ONES, BitmapEntry, FormatError, OFFSET, be64, bitmap_flag, put};
use crate::lane::Lane;
use crate::medium::Put;
use crate::refcounts::Run;

/// Where an entry of the directory has the size of the table, and behind it the flags.
const SIZE: usize = 8;

/// The directory of bitmaps as it is in the file.
pub(super) struct Directory {
    /// First byte in the file.
    pub(super) at: u64,
    bytes: Vec<u8>,
}

impl Directory {
    pub(super) const fn new(at: u64, bytes: Vec<u8>) -> Self {
        Self { at, bytes }
    }

    /// Changes the entries of these bitmaps in the file, and then in memory.
    fn update<'a>(
        &mut self,
        lane: &mut Lane,
        base: &Base,
        entries: impl Iterator<Item = &'a BitmapEntry>,
        change: impl Fn(&mut [u8], &BitmapEntry),
    ) -> Result<(), DiskError> {
        let mut new = self.bytes.clone();
        entries.for_each(|entry| change(&mut new, entry));
        if new == self.bytes {
            return Ok(());
        }
        match base.medium.write_meta(lane, self.at, &new, &self.bytes) {
            Put::Done => {
                self.bytes = new;
                Ok(())
            }
            Put::Failed(error) => Err(error),
            Put::Later => Err(DiskError::from_errno(EIO)),
        }
    }

    /// Says of these bitmaps that they are in use.
    pub(super) fn set_in_use<'a>(
        &mut self,
        lane: &mut Lane,
        base: &Base,
        entries: impl Iterator<Item = &'a BitmapEntry>,
    ) -> Result<(), DiskError> {
        self.update(lane, base, entries, |bytes, entry| {
            put_size(bytes, entry, entry.flags | bitmap_flag::IN_USE);
        })
    }

    /// Says where the tables are now, of bitmaps that are in use. Each table has at least as many entries as before, so
    /// that it does not matter which sectors of the directory arrive.
    pub(super) fn set_places<'a>(
        &mut self,
        lane: &mut Lane,
        base: &Base,
        entries: impl Iterator<Item = &'a BitmapEntry>,
    ) -> Result<(), DiskError> {
        self.update(lane, base, entries, |bytes, entry| {
            put(bytes, entry.at, &entry.table.to_be_bytes());
        })
    }

    /// Says how large the tables are, and that the bitmaps are not in use any more.
    pub(super) fn set_closed<'a>(
        &mut self,
        lane: &mut Lane,
        base: &Base,
        entries: impl Iterator<Item = &'a BitmapEntry>,
    ) -> Result<(), DiskError> {
        self.update(lane, base, entries, |bytes, entry| {
            put_size(bytes, entry, entry.flags);
        })
    }
}

/// Size and flags are one word, of which a power cut leaves all or nothing.
fn put_size(bytes: &mut [u8], entry: &BitmapEntry, flags: u32) {
    put(bytes, entry.at + SIZE, &entry.entries.to_be_bytes());
    put(bytes, entry.at + SIZE + 4, &flags.to_be_bytes());
}

/// Reads a bitmap's table and checks what it names.
///
/// # Errors
/// `Damaged`: it lies outside the file, or on other tables; the disk's.
pub(super) fn read_table(
    lane: &mut Lane,
    base: &Base,
    entry: &BitmapEntry,
) -> Result<Result<Vec<u64>, FormatError>, DiskError> {
    let geometry = base.geometry;
    let damaged = |what: &str| {
        let what = format!("{what} of the bitmap {} lies where it can't be", entry.name);
        Ok(Err(FormatError::damaged(what)))
    };
    let is_free = |at: u64, count: u64| {
        let first = at >> geometry.cluster_bits;
        at != 0
            && at.is_multiple_of(geometry.cluster())
            && first + count <= geometry.clusters(base.medium.len())
            && (first..first + count).all(|cluster| !base.is_table(cluster))
    };
    let len = u64::from(entry.entries) * 8;
    if !is_free(entry.table, geometry.clusters(len)) {
        return damaged("the table");
    }
    let mut bytes = vec![0; len as usize];
    lane.read(entry.table, &mut bytes)?;
    let words = (0..bytes.len()).step_by(8).map(|at| be64(&bytes, at));
    let table: Vec<u64> = words.collect();
    for word in &table {
        let place = word & OFFSET;
        let is_known = match place {
            0 => *word <= ALL_ONES,
            _ => *word == place && is_free(place, 1),
        };
        if !is_known {
            return damaged("a part");
        }
    }
    Ok(Ok(table))
}

/// The clusters that a table and its bits are in.
pub(super) fn clusters(base: &Base, at: u64, table: &[u64]) -> Vec<Run> {
    let bits = base.geometry.cluster_bits;
    let own = Run {
        first: at >> bits,
        count: base.geometry.clusters(table.len() as u64 * 8),
    };
    let places = table.iter().map(|word| word & OFFSET);
    let parts = places.filter(|place| *place != 0).map(|place| Run {
        first: place >> bits,
        count: 1,
    });
    std::iter::once(own).chain(parts).collect()
}

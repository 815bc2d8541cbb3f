// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where an image has its metadata: found when it is opened, and refused if any of it overlaps.

use std::path::Path;

use virtio_blk_core::disk::DiskError;

use crate::error::OpenError;
use crate::format::{FormatError, Header, OFFSET, be32, be64};
use crate::lane::Lane;

/// Bytes of a snapshot's entry without its variable parts.
const SNAPSHOT: usize = 40;
/// Most bytes of the table of snapshots (QEMU: 1,024 a snapshot on average).
const MAX_SNAPSHOT_TABLE: u64 = 64 << 20;
/// Most bytes of a snapshot's L1 table.
const MAX_L1: u64 = 32 << 20;

/// Why the layout is not known.
#[derive(Debug)]
pub enum LayoutError {
    /// The disk's.
    Disk(DiskError),
    /// The image is damaged.
    Format(FormatError),
}

impl LayoutError {
    /// The same of the image at `path`.
    pub fn of(self, path: &Path) -> OpenError {
        match self {
            Self::Disk(error) => OpenError::file(path, error),
            Self::Format(error) => OpenError::format(path, error),
        }
    }
}

impl From<DiskError> for LayoutError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<FormatError> for LayoutError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// Where an image has its metadata.
#[derive(Debug)]
pub struct Layout {
    /// First clusters and numbers of clusters, sorted.
    pub tables: Vec<(u64, u64)>,
    /// The active L1 table as it is in the file.
    pub l1: Vec<u8>,
}

impl Layout {
    /// Reads the L1 table, the refcount table and the table of snapshots of an image in a file of `file_len` bytes.
    ///
    /// # Errors
    /// The disk's; `Damaged`: something lies outside the file, or over something else.
    pub fn read(header: &Header, file_len: u64, lane: &mut Lane) -> Result<Self, LayoutError> {
        let geometry = header.geometry;
        let bits = geometry.cluster_bits;
        let mut found = Found {
            header,
            end: geometry.clusters(file_len),
            tables: vec![(0, 1)],
        };
        found.add(header.l1.offset, header.l1.len, "the L1 table")?;
        let counts = header.refcounts;
        found.add(counts.offset, counts.len, "the refcount table")?;
        let mut l1 = vec![0; usize::try_from(header.l1.len).unwrap_or(0)];
        lane.read(header.l1.offset, &mut l1)?;
        for at in (0..l1.len()).step_by(8) {
            let place = be64(&l1, at) & OFFSET;
            found.add(place, geometry.cluster(), "an L2 table")?;
        }
        let mut table = vec![0; usize::try_from(counts.len).unwrap_or(0)];
        lane.read(counts.offset, &mut table)?;
        for at in (0..table.len()).step_by(8) {
            let place = be64(&table, at) & !511;
            found.add(place, geometry.cluster(), "a refcount block")?;
        }
        found.snapshots(lane)?;
        if let Some(bitmaps) = &header.extensions.bitmaps
            && header.bitmaps() > 0
        {
            found.add(bitmaps.offset, bitmaps.len, "the directory of bitmaps")?;
        }
        let mut tables = found.tables;
        tables.sort_unstable();
        for pair in tables.windows(2) {
            if let [(first, count), (next, _)] = pair
                && first + count > *next
            {
                let what = format!("two of its tables share a cluster, at {:#x}", next << bits);
                return Err(FormatError::damaged(what).into());
            }
        }
        Ok(Self { tables, l1 })
    }
}

struct Found<'a> {
    header: &'a Header,
    /// Clusters of the file.
    end: u64,
    tables: Vec<(u64, u64)>,
}

impl Found<'_> {
    /// Notes a table, unless there is none.
    fn add(&mut self, offset: u64, len: u64, what: &str) -> Result<(), FormatError> {
        if offset == 0 || len == 0 {
            return Ok(());
        }
        let geometry = self.header.geometry;
        let (first, count) = (offset >> geometry.cluster_bits, geometry.clusters(len));
        if !offset.is_multiple_of(geometry.cluster()) || first + count > self.end {
            return Err(FormatError::damaged(format!(
                "{what} lies outside the file, at {offset:#x}"
            )));
        }
        self.tables.push((first, count));
        Ok(())
    }

    /// Notes the table of snapshots and their L1 tables.
    fn snapshots(&mut self, lane: &mut Lane) -> Result<(), LayoutError> {
        let (count, offset) = self.header.snapshots;
        let mut at = offset;
        for _ in 0..count {
            let mut entry = [0; SNAPSHOT];
            lane.read(at, &mut entry)?;
            let l1 = u64::from(be32(&entry, 8)) * 8;
            if l1 > MAX_L1 {
                return Err(FormatError::damaged("the L1 table of a snapshot is too large").into());
            }
            self.add(be64(&entry, 0), l1, "the L1 table of a snapshot")?;
            let names = be32(&entry, 12);
            let more = (names >> 16) + (names & 0xffff);
            let extra = u64::from(be32(&entry, 36)) + u64::from(more);
            at = (at + SNAPSHOT as u64 + extra).next_multiple_of(8);
            if at - offset > MAX_SNAPSHOT_TABLE {
                return Err(FormatError::damaged("its table of snapshots is too large").into());
            }
        }
        Ok(self.add(offset, at - offset, "the table of snapshots")?)
    }
}

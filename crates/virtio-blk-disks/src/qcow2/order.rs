// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! In which order the library's writes of metadata become stable.
//!
//! The library writes refcounts before the tables that rely on them, but asks for no barrier between: after
//! a power cut the second could be there without the first. So the barrier is made here, from where in the
//! file a write goes.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{Header, Table};

/// What a write changes, as far as its place tells. Bits.
const COUNTS: u8 = 1;
const TABLES: u8 = 2;
/// Copied to a cluster that no table refers to yet.
const DATA: u8 = 4;

/// Where the header keeps the place of the refcount table.
const REFCOUNTS_FIELD: usize = 48;

/// What was written since the last sync, and what is where.
#[derive(Debug)]
pub(super) struct Order {
    cluster: u64,
    l1: Table,
    refcounts: Table,
    /// First bytes of the blocks of refcounts.
    blocks: HashSet<u64>,
    /// Kinds of writes that may not be stable.
    pending: u8,
}

impl Order {
    /// For an image whose header was checked.
    ///
    /// # Errors
    /// The refcount table can't be read.
    pub fn new(file: &File, header: &Header) -> io::Result<Self> {
        let mut order = Self {
            cluster: header.cluster(),
            l1: header.l1,
            refcounts: header.refcounts,
            blocks: HashSet::new(),
            pending: 0,
        };
        order.read_blocks(file)?;
        Ok(order)
    }

    /// Takes over all blocks that the refcount table names.
    fn read_blocks(&mut self, file: &File) -> io::Result<()> {
        let len = usize::try_from(self.refcounts.len).map_err(io::Error::other)?;
        let mut table = vec![0; len];
        file.read_exact_at(&mut table, self.refcounts.offset)?;
        self.learn(&table);
        Ok(())
    }

    fn learn(&mut self, entries: &[u8]) {
        let entries = entries.as_chunks::<8>().0.iter();
        let named = entries.map(|entry| u64::from_be_bytes(*entry) & !0x1ff);
        self.blocks.extend(named.filter(|offset| *offset != 0));
    }

    fn within(table: Table, offset: u64) -> bool {
        (table.offset..table.offset + table.len).contains(&offset)
    }

    /// To be called before a write. Makes stable what must be so before.
    ///
    /// # Errors
    /// That failed.
    pub fn before(&mut self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let (kind, after) = if offset == 0 {
            (COUNTS | TABLES, COUNTS | TABLES | DATA)
        } else if Self::within(self.refcounts, offset)
            || self.blocks.contains(&(offset - offset % self.cluster))
        {
            (COUNTS, TABLES)
        } else if Self::within(self.l1, offset)
            || (offset.is_multiple_of(self.cluster) && len == self.cluster)
        {
            (TABLES, COUNTS | DATA)
        } else {
            (DATA, 0)
        };
        if self.pending & after != 0 {
            file.sync_data()?;
            self.pending = 0;
        }
        self.pending |= kind;
        Ok(())
    }

    /// To be called after a write, with what was written.
    ///
    /// # Errors
    /// The new refcount table can't be read.
    pub fn after(&mut self, file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        if Self::within(self.refcounts, offset) {
            self.learn(data);
        } else if offset == 0
            && let Some((place, _)) = data
                .get(REFCOUNTS_FIELD..REFCOUNTS_FIELD + 12)
                .and_then(|field| field.split_first_chunk::<8>())
            && let Some(clusters) = data
                .get(REFCOUNTS_FIELD + 8..)
                .and_then(<[u8]>::first_chunk)
        {
            let refcounts = Table {
                offset: u64::from_be_bytes(*place),
                len: u64::from(u32::from_be_bytes(*clusters)) * self.cluster,
            };
            if refcounts != self.refcounts {
                self.refcounts = refcounts;
                self.read_blocks(file)?;
            }
        }
        Ok(())
    }

    /// Everything is stable now.
    pub fn synced(&mut self) {
        self.pending = 0;
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where an image keeps its tables: checked once, when it is opened.
//!
//! A hostile image can't make the library run in circles or walk through more than there is in the file:
//! every table lies inside the file, and no cluster holds two of them. And what is a table then is never
//! written as data, so that a guest can't write a header for the next opening.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::OpenError;
use super::header::{Header, MAX_OFFSET, Table};

/// The bits of an L1 entry that are an offset.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;

/// The clusters that hold tables.
#[derive(Debug)]
pub(super) struct Tables {
    clusters: HashSet<u64>,
    cluster_bits: u32,
}

impl Tables {
    /// Reads the tables of tables and checks them.
    ///
    /// # Errors
    /// Tables that overlap or lie outside the file.
    pub fn read(
        file: &File,
        file_len: u64,
        header: &Header,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let mut tables = Self {
            clusters: HashSet::new(),
            cluster_bits: header.cluster_bits,
        };
        let overlap = || OpenError::damaged(path, "two of its tables share a cluster");
        let outside = || OpenError::damaged(path, "one of its tables lies outside the file");
        tables.clusters.insert(0);
        for table in [header.l1, header.refcounts] {
            let first = table.offset >> header.cluster_bits;
            for cluster in first..first + table.len.div_ceil(header.cluster()) {
                if !tables.clusters.insert(cluster) {
                    return Err(overlap());
                }
            }
        }
        // Clusters that one block of refcounts stands for.
        let block = (header.cluster() * 8) >> header.refcount_order;
        let file_clusters = file_len.div_ceil(header.cluster());
        for (table, mask) in [(header.l1, L1_OFFSET), (header.refcounts, !0x1ff)] {
            each(file, table, path, |index, entry| {
                let offset = entry & mask;
                if offset == 0 {
                    return Ok(());
                }
                if !offset.is_multiple_of(header.cluster())
                    || offset >= file_len
                    || offset >= MAX_OFFSET
                {
                    return Err(outside());
                }
                // What refcounts far behind the end count must be searched for nothing.
                if table == header.refcounts && index > file_clusters.div_ceil(block) {
                    return Err(OpenError::damaged(
                        path,
                        "its refcounts reach far beyond the end of the file",
                    ));
                }
                if !tables.clusters.insert(offset >> header.cluster_bits) {
                    return Err(overlap());
                }
                Ok(())
            })?;
        }
        Ok(tables)
    }

    /// Whether `len` bytes at `offset` of the file touch a table.
    pub fn touch(&self, offset: u64, len: u64) -> bool {
        let last = offset.saturating_add(len.max(1) - 1) >> self.cluster_bits;
        (offset >> self.cluster_bits..=last).any(|cluster| self.clusters.contains(&cluster))
    }
}

/// Calls `f` with the number and value of each entry of a table.
fn each(
    file: &File,
    table: Table,
    path: &Path,
    mut f: impl FnMut(u64, u64) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < table.len {
        let len = PIECE.min(usize::try_from(table.len - at).unwrap_or(PIECE));
        let part = piece.get_mut(..len).unwrap_or_default();
        file.read_exact_at(part, table.offset + at)
            .map_err(|source| OpenError::Library {
                path: path.to_owned(),
                source,
            })?;
        for (index, entry) in part.as_chunks::<8>().0.iter().enumerate() {
            f(at / 8 + index as u64, u64::from_be_bytes(*entry))?;
        }
        at += len as u64;
    }
    Ok(())
}

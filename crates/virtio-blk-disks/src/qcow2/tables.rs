// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where an image keeps its tables: checked when it is opened, and kept up to date.
//!
//! A hostile image can't make the library run in circles or walk through more than there is in the file:
//! every table lies inside the file, and no cluster holds two of them. And what is a table then is never
//! written as data, so that a guest can't write a header for the next opening.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use super::error::OpenError;
use super::header::{Header, MAX_OFFSET, Table};
use super::host::Host;

/// The bits of an L1 entry that are an offset.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;

/// The clusters that hold tables.
#[derive(Debug)]
pub(super) struct Tables {
    clusters: RwLock<HashSet<u64>>,
    cluster_bits: u32,
}

impl Tables {
    /// Reads the tables of tables and checks them.
    ///
    /// # Errors
    /// Tables that overlap or lie outside the file.
    pub fn read(
        host: &dyn Host,
        file_len: u64,
        header: &Header,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let mut clusters = HashSet::from([0]);
        let overlap = || OpenError::damaged(path, "two of its tables share a cluster");
        let outside = || OpenError::damaged(path, "one of its tables lies outside the file");
        for table in [header.l1, header.refcounts] {
            let first = table.offset >> header.cluster_bits;
            for cluster in first..first + table.len.div_ceil(header.cluster()) {
                if !clusters.insert(cluster) {
                    return Err(overlap());
                }
            }
        }
        // Clusters that one block of refcounts stands for.
        let block = (header.cluster() * 8) >> header.refcount_order;
        let file_clusters = file_len.div_ceil(header.cluster());
        for (table, mask) in [(header.l1, L1_OFFSET), (header.refcounts, !0x1ff)] {
            each(host, table, path, |index, entry| {
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
                if !clusters.insert(offset >> header.cluster_bits) {
                    return Err(overlap());
                }
                Ok(())
            })?;
        }
        Ok(Self {
            clusters: RwLock::new(clusters),
            cluster_bits: header.cluster_bits,
        })
    }

    fn of(&self, table: Table) -> std::ops::Range<u64> {
        let first = table.offset >> self.cluster_bits;
        first..(table.offset + table.len).div_ceil(1 << self.cluster_bits)
    }

    /// There is a new table.
    pub fn add(&self, table: Table) {
        let mut clusters = self
            .clusters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        clusters.extend(self.of(table));
    }

    /// A table is none any more.
    pub fn remove(&self, table: Table) {
        let mut clusters = self
            .clusters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.of(table)
            .for_each(|cluster| _ = clusters.remove(&cluster));
    }

    /// The clusters, in order.
    pub fn sorted(&self) -> Vec<u64> {
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<u64> = clusters.iter().copied().collect();
        sorted.sort_unstable();
        sorted
    }

    /// Whether `len` bytes at `offset` of the file touch a table.
    pub fn touch(&self, offset: u64, len: u64) -> bool {
        let last = offset.saturating_add(len.max(1) - 1) >> self.cluster_bits;
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        (offset >> self.cluster_bits..=last).any(|cluster| clusters.contains(&cluster))
    }
}

/// Calls `f` with the number and value of each entry of a table.
fn each(
    host: &dyn Host,
    table: Table,
    path: &Path,
    mut f: impl FnMut(u64, u64) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < table.len {
        let len = PIECE.min(usize::try_from(table.len - at).unwrap_or(PIECE));
        let part = piece.get_mut(..len).unwrap_or_default();
        host.read(part, table.offset + at)
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

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything in an image that refers to a cluster.

use std::ops::Range;

use virtio_blk_core::disk::DiskError;

use super::Checked;
use crate::base::Base;
use crate::format::{COPIED, Entry, Header, OFFSET, be32, be64, bitmap_directory};
use crate::lane::Lane;
use crate::refcounts::Refcounts;

/// Bytes of the fixed part of a snapshot's entry.
const SNAPSHOT: usize = 40;
/// Most bytes of a bitmap's table, as QEMU has it, and of a snapshot's L1 table.
const MAX_TABLE: u64 = 32 << 20;

/// Counts what refers to the clusters of a window.
pub(super) struct Walk<'a> {
    header: &'a Header,
    base: &'a Base,
    window: Range<u64>,
    /// Clusters of the file.
    all: u64,
    /// Faults are told in the first pass only.
    first: bool,
    counts: Vec<u16>,
}

impl<'a> Walk<'a> {
    pub fn new(
        header: &'a Header,
        base: &'a Base,
        window: Range<u64>,
        all: u64,
        first: bool,
    ) -> Self {
        let len = usize::try_from(window.end - window.start).unwrap_or(0);
        Self {
            header,
            base,
            window,
            all,
            first,
            counts: vec![0; len],
        }
    }

    /// How often each cluster is referred to.
    pub fn into_counts(self) -> Vec<u16> {
        self.counts
    }

    /// Follows every reference. `tables` are all but the L2 tables of snapshots and what bitmaps lie in.
    pub fn all(
        &mut self,
        lane: &mut Lane,
        l1: &[u8],
        tables: &[(u64, u64)],
        checked: &mut Checked,
    ) -> Result<(), DiskError> {
        for (first, count) in tables {
            self.refer(*first, *count, "a table", checked);
        }
        self.active(lane, l1, checked)?;
        self.snapshots(lane, checked)?;
        self.bitmaps(lane, checked)
    }

    /// Counts a reference.
    fn refer(&mut self, first: u64, count: u64, what: &str, checked: &mut Checked) {
        if first.saturating_add(count) > self.all && self.first {
            // Data at the end of the file may not have been written.
            if first > self.all {
                checked.corrupt(|| format!("{what} lies outside the file, at cluster {first}"));
            }
        }
        for cluster in first..first.saturating_add(count).min(self.all) {
            let inside = cluster.checked_sub(self.window.start);
            let index = inside.and_then(|inside| usize::try_from(inside).ok());
            if let Some(count) = index.and_then(|index| self.counts.get_mut(index)) {
                *count = count.saturating_add(1);
            }
        }
    }

    /// The active L2 tables, whose own places are known.
    fn active(
        &mut self,
        lane: &mut Lane,
        l1: &[u8],
        checked: &mut Checked,
    ) -> Result<(), DiskError> {
        let (geometry, external) = (self.header.geometry, self.header.external);
        for at in (0..l1.len()).step_by(8) {
            let place = be64(l1, at) & OFFSET;
            if place == 0 {
                continue;
            }
            let (first, last) = (at as u64 / 8 * geometry.table_entries(), checked.clusters);
            // Where the cluster lies that would follow the last one.
            let mut next = None;
            self.table(lane, place, checked, &mut |index, entry, checked| {
                if first + index >= last {
                    return;
                }
                if entry.is_compressed() {
                    checked.allocated += 1;
                    checked.compressed += 1;
                    checked.fragmented += 1;
                } else if let Some(host) = entry.host(external) {
                    checked.allocated += 1;
                    checked.fragmented += u64::from(next.is_some_and(|next| next != host));
                    next = Some(host + geometry.cluster());
                }
            })?;
        }
        Ok(())
    }

    /// What an L2 table refers to. In the first pass, `each` looks at each entry that is one.
    fn table(
        &mut self,
        lane: &mut Lane,
        place: u64,
        checked: &mut Checked,
        each: &mut dyn FnMut(u64, Entry, &mut Checked),
    ) -> Result<(), DiskError> {
        let geometry = self.header.geometry;
        let mut bytes = vec![0; geometry.cluster() as usize];
        lane.read(place, &mut bytes)?;
        let size = 8 * geometry.words();
        for (index, raw) in bytes.chunks_exact(size).enumerate() {
            let entry = Entry {
                word: be64(raw, 0),
                bits: if geometry.extended { be64(raw, 8) } else { 0 },
            };
            if entry == Entry::BELOW {
                continue;
            }
            let fault = entry.fault(geometry, self.header.version);
            if let Some(fault) = fault.filter(|_| self.first) {
                checked.corrupt(|| format!("entry {index} of the L2 table at {place:#x}: {fault}"));
            }
            // Of a faulty entry, too: what is wrong may be the entry, and not that its data is there.
            if let Some((first, count)) = entry.clusters(geometry, self.header.external) {
                let is_whole = fault.is_none() && !entry.is_compressed();
                if self.first && is_whole && self.base.is_table(first) {
                    checked.corrupt(|| format!("data lies in a table, at cluster {first}"));
                }
                self.refer(first, count, "data", checked);
            }
            if self.first && fault.is_none() {
                each(index as u64, entry, checked);
            }
        }
        Ok(())
    }

    /// The L2 tables of snapshots, and their data.
    fn snapshots(&mut self, lane: &mut Lane, checked: &mut Checked) -> Result<(), DiskError> {
        let bits = self.header.geometry.cluster_bits;
        let (count, mut at) = self.header.snapshots;
        for _ in 0..count {
            let mut entry = [0; SNAPSHOT];
            lane.read(at, &mut entry)?;
            let len = (u64::from(be32(&entry, 8)) * 8).min(MAX_TABLE);
            let mut l1 = vec![0; len as usize];
            lane.read(be64(&entry, 0), &mut l1)?;
            for index in (0..l1.len()).step_by(8) {
                let place = be64(&l1, index) & OFFSET;
                if place == 0 {
                    continue;
                }
                self.refer(place >> bits, 1, "an L2 table of a snapshot", checked);
                self.table(lane, place, checked, &mut |_, _, _| {})?;
            }
            let names = be32(&entry, 12);
            let more = u64::from(names >> 16) + u64::from(names & 0xffff);
            let extra = u64::from(be32(&entry, 36));
            at = (at + SNAPSHOT as u64 + extra + more).next_multiple_of(8);
        }
        Ok(())
    }

    /// Persistent bitmaps: their tables, and what these refer to.
    fn bitmaps(&mut self, lane: &mut Lane, checked: &mut Checked) -> Result<(), DiskError> {
        let geometry = self.header.geometry;
        // Those that are out of date are nothing but space that is lost, as QEMU has it.
        let bitmaps = self.header.extensions.bitmaps;
        let Some(bitmaps) = bitmaps.filter(|_| self.header.bitmaps() > 0) else {
            return Ok(());
        };
        let mut directory = vec![0; usize::try_from(bitmaps.len).unwrap_or(0)];
        lane.read(bitmaps.offset, &mut directory)?;
        let entries = match bitmap_directory(&directory, bitmaps.count) {
            Ok(entries) => entries,
            Err(error) => {
                if self.first {
                    checked.corrupt(|| error.to_string());
                }
                return Ok(());
            }
        };
        for entry in entries {
            let len = u64::from(entry.entries) * 8;
            let first = entry.table >> geometry.cluster_bits;
            self.refer(first, geometry.clusters(len), "a bitmap's table", checked);
            let mut table = vec![0; len.min(MAX_TABLE) as usize];
            lane.read(entry.table, &mut table)?;
            for index in (0..table.len()).step_by(8) {
                let place = be64(&table, index) & OFFSET;
                if place != 0 {
                    self.refer(place >> geometry.cluster_bits, 1, "a bitmap", checked);
                }
            }
        }
        Ok(())
    }
}

/// Looks at the marks of what may be written in place, which say that a count is 1.
pub(super) fn marks(
    header: &Header,
    lane: &mut Lane,
    l1: &[u8],
    refcounts: &mut Refcounts,
    checked: &mut Checked,
) -> Result<(), DiskError> {
    let geometry = header.geometry;
    let mut look = |lane: &mut Lane, what: &str, word: u64, checked: &mut Checked| {
        let place = word & OFFSET;
        let is_one = refcounts.get(lane, place >> geometry.cluster_bits)? == 1;
        if is_one != (word & COPIED != 0) {
            checked.corrupt(|| format!("the mark of the {what} at {place:#x} is wrong"));
        }
        Ok::<(), DiskError>(())
    };
    for at in (0..l1.len()).step_by(8) {
        let word = be64(l1, at);
        if word & OFFSET == 0 {
            continue;
        }
        look(lane, "L2 table", word, checked)?;
        if header.external {
            continue;
        }
        let mut bytes = vec![0; geometry.cluster() as usize];
        lane.read(word & OFFSET, &mut bytes)?;
        for raw in bytes.chunks_exact(8 * geometry.words()) {
            let word = be64(raw, 0);
            let entry = Entry { word, bits: 0 };
            if entry.host(false).is_some() {
                look(lane, "cluster", word, checked)?;
            }
        }
    }
    Ok(())
}

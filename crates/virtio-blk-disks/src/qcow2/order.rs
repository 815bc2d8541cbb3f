// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! In which order changes of metadata become visible in the file, and stable.
//!
//! After the end of the process the file holds what was written, in the order of writing; after a power cut,
//! any part of what was written since the last sync. Both must leave a sound image that holds what was
//! promised, so whatever the library's own order is:
//!
//! 1. Something refers to a cluster only when the file's refcount for it is stable.
//! 2. A refcount is lowered, and a cluster used again, only when it is stable that nothing refers to it.
//! 3. What was copied to a cluster, and what replaces something else than zeroes, is stable before something
//!    refers to it.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::changes::Failure;
use super::counts::{Counts, difference};
use super::header::{Header, Table};
use super::host::Host;
use super::tables::Tables;

/// Writes that may not be stable. Bits.
const COUNTS: u8 = 1;
const TABLES: u8 = 2;
/// To clusters that nothing refers to yet, and that may have held something else.
const DATA: u8 = 4;
/// To clusters that nothing refers to yet, and that hold zeroes if the data gets lost.
const FRESH: u8 = 8;

/// Where the header keeps the place of the refcount table.
const REFCOUNTS_FIELD: usize = 48;
/// What of the header is never changed while the image is in use: all but the place of the backing file's name, of the
/// refcount table, features that are cleared, and its length.
const HEADER_STAYS: [Range<usize>; 4] = [0..8, 20..48, 60..88, 96..100];
/// The same while the image grows: then its size and the place and length of the L1 table change, too.
const GROWING_STAYS: [Range<usize>; 5] = [0..8, 20..24, 32..36, 60..88, 96..100];
/// Where the header keeps the length, in entries, and the place of the L1 table.
const L1_FIELD: Range<usize> = 36..48;
/// The bits of an entry of the L1 or L2 table that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bytes that the library may be ahead of the file's end in the middle of one call: twice the most that is mapped.
const GROWTH: u64 = 16 << 20;
/// Most clusters that are remembered as released or clean.
const MAX_REMEMBERED: usize = 1 << 20;

/// What an entry of a table refers to.
#[derive(Debug)]
enum Target {
    /// A cluster, or none (0). It may count as zeroes whatever is there.
    Place { place: u64, zero: bool },
    /// Some bytes of the file. Their entry has other bits where that of a cluster says that it is zero.
    Compressed(Range<u64>),
}

impl Target {
    /// The first byte of the cluster.
    fn place(&self) -> Option<u64> {
        match *self {
            Self::Place { place, .. } if place != 0 => Some(place),
            _ => None,
        }
    }

    /// Whether both refer to the same cluster, or to none.
    fn is_where(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Place { place, .. }, Self::Place { place: other, .. }) => place == other,
            _ => false,
        }
    }

    /// Whether something in the file shows through the entry.
    fn shows_data(&self) -> bool {
        match *self {
            Self::Place { place, zero } => place != 0 && !zero,
            Self::Compressed(_) => true,
        }
    }

    /// The clusters that it refers to, by number.
    fn clusters(&self, cluster_bits: u32) -> Range<u64> {
        match self {
            Self::Place { place: 0, .. } => 0..0,
            Self::Place { place, .. } => place >> cluster_bits..(place >> cluster_bits) + 1,
            Self::Compressed(bytes) => {
                bytes.start >> cluster_bits..((bytes.end - 1) >> cluster_bits) + 1
            }
        }
    }
}

/// What was written since the last sync, and what is where.
#[derive(Debug)]
pub(super) struct Order {
    cluster_bits: u32,
    l1: Table,
    refcounts: Table,
    tables: Arc<Tables>,
    counts: Counts,
    /// Kinds of writes that may not be stable.
    pending: u8,
    /// Clusters, by number, that something may still refer to after a power cut.
    released: HashSet<u64>,
    /// The clusters from this one on were never written. None, if what is not there is not zero.
    virgin: Option<u64>,
    /// Clusters that were made zero; since the last sync, and before.
    punched: HashSet<u64>,
    clean: HashSet<u64>,
    /// The image is made larger just now.
    growing: bool,
}

fn entry(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The L1 table that a header names.
fn l1_table(header: &[u8]) -> Option<Table> {
    let field = header.get(L1_FIELD)?;
    let entries = u32::from_be_bytes(*field.first_chunk()?);
    let offset = entry(field.get(4..)?);
    let len = u64::from(entries) * 8;
    Some(Table { offset, len })
}

fn header_given_away() -> io::Error {
    let what = "the image is damaged: it has its header's cluster free";
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Order {
    /// For an image whose header was checked. `over`: there is a backing file.
    ///
    /// # Errors
    /// The refcount table can't be read.
    pub fn new(
        host: &dyn Host,
        header: &Header,
        tables: Arc<Tables>,
        over: bool,
    ) -> io::Result<Self> {
        let virgin = if over {
            None
        } else if host.grows() {
            Some(host.size()?.div_ceil(header.cluster()))
        } else {
            Some(u64::MAX)
        };
        Ok(Self {
            cluster_bits: header.cluster_bits,
            l1: header.l1,
            refcounts: header.refcounts,
            tables,
            counts: Counts::new(host, header)?,
            pending: 0,
            released: HashSet::new(),
            virgin,
            punched: HashSet::new(),
            clean: HashSet::new(),
            growing: false,
        })
    }

    /// A cluster of a table, by number, that the file does not count.
    ///
    /// # Errors
    /// The host's.
    pub fn uncounted(&self, host: &dyn Host) -> io::Result<Option<u64>> {
        self.counts
            .uncounted(host, self.tables.sorted().into_iter())
    }

    const fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn within(table: Table, offset: u64) -> bool {
        (table.offset..table.offset + table.len).contains(&offset)
    }

    fn clusters(&self, offset: u64, len: u64) -> std::ops::RangeInclusive<u64> {
        let last = offset.saturating_add(len.max(1) - 1);
        offset >> self.cluster_bits..=last >> self.cluster_bits
    }

    /// What the library wrote to the block of refcounts at `offset`, if the file differs.
    pub fn view(&self, offset: u64) -> Option<&[u8]> {
        self.counts.view(offset)
    }

    /// Writes what the library writes.
    ///
    /// # Errors
    /// The host's, or the image is damaged.
    pub fn write(&mut self, host: &dyn Host, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let whole = offset.is_multiple_of(self.cluster()) && data.len() as u64 == self.cluster();
        if offset < self.cluster() {
            self.check_header(host, offset, data)?;
        }
        if offset == 0 || Self::within(self.refcounts, offset) {
            self.write_roots(host, offset, data)?;
        } else if whole && self.counts.is_block(offset) {
            self.counts.take(host, offset, data)?;
        } else if Self::within(self.l1, offset) {
            self.write_entries(host, offset, data, true)?;
        } else if whole && self.tables.touch(offset, 1) {
            self.write_entries(host, offset, data, false)?;
        } else {
            self.before_data(host, offset, data.len() as u64)?;
            self.pending |= DATA;
            let written = host.write(data, offset);
            written.map_err(|error| self.new_cluster(host, error))?;
        }
        Ok(())
    }

    /// What a failure to write to a cluster means that nothing refers to yet: a copy of data, or a new table.
    ///
    /// The library gives the cluster up and forgets the table, but for one case: the new blocks of refcounts that it
    /// makes together with a larger refcount table stay in its cache.
    fn new_cluster(&self, host: &dyn Host, error: io::Error) -> Failure {
        let counted = self.counts.reach();
        match host.size() {
            Ok(size) if size.saturating_add(GROWTH) < counted => Failure::Undone(error),
            _ => Failure::Broken(error),
        }
    }

    /// A hostile image has the library free the header's own cluster (by a compressed cluster that lies there), and use
    /// it for a table.
    fn check_header(&self, host: &dyn Host, offset: u64, data: &[u8]) -> io::Result<()> {
        let all: &[Range<usize>] = if self.growing {
            &GROWING_STAYS
        } else {
            &HEADER_STAYS
        };
        let end = all.last().map_or(0, |range| range.end);
        let mut old = vec![0; end.min(data.len())];
        host.read(&mut old, 0)?;
        let stays = all.iter().all(|range| {
            let range = range.start.min(old.len())..range.end.min(old.len());
            data.get(range.clone()) == old.get(range)
        });
        if offset == 0 && stays {
            Ok(())
        } else {
            Err(header_given_away())
        }
    }

    /// The header or the refcount table. Rare: everything before becomes stable first.
    fn write_roots(&mut self, host: &dyn Host, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counts.raise(host)?;
        let l1 = if offset == 0 { l1_table(data) } else { None };
        let l1 = l1.filter(|l1| *l1 != self.l1);
        if let Some(l1) = l1 {
            for cluster in self.clusters(l1.offset, l1.len) {
                self.counts.ensure(host, cluster)?;
            }
        }
        if offset != 0 {
            for place in data.as_chunks::<8>().0 {
                let block = u64::from_be_bytes(*place) & !0x1ff;
                let cluster = block >> self.cluster_bits;
                // A block that counts itself has done so before it is named here.
                if block != 0 && !self.counts.is_block(block) && self.counts.has_block(cluster) {
                    self.counts.ensure(host, cluster)?;
                }
            }
        }
        self.sync(host)?;
        self.pending |= COUNTS | TABLES;
        host.write(data, offset)?;
        if let Some(l1) = l1 {
            let old = self.clusters(self.l1.offset, self.l1.len);
            self.released.extend(old);
            self.tables.remove(self.l1);
            self.tables.add(l1);
            self.l1 = l1;
        }
        if offset == 0
            && let Some(field) = data.get(REFCOUNTS_FIELD..REFCOUNTS_FIELD + 12)
        {
            let clusters = field.get(8..).and_then(<[u8]>::first_chunk);
            let clusters = clusters.map_or(0, |clusters| u32::from_be_bytes(*clusters));
            let refcounts = Table {
                offset: entry(field),
                len: u64::from(clusters) << self.cluster_bits,
            };
            if refcounts != self.refcounts {
                // After a power cut the header may still name the old one.
                let old = self.clusters(self.refcounts.offset, self.refcounts.len);
                self.released.extend(old);
                self.tables.remove(self.refcounts);
                self.tables.add(refcounts);
                self.refcounts = refcounts;
            }
        }
        self.counts.read_table(host, self.refcounts)?;
        for offset in self.counts.blocks() {
            let len = self.cluster();
            self.tables.add(Table { offset, len });
        }
        Ok(())
    }

    /// A part of the L1 table, or an L2 table. Writes no more than what changed.
    fn write_entries(
        &mut self,
        host: &dyn Host,
        offset: u64,
        data: &[u8],
        first_level: bool,
    ) -> io::Result<()> {
        let mut old = vec![0; data.len()];
        host.read(&mut old, offset)?;
        let Some(range) = difference(&old, data) else {
            return Ok(());
        };
        let mut barrier = 0;
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        let pairs = |bytes| <[u8]>::as_chunks::<8>(bytes).0.iter();
        let (from, to) = (&old.get(range.clone()), &data.get(range.clone()));
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        for (from, to) in pairs(from).zip(pairs(to)).filter(|(from, to)| from != to) {
            let (from, to) = (
                self.target(*from, first_level),
                self.target(*to, first_level),
            );
            let moved = !from.is_where(&to);
            if moved {
                removed.extend(from.clusters(self.cluster_bits));
            }
            let Some(place) = to.place().filter(|_| moved || to.shows_data()) else {
                continue;
            };
            if moved {
                let cluster = place >> self.cluster_bits;
                if self.counts.ensure(host, cluster)? {
                    self.pending |= COUNTS;
                }
                barrier |= COUNTS;
            }
            // What is at the new place shows now.
            barrier |= DATA;
            if moved && from.shows_data() || first_level {
                barrier |= FRESH;
            }
            if first_level {
                added.push(place);
            }
        }
        if self.pending & barrier != 0 || self.released.len() > MAX_REMEMBERED {
            self.sync(host)?;
        }
        self.pending |= TABLES;
        self.released.extend(removed);
        host.write(to, offset + range.start as u64)?;
        let len = self.cluster();
        added
            .into_iter()
            .for_each(|offset| self.tables.add(Table { offset, len }));
        Ok(())
    }

    /// What an entry of the L1 table or of an L2 table says.
    fn target(&self, entry: [u8; 8], first_level: bool) -> Target {
        let entry = u64::from_be_bytes(entry);
        if first_level || entry & COMPRESSED == 0 {
            return Target::Place {
                place: entry & OFFSET,
                zero: !first_level && entry & ZERO != 0,
            };
        }
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let end = (offset & !511) + (sectors + 1) * 512;
        Target::Compressed(offset..end)
    }

    /// Before a cluster gets other content, nothing may refer to it any more, even after a power cut.
    fn before_data(&mut self, host: &dyn Host, offset: u64, len: u64) -> io::Result<()> {
        let reused = |cluster| self.released.contains(&cluster);
        if !self.released.is_empty() && self.clusters(offset, len).any(reused) {
            self.sync(host)?;
        }
        self.used(offset, len);
        Ok(())
    }

    fn is_fresh(&self, cluster: u64) -> bool {
        self.virgin
            .is_some_and(|virgin| cluster >= virgin || self.clean.contains(&cluster))
    }

    fn used(&mut self, offset: u64, len: u64) {
        let clusters = self.clusters(offset, len);
        if let Some(virgin) = &mut self.virgin
            && *virgin != u64::MAX
        {
            *virgin = (*virgin).max(clusters.end() + 1);
        }
        if !self.clean.is_empty() || !self.punched.is_empty() {
            for cluster in clusters {
                self.clean.remove(&cluster);
                self.punched.remove(&cluster);
            }
        }
    }

    /// To be called before data is written to clusters that nothing refers to yet.
    ///
    /// # Errors
    /// The host's.
    pub fn new_data(&mut self, host: &dyn Host, offset: u64, len: u64) -> Result<(), Failure> {
        let mut clusters = self.clusters(offset, len);
        let kind = if clusters.all(|cluster| self.is_fresh(cluster)) {
            FRESH
        } else {
            DATA
        };
        self.before_data(host, offset, len)?;
        self.pending |= kind;
        Ok(())
    }

    /// Makes a part of a cluster zero that nothing refers to yet.
    ///
    /// # Errors
    /// The host's.
    pub fn new_zeroes(&mut self, host: &dyn Host, offset: u64, len: u64) -> Result<(), Failure> {
        if offset < self.cluster() {
            return Err(header_given_away().into());
        }
        let mut clusters = self.clusters(offset, len);
        if clusters.all(|cluster| self.is_fresh(cluster)) {
            return Ok(());
        }
        self.before_data(host, offset, len)?;
        self.pending |= DATA;
        // Behind the end there are zeroes.
        let end = (offset + len).min(host.size()?);
        if offset < end {
            let zeroed = host.zero(offset, end - offset);
            zeroed.map_err(|error| self.new_cluster(host, error))?;
        }
        Ok(())
    }

    /// Whole clusters that data was written to will not show any more. `punched`: they were made zero.
    pub fn erased(&mut self, offset: u64, len: u64, punched: bool) {
        self.used(offset, len);
        if punched
            && self.virgin.is_some()
            && self.punched.len() + self.clean.len() < MAX_REMEMBERED
        {
            self.punched.extend(self.clusters(offset, len));
        }
    }

    /// Whether the header's size and L1 table may change from now on.
    pub fn set_growing(&mut self, growing: bool) {
        self.growing = growing;
    }

    /// Makes everything stable.
    ///
    /// # Errors
    /// The host's. Nothing is stable then.
    pub fn sync(&mut self, host: &dyn Host) -> io::Result<()> {
        host.sync()?;
        self.pending = 0;
        self.released.clear();
        self.clean.extend(self.punched.drain());
        Ok(())
    }

    /// Whether a sync, without more, makes everything stable.
    pub fn is_settled(&self) -> bool {
        self.pending == 0 && self.released.is_empty() && self.punched.is_empty()
    }

    /// Makes everything stable, and lowers refcounts of what is free since. The library has written everything.
    ///
    /// # Errors
    /// The host's.
    pub fn settle(&mut self, host: &dyn Host) -> io::Result<()> {
        self.sync(host)?;
        // If that gets lost, space gets lost.
        self.counts.lower(host)
    }

    /// Leaves the file as the library believes it to be. The library has written everything.
    ///
    /// # Errors
    /// The host's.
    pub fn close(&mut self, host: &dyn Host) -> io::Result<()> {
        self.counts.stop_ahead();
        if !self.is_settled() {
            self.sync(host)?;
        }
        self.counts.lower(host)?;
        self.counts.shrink(host)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The refcounts in the file, which are never lower than what refers to a cluster there.
//!
//! The library's own refcounts stay in memory. Those in the file are raised before something refers to a
//! cluster, many free clusters in a row at once, so that allocations in a row need one barrier together.
//! They are lowered when everything is stable, and the rest when the image is closed; until then, and after
//! a crash, the file counts clusters that nothing refers to: they are lost space, not damage.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use super::header::{Header, Table};
use super::host::Host;

/// Bytes of free clusters that are counted ahead, and how many clusters that may be.
const AHEAD: u64 = 16 << 20;
const MAX_AHEAD: u64 = 1024;
const MIN_AHEAD: u64 = 16;
/// Most bytes of refcounts that are kept in memory. Beyond it, what was freed may stay lost.
const MAX_VIEWS: usize = 64 << 20;
/// The smallest piece of a block that is written.
const PIECE: usize = 512;

/// Reads number `index` of a block of numbers of `1 << order` bits.
fn get(block: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..=2 => {
            let bits = 1 << order;
            let at = index * bits;
            let byte = block.get(at / 8).copied().unwrap_or(0);
            u64::from(byte >> (at % 8)) & ((1 << bits) - 1)
        }
        _ => {
            let bytes = 1 << (order - 3);
            let number = block.get(index * bytes..(index + 1) * bytes);
            number
                .unwrap_or_default()
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        }
    }
}

fn set(block: &mut [u8], order: u32, index: usize, value: u64) {
    if order <= 2 {
        let bits = 1 << order;
        let at = index * bits;
        if let Some(byte) = block.get_mut(at / 8) {
            let mask = ((1_u64 << bits) - 1) as u8;
            *byte = *byte & !(mask << (at % 8)) | (value as u8 & mask) << (at % 8);
        }
    } else {
        let bytes = 1 << (order - 3);
        let number = block.get_mut(index * bytes..(index + 1) * bytes);
        let value = value.to_be_bytes();
        if let (Some(number), Some(value)) = (number, value.get(8 - bytes..)) {
            number.copy_from_slice(value);
        }
    }
}

/// The first and last piece in which two blocks differ, as a range of bytes.
pub(super) fn difference(old: &[u8], new: &[u8]) -> Option<Range<usize>> {
    let differ = |(old, new): (&[u8], &[u8])| old != new;
    let count = new.len().div_ceil(PIECE);
    let first = old.chunks(PIECE).zip(new.chunks(PIECE)).position(differ)?;
    let pieces = old.rchunks(PIECE).zip(new.rchunks(PIECE));
    let last = count - pieces.clone().position(differ)?;
    // Clusters are multiples of a piece.
    Some(first * PIECE..(last * PIECE).min(new.len()))
}

/// The refcounts of an image.
#[derive(Debug)]
pub(super) struct Counts {
    cluster_bits: u32,
    order: u32,
    /// First bytes of the blocks, by number; 0 for none.
    blocks: Vec<u64>,
    numbers: HashMap<u64, usize>,
    /// Blocks as the library has them, where the file differs.
    views: HashMap<u64, Vec<u8>>,
    /// Clusters, by number, that the file counts, used or not.
    ahead: Range<u64>,
    /// The file was made longer: its length before, and since.
    grown: Option<(u64, u64)>,
}

impl Counts {
    /// # Errors
    /// The refcount table can't be read.
    pub fn new(host: &dyn Host, header: &Header) -> io::Result<Self> {
        let mut counts = Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            blocks: Vec::new(),
            numbers: HashMap::new(),
            views: HashMap::new(),
            ahead: 0..0,
            grown: None,
        };
        counts.read_table(host, header.refcounts)?;
        Ok(counts)
    }

    /// Takes over all blocks that the refcount table names.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read_table(&mut self, host: &dyn Host, table: Table) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(table.len).map_err(io::Error::other)?];
        host.read(&mut bytes, table.offset)?;
        let entries = bytes.as_chunks::<8>().0.iter();
        self.blocks = entries
            .map(|entry| u64::from_be_bytes(*entry) & !0x1ff)
            .collect();
        let numbered = self.blocks.iter().copied().zip(0..);
        self.numbers = numbered.filter(|(block, _)| *block != 0).collect();
        Ok(())
    }

    const fn cluster(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Counts in a block, as a power of two.
    const fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    /// Bytes of the file that the refcount table can count: the library makes a larger one beyond it.
    pub fn reach(&self) -> u64 {
        let each = 1_u64 << (self.block_bits() + self.cluster_bits);
        each.saturating_mul(self.blocks.len() as u64)
    }

    /// Whether a block is at `offset`.
    pub fn is_block(&self, offset: u64) -> bool {
        self.numbers.contains_key(&offset)
    }

    /// Where the blocks are.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.numbers.keys().copied()
    }

    /// Whether there is a block for a cluster.
    pub fn has_block(&self, cluster: u64) -> bool {
        self.place(cluster).0.is_some()
    }

    /// The first of some clusters, by number and in order, that the file does not count.
    ///
    /// # Errors
    /// The host's.
    pub fn uncounted(
        &self,
        host: &dyn Host,
        clusters: impl Iterator<Item = u64>,
    ) -> io::Result<Option<u64>> {
        let (mut offset, mut block) = (0, Vec::new());
        for cluster in clusters {
            let (Some(at), index) = self.place(cluster) else {
                return Ok(Some(cluster));
            };
            if at != offset {
                (offset, block) = (at, self.file_block(host, at)?);
            }
            if get(&block, self.order, index) == 0 {
                return Ok(Some(cluster));
            }
        }
        Ok(None)
    }

    /// What the library believes to be in the block at `offset`, unless the file says so, too.
    pub fn view(&self, offset: u64) -> Option<&[u8]> {
        self.views.get(&offset).map(Vec::as_slice)
    }

    /// Takes a block from the library. The file learns of it later.
    ///
    /// # Errors
    /// The host's, if there are too many of them and they must be written.
    pub fn take(&mut self, host: &dyn Host, offset: u64, block: &[u8]) -> io::Result<()> {
        if self.views.len() * self.cluster() > MAX_VIEWS {
            self.raise(host)?;
            self.views.clear();
        }
        let view = self.views.entry(offset).or_default();
        view.clear();
        view.extend_from_slice(block);
        Ok(())
    }

    fn file_block(&self, host: &dyn Host, offset: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; self.cluster()];
        host.read(&mut block, offset)?;
        Ok(block)
    }

    /// The block for a cluster, if there is one, and the cluster's place in it.
    fn place(&self, cluster: u64) -> (Option<u64>, usize) {
        let bits = self.block_bits();
        let number = usize::try_from(cluster >> bits).unwrap_or(usize::MAX);
        let offset = self.blocks.get(number).copied().filter(|at| *at != 0);
        (offset, (cluster & ((1 << bits) - 1)) as usize)
    }

    /// Makes the file count the cluster `cluster`. Whether anything was written, which is not stable yet, is the
    /// answer.
    ///
    /// # Errors
    /// The host's, or there are no refcounts for that cluster.
    pub fn ensure(&mut self, host: &dyn Host, cluster: u64) -> io::Result<bool> {
        if self.ahead.contains(&cluster) {
            return Ok(false);
        }
        let (Some(offset), index) = self.place(cluster) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the image refers to a cluster that has no refcount",
            ));
        };
        // Most of those that are not counted ahead have been used before: no need for the whole block.
        let mut piece = [0; PIECE];
        let bit = index << self.order;
        host.read(&mut piece, offset + (bit / 8 / PIECE * PIECE) as u64)?;
        if get(&piece, self.order, (bit % (PIECE * 8)) >> self.order) != 0 {
            return Ok(false);
        }
        let old = self.file_block(host, offset)?;
        let mut new = old.clone();
        let view = self.views.entry(offset).or_insert_with(|| old.clone());
        let count = 1 << (self.cluster_bits + 3 - self.order);
        for index in 0..count {
            let used = get(view, self.order, index);
            if used > get(&new, self.order, index) {
                set(&mut new, self.order, index, used);
            }
        }
        let ahead = (AHEAD >> self.cluster_bits).clamp(MIN_AHEAD, MAX_AHEAD) as usize;
        let mut end = index;
        let mut free = 0;
        while end < count && free <= ahead {
            if get(&new, self.order, end) == 0 {
                set(&mut new, self.order, end, 1);
                free += 1;
            }
            end += 1;
        }
        if let Some(range) = difference(&old, &new) {
            let bytes = new.get(range.clone()).unwrap_or_default();
            host.write(bytes, offset + range.start as u64)?;
        }
        self.ahead = cluster..cluster + (end - index) as u64;
        self.grow(host);
        Ok(true)
    }

    /// Makes the file long enough for all clusters that are counted ahead: then they can be written directly
    /// as soon as they are used.
    fn grow(&mut self, host: &dyn Host) {
        let wanted = self.ahead.end << self.cluster_bits;
        if host.grows()
            && let Ok(size) = host.size()
            && size < wanted
            && host.resize(wanted).is_ok()
        {
            let before = self.grown.map_or(size, |(before, _)| before);
            self.grown = Some((before, wanted));
        }
    }

    /// Writes all counts that are too low in the file.
    ///
    /// # Errors
    /// The host's.
    pub fn raise(&mut self, host: &dyn Host) -> io::Result<()> {
        self.put(host, |_, used, file| used.max(file))
    }

    /// Writes the library's counts to the file, except of those counted ahead. To be called only when the library
    /// has given all its blocks, and when everything that it wrote is stable.
    ///
    /// # Errors
    /// The host's.
    pub fn lower(&mut self, host: &dyn Host) -> io::Result<()> {
        let ahead = self.ahead.clone();
        self.put(host, |cluster, used, file| {
            if ahead.contains(&cluster) {
                used.max(file)
            } else {
                used
            }
        })
    }

    fn put(&mut self, host: &dyn Host, choose: impl Fn(u64, u64, u64) -> u64) -> io::Result<()> {
        let bits = self.block_bits();
        let mut same = Vec::new();
        for (&offset, view) in &self.views {
            let Some(&number) = self.numbers.get(&offset) else {
                continue;
            };
            let mut old = vec![0; view.len()];
            host.read(&mut old, offset)?;
            let mut new = old.clone();
            if let Some(range) = difference(&old, view) {
                let per_count = |bytes: usize| (bytes * 8) >> self.order;
                for index in per_count(range.start)..per_count(range.end) {
                    let cluster = ((number as u64) << bits) + index as u64;
                    let (used, file) = (get(view, self.order, index), get(&old, self.order, index));
                    if used != file {
                        set(&mut new, self.order, index, choose(cluster, used, file));
                    }
                }
            }
            if let Some(range) = difference(&old, &new) {
                let bytes = new.get(range.clone()).unwrap_or_default();
                host.write(bytes, offset + range.start as u64)?;
            }
            if new == *view {
                same.push(offset);
            }
        }
        for offset in same {
            self.views.remove(&offset);
        }
        Ok(())
    }

    /// Stops counting ahead, as before closing. The rest is [`Counts::lower`]'s.
    pub fn stop_ahead(&mut self) {
        self.ahead = 0..0;
    }

    /// Takes back what the file was made longer and nothing uses. All counts are in the file.
    ///
    /// # Errors
    /// The host's.
    pub fn shrink(&mut self, host: &dyn Host) -> io::Result<()> {
        let Some((before, after)) = self.grown.take() else {
            return Ok(());
        };
        if host.size()? != after {
            return Ok(());
        }
        let mut end = after >> self.cluster_bits;
        let (mut offset, mut block) = (0, Vec::new());
        while end << self.cluster_bits > before {
            let (Some(at), index) = self.place(end - 1) else {
                break;
            };
            if at != offset {
                (offset, block) = (at, self.file_block(host, at)?);
            }
            if get(&block, self.order, index) != 0 {
                break;
            }
            end -= 1;
        }
        host.resize((end << self.cluster_bits).max(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_each_width_keep_to_themselves() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let top = if order == 6 {
                u64::MAX
            } else {
                (1 << (1 << order)) - 1
            };
            let count = (512 * 8) >> order;
            for index in (0..count).step_by(3) {
                set(&mut block, order, index, top);
            }
            for index in 0..count {
                let expected = if index % 3 == 0 { top } else { 0 };
                assert_eq!(get(&block, order, index), expected, "{order} {index}");
            }
            set(&mut block, order, 3, 1);
            assert_eq!(get(&block, order, 3), 1);
        }
        let mut block = [0; 4];
        set(&mut block, 4, 1, 0x1234);
        assert_eq!(block, [0, 0, 0x12, 0x34]);
    }

    #[test]
    fn a_difference_is_in_whole_pieces() {
        let old = vec![0; 4 * PIECE];
        let mut new = old.clone();
        assert_eq!(difference(&old, &new), None);
        new[PIECE + 3] = 1;
        assert_eq!(difference(&old, &new), Some(PIECE..2 * PIECE));
        new[3 * PIECE] = 1;
        assert_eq!(difference(&old, &new), Some(PIECE..4 * PIECE));
    }
}

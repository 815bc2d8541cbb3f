// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is where in an image, and in the files that it stands on.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_blk_core::disk::{self, DiskError};

use crate::disk::Qcow2Disk;
use crate::epoch::Path;
use crate::format::Place;
use crate::image::{Image, broken};
use crate::lane::Lane;
use crate::sync::lock;

/// Where a part of the guest's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Where {
    /// In the image's file, or its external data file, from this byte on, in one piece.
    Data(u64),
    /// Compressed, in the image's file.
    Compressed,
    /// Nowhere, and the image says so: it reads as zeroes.
    Zero,
    /// Nowhere, as no image of the chain has anything there: it reads as zeroes.
    Unallocated,
    /// In the backing file, at the same place.
    Backing,
}

/// A part of the guest's disk that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the guest.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is.
    pub place: Where,
    /// In which file of the chain ([`Qcow2Disk::chain`]): 0 is the image itself.
    pub depth: usize,
}

impl Extent {
    /// Data that is in a file at the same place, as in a raw image.
    pub const fn data(range: Range<u64>, depth: usize) -> Self {
        Self {
            offset: range.start,
            len: range.end - range.start,
            place: Where::Data(range.start),
            depth,
        }
    }

    /// Zeroes, as in a hole of a raw image.
    pub const fn zero(range: Range<u64>, depth: usize) -> Self {
        Self {
            offset: range.start,
            len: range.end - range.start,
            place: Where::Zero,
            depth,
        }
    }

    const fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Takes over what follows, if it is of the same kind and, if it is data, follows in the file.
    fn take_over(&mut self, next: &Self) -> bool {
        let is_one = self.depth == next.depth
            && match (self.place, next.place) {
                (Where::Data(host), Where::Data(next)) => host + self.len == next,
                (place, next) => place == next,
            };
        self.len += if is_one { next.len } else { 0 };
        is_one
    }
}

/// A file of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFile {
    /// Where it is.
    pub path: PathBuf,
    /// It is a raw image, at the end of the chain, and not a qcow2 image.
    pub raw: bool,
    /// The external data file, in which its data is instead.
    pub data_file: Option<PathBuf>,
}

impl ChainFile {
    /// A raw image.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            raw: true,
            data_file: None,
        }
    }
}

/// The files that an image names, as far as it was opened with them.
#[derive(Default)]
pub struct NamedFiles {
    /// The external data file.
    pub data: Option<PathBuf>,
    /// The backing file.
    pub backing: Option<PathBuf>,
    /// The backing file as an image, if it is one.
    pub image: Option<Arc<Qcow2Disk>>,
}

/// Extents that follow each other, of which there may not be more than so many.
struct Extents {
    list: Vec<Extent>,
    most: usize,
    /// A path to the tables of each image of the chain, and its counter of operations there.
    lanes: Vec<(Lane, Arc<Path>)>,
}

impl Extents {
    const fn new(most: usize) -> Self {
        Self {
            list: Vec::new(),
            most: if most == 0 { 1 } else { most },
            lanes: Vec::new(),
        }
    }

    /// The path to the tables of the image at this depth; those above it have theirs.
    fn lane(&mut self, image: &Image, depth: usize) -> Result<(&mut Lane, &Path), DiskError> {
        if self.lanes.len() == depth {
            let path = image.epochs.path();
            self.lanes.push((image.base.medium.lane()?, path));
        }
        let (lane, path) = self.lanes.get_mut(depth).ok_or_else(broken)?;
        Ok((lane, path))
    }

    /// Adds what follows. Whether there was room for it.
    fn push(&mut self, next: Extent) -> bool {
        let last = self.list.last_mut();
        if last.is_some_and(|last| last.take_over(&next)) {
            return true;
        }
        let has_room = self.list.len() < self.most;
        if has_room {
            self.list.push(next);
        }
        has_room
    }
}

impl Image {
    /// The extents of a slice within a part of the guest's disk, by the image's own tables. The caller has entered an epoch:
    /// the table may be given up meanwhile.
    fn extents(
        &self,
        lane: &mut Lane,
        range: Range<u64>,
        depth: usize,
    ) -> Result<Vec<Extent>, DiskError> {
        let geometry = self.base.geometry;
        let mut found = Extents::new(usize::MAX);
        let (number, _) = self.tables.place(range.start >> geometry.cluster_bits);
        let slice = self.tables.slice(number);
        let mut state = lock(&slice.state);
        self.tables.load(lane, &slice, &mut state)?;
        let end = range.end.min((number + 1) * geometry.slice_reach());
        let mut at = range.start;
        while at < end {
            let (_, index) = self.tables.place(at >> geometry.cluster_bits);
            let entry = self.entry(&state, index)?;
            let inside = at & (geometry.cluster() - 1);
            let unit = inside >> geometry.unit_bits();
            let place = match entry.place(geometry, unit as u32, self.base.external) {
                Place::Data(host) => Where::Data(host + (at & (geometry.unit() - 1))),
                Place::Compressed => Where::Compressed,
                Place::Zero => Where::Zero,
                Place::Below => match &self.backing {
                    Some((_, len)) if at < *len => Where::Backing,
                    _ => Where::Unallocated,
                },
            };
            let next = (at - at % geometry.unit()) + geometry.unit();
            found.push(Extent {
                offset: at,
                len: next.min(end) - at,
                place,
                depth,
            });
            at = next.min(end);
        }
        Ok(found.list)
    }

    /// Adds the extents of a part, through the whole chain if `deep`. Whether there was room for all.
    fn collect(
        &self,
        range: Range<u64>,
        depth: usize,
        deep: bool,
        into: &mut Extents,
    ) -> Result<bool, DiskError> {
        let mut at = range.start;
        while at < range.end {
            let (lane, path) = into.lane(self, depth)?;
            let turn = self.epochs.enter(path);
            let found = self.extents(lane, at..range.end, depth);
            path.leave(turn);
            for extent in found? {
                at = extent.end();
                let has_room = match (extent.place, &self.backing) {
                    (Where::Backing, Some((_, len))) if deep => {
                        self.below(extent, (*len).min(at), into)?
                    }
                    _ => into.push(extent),
                };
                if !has_room {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Adds what the backing file, of which the part ends at `end`, has of an extent. Whether there was room for all.
    fn below(&self, extent: Extent, end: u64, into: &mut Extents) -> Result<bool, DiskError> {
        let depth = extent.depth + 1;
        let has_room = match &self.named.image {
            Some(below) => (below.image()?).collect(extent.offset..end, depth, true, into)?,
            None => into.push(Extent::data(extent.offset..end, depth)),
        };
        // It may end within a unit.
        let rest = Extent {
            offset: end,
            len: extent.end() - end,
            place: Where::Unallocated,
            ..extent
        };
        Ok(has_room && (rest.len == 0 || into.push(rest)))
    }
}

impl Qcow2Disk {
    /// What is where by the image's own tables: the extents from byte `offset` of the guest on, at most `most` of them.
    /// Each begins where the one before ends, and the first at `offset`.
    ///
    /// # Errors
    /// The disk is not active; a damaged image; the host's.
    pub fn extents(&self, offset: u64, most: usize) -> Result<Vec<Extent>, DiskError> {
        self.list(offset, most, false)
    }

    /// What is where through the whole chain: as [`Qcow2Disk::extents`], with what the backing files have in place of
    /// [`Where::Backing`].
    ///
    /// # Errors
    /// The disk is not active; a damaged image; the host's.
    pub fn map(&self, offset: u64, most: usize) -> Result<Vec<Extent>, DiskError> {
        self.list(offset, most, true)
    }

    /// What holds data of a range, through the whole chain: [`Disk::extents`](disk::Disk::extents).
    pub(super) fn allocation(
        &self,
        range: Range<u64>,
        most: usize,
    ) -> Result<Vec<disk::Extent>, DiskError> {
        let image = self.image()?;
        if range.end > image.size() {
            return Err(DiskError::OutOfRange);
        }
        let mut found = Extents::new(most);
        image.collect(range, 0, true, &mut found)?;
        let mut extents = disk::Extents::new(most);
        for extent in found.list {
            let allocation = match extent.place {
                Where::Zero | Where::Unallocated => disk::Allocation::Hole,
                Where::Data(_) | Where::Compressed | Where::Backing => disk::Allocation::Data,
            };
            extents.push(extent.len, allocation);
        }
        Ok(extents.into_vec())
    }

    fn list(&self, offset: u64, most: usize, deep: bool) -> Result<Vec<Extent>, DiskError> {
        let image = self.image()?;
        let mut extents = Extents::new(most);
        image.collect(offset..image.size(), 0, deep, &mut extents)?;
        Ok(extents.list)
    }

    /// The files that [`Qcow2Disk::map`] tells of by their place in this list: the image, its backing file, and so on.
    ///
    /// # Errors
    /// The disk is not active.
    pub fn chain(&self) -> Result<Vec<ChainFile>, DiskError> {
        let image = self.image()?;
        let mut chain = vec![ChainFile {
            path: self.path().to_owned(),
            raw: false,
            data_file: image.named.data.clone(),
        }];
        match (&image.named.image, &image.named.backing) {
            (Some(below), _) => chain.extend(below.chain()?),
            (None, Some(path)) => chain.push(ChainFile::raw(path)),
            (None, None) => {}
        }
        Ok(chain)
    }
}

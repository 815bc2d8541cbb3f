// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is where in an image.

use virtio_blk_core::disk::DiskError;

use crate::format::Place;
use crate::image::Image;
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
    /// Nowhere: it reads as zeroes.
    Zero,
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
}

impl Extent {
    /// Whether `next`, which follows, is of the same kind and, if it is data, follows in the file.
    fn goes_on(&self, next: Where) -> bool {
        match (self.place, next) {
            (Where::Data(host), Where::Data(next)) => host + self.len == next,
            (place, next) => place == next,
        }
    }
}

impl Image {
    /// The extents from `offset` on, at most `most` of them. They follow each other up to the end of the disk or of
    /// the last one.
    ///
    /// # Errors
    /// The disk's; a damaged image.
    pub fn extents(
        &self,
        lane: &mut Lane,
        offset: u64,
        most: usize,
    ) -> Result<Vec<Extent>, DiskError> {
        let geometry = self.base.geometry;
        let (unit, size) = (geometry.unit(), self.size());
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset - offset % unit;
        while at < size {
            let (number, _) = self.tables.place(at >> geometry.cluster_bits);
            let slice = self.tables.slice(number);
            let mut state = lock(&slice.state);
            self.tables.load(lane, &slice, &mut state)?;
            let end = size.min((number + 1) * geometry.slice_reach());
            while at < end {
                let cluster = at >> geometry.cluster_bits;
                let (_, index) = self.tables.place(cluster);
                let entry = self.entry(&state, index)?;
                let inside = (at & (geometry.cluster() - 1)) >> geometry.unit_bits();
                let place = match self.place(entry, cluster, inside as u32) {
                    Place::Data(host) => Where::Data(host),
                    Place::Compressed => Where::Compressed,
                    Place::Zero => Where::Zero,
                    Place::Below => Where::Backing,
                };
                let len = unit.min(size - at);
                let is_full = extents.len() == most;
                match extents.last_mut() {
                    Some(last) if last.goes_on(place) => last.len += len,
                    _ if is_full => return Ok(extents),
                    _ => extents.push(Extent {
                        offset: at,
                        len,
                        place,
                    }),
                }
                at += len;
            }
        }
        Ok(extents)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where clusters are in the file, as far as a queue remembers.

use super::image::Extent;

/// Most clusters that a queue remembers: 1 MiB.
const MAX_PLACES: u64 = 1 << 16;

/// A cluster's number, from 1 on, and its first byte in the file.
#[derive(Clone, Copy, Default)]
struct Place {
    cluster: u64,
    host: u64,
}

/// Where clusters are in the file. Each has one place where it can be remembered, so that the next one
/// that belongs there replaces it.
pub(super) struct Map {
    places: Vec<Place>,
    cluster_bits: u32,
    generation: u64,
}

impl Map {
    /// For a disk of `size` bytes.
    pub fn new(size: u64, cluster_bits: u32) -> Self {
        let clusters = size.div_ceil(1 << cluster_bits);
        let count = clusters.clamp(1, MAX_PLACES).next_power_of_two();
        Self {
            places: vec![Place::default(); usize::try_from(count).unwrap_or(1)],
            cluster_bits,
            generation: 0,
        }
    }

    /// Where `len` bytes at `offset` of the guest are, if they are in one piece and nothing has changed
    /// since that was learned.
    #[inline]
    pub fn find(&mut self, offset: u64, len: usize, generation: u64) -> Option<u64> {
        if self.generation != generation {
            self.places.fill(Place::default());
            self.generation = generation;
        }
        let first = offset >> self.cluster_bits;
        let last = (offset + len as u64).checked_sub(1)? >> self.cluster_bits;
        let start = self.place(first)?;
        for cluster in first + 1..=last {
            if self.place(cluster)? != start + ((cluster - first) << self.cluster_bits) {
                return None;
            }
        }
        Some(start + (offset & ((1 << self.cluster_bits) - 1)))
    }

    #[inline]
    fn place(&self, cluster: u64) -> Option<u64> {
        let place = self
            .places
            .get(cluster as usize & (self.places.len() - 1))?;
        (place.cluster == cluster + 1).then_some(place.host)
    }

    /// Remembers an extent, if it is as recent as what is known.
    pub fn learn(&mut self, extent: &Extent) {
        if extent.generation != self.generation {
            return;
        }
        let mask = self.places.len() - 1;
        for index in 0..extent.count.min(self.places.len() as u64) {
            let cluster = extent.cluster + index;
            if let Some(place) = self.places.get_mut(cluster as usize & mask) {
                *place = Place {
                    cluster: cluster + 1,
                    host: extent.host + (index << self.cluster_bits),
                };
            }
        }
    }
}

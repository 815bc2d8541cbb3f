// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking clusters from the tables: what discards and write-zeroes do to entries.

use virtio_blk_core::disk::DiskError;

use crate::format::{Entry, Place};
use crate::grant::Granted;
use crate::image::{Image, Way, broken};
use crate::medium::{MetaIo, Put};
use crate::refcounts::Run;
use crate::slice::{Slice, State};

/// How far clusters are erased.
#[derive(Debug)]
pub enum Erased {
    /// So many are done.
    Clusters(u64),
    /// The first one is being copied.
    Transit,
    /// The slice's table is shared with a snapshot.
    Shared,
    /// The slice has no table, and none is there for it.
    Want,
    /// Metadata can't be written in this way: on a thread that may wait.
    Later,
}

/// Whole clusters of the guest whose entries are in one slice.
#[derive(Clone, Copy, Debug)]
pub struct Clusters {
    /// The entry of the first one in the slice.
    pub index: usize,
    /// The first one's number.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Image {
    /// Whether clusters are nowhere and read as zeroes, so that erasing them changes nothing; `state` is that of their
    /// slice, which is loaded.
    pub fn is_erased(&self, state: &State, clusters: Clusters) -> bool {
        (0..clusters.count).all(|number| {
            let index = clusters.index + number as usize;
            let cluster = clusters.first + number;
            let whole = self.units(0, self.base.geometry.cluster());
            !state.in_transit(index)
                && (self.entry(state, index))
                    .is_ok_and(|entry| self.way(entry, cluster, whole) == Way::Fresh)
        })
    }

    /// Has clusters read as zeroes by their entries; `slice` is locked and loaded. What they referred to is retired.
    /// `keeps`: what has a place keeps it, and that place is added to `in_place`, to be made zero there.
    ///
    /// # Errors
    /// The disk's; a damaged image. Then nothing is changed.
    pub fn erase(
        &self,
        io: &mut dyn MetaIo,
        slice: &Slice,
        state: &mut State,
        clusters: Clusters,
        keeps: bool,
        in_place: &mut Vec<u64>,
    ) -> Result<Erased, DiskError> {
        let geometry = self.base.geometry;
        let all = if geometry.extended { u32::MAX } else { 1 };
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        let mut done = 0;
        for offset in 0..clusters.count {
            let (index, cluster) = (clusters.index + offset as usize, clusters.first + offset);
            if state.in_transit(index) {
                if done == 0 {
                    return Ok(Erased::Transit);
                }
                break;
            }
            done += 1;
            let entry = self.entry(state, index)?;
            match self.way(entry, cluster, all) {
                Way::InPlace(host) if keeps => {
                    in_place.push(host);
                    continue;
                }
                // Nothing is there.
                Way::Fresh => continue,
                Way::InPlace(_) | Way::Copy => {}
            }
            let below = self.place(Entry::BELOW, cluster, 0) == Place::Below;
            let new = if below {
                Entry::zero(geometry)
            } else {
                Entry::BELOW
            };
            if self.base.external {
                // A data file may have to be the guest's disk byte for byte.
                in_place.push(cluster << geometry.cluster_bits);
            }
            if entry != new {
                gone.extend(self.clusters_of(entry));
                changes.push((index, cluster, new));
            }
        }
        if changes.is_empty() {
            return Ok(Erased::Clusters(done));
        }
        match self.table(io, slice, state)? {
            None => {}
            Some(Granted::Shared) => return Ok(Erased::Shared),
            Some(Granted::Want(_)) => return Ok(Erased::Want),
            Some(Granted::Busy | Granted::Later) => return Ok(Erased::Later),
            Some(_) => return Err(broken()),
        }
        let entries: Vec<(usize, Entry)> = changes
            .iter()
            .map(|(index, _, new)| (*index, *new))
            .collect();
        match self.tables.store(io, slice, state, &entries) {
            Put::Done => {}
            Put::Failed(error) => return Err(error),
            Put::Later => return Ok(Erased::Later),
        }
        for (_, cluster, new) in &changes {
            self.learn(*new, *cluster);
        }
        self.retire(merged(gone));
        Ok(Erased::Clusters(done))
    }
}

/// Runs that follow each other become one.
fn merged(runs: Vec<Run>) -> Vec<Run> {
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.first + last.count == run.first => last.count += run.count,
            _ => merged.push(run),
        }
    }
    merged
}

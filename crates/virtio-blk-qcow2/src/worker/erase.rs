// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Discards and write-zeroes.

use std::sync::Arc;

use virtio_blk_core::disk::DiskError;

use super::write::Progress;
use super::{Source, Step, Updates, Worker};
use crate::erase::{Clusters, Erased};
use crate::format::Entry;
use crate::grant::Granted;
use crate::image::broken;
use crate::job::Job;
use crate::medium::Put;
use crate::slice::Slice;
use crate::sync::lock;

/// What is to be done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Its content is no longer needed. Parts of clusters are left alone.
    Discard,
    /// It reads as zeroes afterwards.
    Zero {
        /// Its space may be given back.
        unmap: bool,
    },
}

/// What became of subclusters that are made zero.
enum Zeroed {
    /// They are.
    Done,
    /// Their cluster is being copied.
    Transit,
    /// Their cluster is compressed.
    Compressed,
    /// Their table is shared with a snapshot.
    Shared,
    /// There is no table, and no cluster for one.
    Want,
}

impl Worker {
    /// Erases what is left of a job's range.
    pub(super) fn erase(
        &mut self,
        mut job: Job,
        offset: u64,
        len: u64,
        how: How,
        updates: &mut Updates,
    ) -> Step {
        while job.done < len {
            // As much as a table may take a while, and its queue waits for that when it is dropped.
            if job.is_unwanted() {
                return Err((job, DiskError::Cancelled));
            }
            if let Err(error) = self.image.desk.await_room() {
                return Err((job, error));
            }
            match self.erase_some(offset + job.done, len - job.done, how, updates) {
                Ok(Progress::Wrote(len)) => job.done += len,
                Ok(Progress::Transit(slice, index)) => {
                    return self.wait_for(job, &slice, index, updates);
                }
                Ok(Progress::Short) => return Ok(Some(job)),
                Err(error) => return Err((job, error)),
            }
        }
        job.last = true;
        Ok(Some(job))
    }

    fn erase_some(
        &mut self,
        at: u64,
        left: u64,
        how: How,
        updates: &mut Updates,
    ) -> Result<Progress, DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let cluster = geometry.cluster();
        let inside = at & (cluster - 1);
        // The guest can't reach what is behind the end in the last cluster.
        let to_the_end = at + left == image.size();
        let whole = match left / cluster {
            0 if to_the_end => 1,
            count if to_the_end => left.div_ceil(cluster).max(count),
            count => count,
        };
        if inside != 0 || whole == 0 {
            let part = left.min(cluster - inside);
            let unit = geometry.unit();
            let by_units = geometry.extended && !image.base.external;
            if by_units && at.is_multiple_of(unit) && part >= unit {
                return self.zero_units(at, part - part % unit, updates);
            }
            // Up to the next unit.
            let part = part.min(unit - at % unit);
            return match how {
                How::Discard => Ok(Progress::Wrote(part)),
                How::Zero { .. } => self.zero_part(at, part, updates),
            };
        }
        let first = at >> geometry.cluster_bits;
        let (number, index) = image.tables.place(first);
        let in_slice = geometry.slice_entries() - index as u64;
        let count = whole.min(in_slice);
        let slice = image.tables.slice(number);
        let turn = image.epochs.enter(&self.path);
        let clusters = Clusters {
            index,
            first,
            count,
        };
        let erased = self.erase_clusters(&slice, clusters, how);
        self.path.leave(turn);
        // What takes a while comes before another look: the last cluster may be no more the last one then.
        let goes_on = match erased? {
            Erased::Clusters(count) => return Ok(Progress::Wrote((count * cluster).min(left))),
            Erased::Transit => return Ok(Progress::Transit(slice, index)),
            Erased::Shared => self.unshare(number, updates)?,
            Erased::Want => self.await_clusters(1, updates)?,
            // A lane waits.
            Erased::Later => return Err(broken()),
        };
        Ok(match goes_on {
            true => Progress::Wrote(0),
            false => Progress::Short,
        })
    }

    /// Makes a part of a cluster zero.
    fn zero_part(
        &mut self,
        at: u64,
        len: u64,
        updates: &mut Updates,
    ) -> Result<Progress, DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let cluster = at >> geometry.cluster_bits;
        let (number, index) = image.tables.place(cluster);
        let slice = image.tables.slice(number);
        let turn = image.epochs.enter(&self.path);
        let looked = self.look(&slice, index);
        self.path.leave(turn);
        let Some(entry) = looked? else {
            return Ok(Progress::Transit(slice, index));
        };
        let mask = image.units(at & (geometry.cluster() - 1), len);
        if image.is_zero(entry, cluster, mask) {
            return Ok(Progress::Wrote(len));
        }
        self.write_some(Source::Zeroes, at, len, updates)
    }

    /// An entry of a slice; `None` while its cluster is being copied. It has entered an epoch.
    fn look(&mut self, slice: &Slice, index: usize) -> Result<Option<Entry>, DiskError> {
        let image = &self.image;
        let mut state = lock(&slice.state);
        image.tables.load(&mut self.lane, slice, &mut state)?;
        match state.in_transit(index) {
            true => Ok(None),
            false => image.entry(&state, index).map(Some),
        }
    }

    /// Makes whole subclusters of a cluster zero. Their space, if they have any, stays with the others.
    fn zero_units(
        &mut self,
        at: u64,
        len: u64,
        updates: &mut Updates,
    ) -> Result<Progress, DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let cluster = at >> geometry.cluster_bits;
        let (number, index) = image.tables.place(cluster);
        let mask = image.units(at & (geometry.cluster() - 1), len);
        let slice = image.tables.slice(number);
        loop {
            let turn = image.epochs.enter(&self.path);
            let zeroed = self.zero_in(&slice, index, cluster, mask);
            self.path.leave(turn);
            let goes_on = match zeroed? {
                Zeroed::Done => return Ok(Progress::Wrote(len)),
                Zeroed::Transit => return Ok(Progress::Transit(slice, index)),
                Zeroed::Compressed => return self.write_some(Source::Zeroes, at, len, updates),
                Zeroed::Shared => self.unshare(number, updates)?,
                Zeroed::Want => self.await_clusters(1, updates)?,
            };
            if !goes_on {
                return Ok(Progress::Short);
            }
        }
    }

    /// Makes the subclusters `mask` of a cluster zero by its entry. It has entered an epoch.
    fn zero_in(
        &mut self,
        slice: &Slice,
        index: usize,
        cluster: u64,
        mask: u32,
    ) -> Result<Zeroed, DiskError> {
        let image = self.image.clone();
        let mut state = lock(&slice.state);
        image.tables.load(&mut self.lane, slice, &mut state)?;
        if state.in_transit(index) {
            return Ok(Zeroed::Transit);
        }
        let entry = image.entry(&state, index)?;
        if entry.is_compressed() {
            return Ok(Zeroed::Compressed);
        }
        if image.is_zero(entry, cluster, mask) {
            return Ok(Zeroed::Done);
        }
        match image.table(&mut self.lane, slice, &mut state)? {
            None => {}
            Some(Granted::Shared) => return Ok(Zeroed::Shared),
            Some(Granted::Want(_)) => return Ok(Zeroed::Want),
            Some(_) => return Err(broken()),
        }
        let new = entry.with_zeroes(mask);
        match (image.tables).store(&mut self.lane, slice, &mut state, &[(index, new)]) {
            Put::Done => {
                image.learn(new, cluster);
                Ok(Zeroed::Done)
            }
            Put::Failed(error) => Err(error),
            Put::Later => Err(broken()),
        }
    }

    /// Erases whole clusters of a slice.
    fn erase_clusters(
        &mut self,
        slice: &Arc<Slice>,
        clusters: Clusters,
        how: How,
    ) -> Result<Erased, DiskError> {
        let image = self.image.clone();
        let mut state = lock(&slice.state);
        image.tables.load(&mut self.lane, slice, &mut state)?;
        let keeps = image.base.external || how == How::Zero { unmap: false };
        let mut in_place = Vec::new();
        let erased = image.erase(
            &mut self.lane,
            slice,
            &mut state,
            clusters,
            keeps,
            &mut in_place,
        )?;
        drop(state);
        let unmap = image.base.external && how != How::Zero { unmap: false };
        for host in in_place {
            // A data file may end within its last cluster.
            let len = (image.base.geometry.cluster()).min(image.data.len().saturating_sub(host));
            self.data().zero(host, len, unmap)?;
        }
        Ok(erased)
    }
}

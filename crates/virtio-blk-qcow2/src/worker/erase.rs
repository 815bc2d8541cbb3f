// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Discards and write-zeroes.

use std::sync::Arc;

use virtio_blk_core::disk::DiskError;

use super::write::Progress;
use super::{Source, Step, Updates, Worker};
use crate::format::{Entry, Place};
use crate::grant::Granted;
use crate::image::{Way, broken};
use crate::job::Job;
use crate::medium::Put;
use crate::refcounts::Run;
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

/// How far the clusters of a slice are erased.
enum Erased {
    /// So many are done.
    Clusters(u64),
    /// The first one is being copied.
    Transit,
    /// The slice's table is shared with a snapshot.
    Shared,
    /// The slice has no table, and none is there for it.
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
        let erased = self.erase_clusters(&slice, index, first, count, how);
        self.path.leave(turn);
        // What takes a while comes before another look: the last cluster may be no more the last one then.
        match erased? {
            Erased::Clusters(count) => return Ok(Progress::Wrote((count * cluster).min(left))),
            Erased::Transit => return Ok(Progress::Transit(slice, index)),
            Erased::Shared => self.unshare(number)?,
            Erased::Want => image.await_clusters(1)?,
        }
        Ok(Progress::Wrote(0))
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
        {
            let mut state = lock(&slice.state);
            image.tables.load(&mut self.lane, &slice, &mut state)?;
            if state.in_transit(index) {
                return Ok(Progress::Transit(slice.clone(), index));
            }
            let entry = image.entry(&state, index)?;
            let mask = image.units(at & (geometry.cluster() - 1), len);
            if image.is_zero(entry, cluster, mask) {
                return Ok(Progress::Wrote(len));
            }
        }
        self.write_some(Source::Zeroes, at, len, updates)
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
            let mut state = lock(&slice.state);
            image.tables.load(&mut self.lane, &slice, &mut state)?;
            if state.in_transit(index) {
                drop(state);
                return Ok(Progress::Transit(slice, index));
            }
            let entry = image.entry(&state, index)?;
            if entry.is_compressed() {
                drop(state);
                return self.write_some(Source::Zeroes, at, len, updates);
            }
            let new = entry.with_zeroes(mask);
            if image.is_zero(entry, cluster, mask) {
                return Ok(Progress::Wrote(len));
            }
            match image.table(&mut self.lane, &slice, &mut state)? {
                None => {}
                Some(Granted::Shared) => {
                    drop(state);
                    self.unshare(number)?;
                    continue;
                }
                Some(Granted::Want(want)) => {
                    drop(state);
                    image.await_clusters(want)?;
                    continue;
                }
                Some(_) => return Err(broken()),
            }
            let put = (image.tables).store(&mut self.lane, &slice, &mut state, &[(index, new)]);
            return match put {
                Put::Done => {
                    image.learn(new, cluster);
                    Ok(Progress::Wrote(len))
                }
                Put::Failed(error) => Err(error),
                Put::Later => Err(broken()),
            };
        }
    }

    /// Erases whole clusters of a slice.
    fn erase_clusters(
        &mut self,
        slice: &Arc<Slice>,
        index: usize,
        first: u64,
        count: u64,
        how: How,
    ) -> Result<Erased, DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let mut state = lock(&slice.state);
        image.tables.load(&mut self.lane, slice, &mut state)?;
        let keeps = image.base.external || how == How::Zero { unmap: false };
        let all = if geometry.extended { u32::MAX } else { 1 };
        let (mut changes, mut in_place, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let mut done = 0;
        for offset in 0..count {
            let (index, cluster) = (index + offset as usize, first + offset);
            if state.in_transit(index) {
                if done == 0 {
                    return Ok(Erased::Transit);
                }
                break;
            }
            done += 1;
            let entry = image.entry(&state, index)?;
            match image.way(entry, cluster, all) {
                Way::InPlace(host) if keeps => {
                    in_place.push(host);
                    continue;
                }
                // Nothing is there.
                Way::Fresh => continue,
                Way::InPlace(_) | Way::Copy => {}
            }
            let below = image.place(Entry::BELOW, cluster, 0) == Place::Below;
            let new = if below {
                Entry::zero(geometry)
            } else {
                Entry::BELOW
            };
            if image.base.external {
                // A data file may have to be the guest's disk byte for byte.
                in_place.push(cluster << geometry.cluster_bits);
            }
            if entry != new {
                gone.extend(image.clusters_of(entry));
                changes.push((index, cluster, new));
            }
        }
        if !changes.is_empty() {
            match image.table(&mut self.lane, slice, &mut state)? {
                None => {}
                Some(Granted::Shared) => return Ok(Erased::Shared),
                Some(Granted::Want(_)) => return Ok(Erased::Want),
                Some(_) => return Err(broken()),
            }
            let entries: Vec<(usize, Entry)> = changes
                .iter()
                .map(|(index, _, new)| (*index, *new))
                .collect();
            match image
                .tables
                .store(&mut self.lane, slice, &mut state, &entries)
            {
                Put::Done => {}
                Put::Failed(error) => return Err(error),
                Put::Later => return Err(broken()),
            }
            for (_, cluster, new) in &changes {
                image.learn(*new, *cluster);
            }
            image.retire(merged(gone));
        }
        drop(state);
        let unmap = image.base.external && how != How::Zero { unmap: false };
        for host in in_place {
            // A data file may end within its last cluster.
            let len = geometry
                .cluster()
                .min(image.data.len().saturating_sub(host));
            self.data().zero(host, len, unmap)?;
        }
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

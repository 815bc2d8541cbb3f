// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes that a queue could not finish by itself.

use std::sync::Arc;

use virtio_blk_core::disk::DiskError;

use super::{Source, Step, Updates, Worker, source};
use crate::base::EFAULT;
use crate::format::Place;
use crate::grant::{Granted, Target};
use crate::image::broken;
use crate::job::Job;
use crate::refcounts::Run;
use crate::slice::{Slice, State};
use crate::sync::lock;

/// How far a write has come.
pub(super) enum Progress {
    /// So many bytes are done, or will be with the updates.
    Wrote(u64),
    /// Its first cluster is being copied, by somebody else or for an earlier part of the same operation.
    Transit(Arc<Slice>, usize),
    /// Clusters are missing. What the updates so far give up comes first: it may be what is missing.
    Short,
}

/// What has to be done outside of everything before a write continues.
enum Next {
    Is(Progress),
    Unshare,
    Wait(u64),
}

/// Where an operation's data is, piece by piece.
type Pieces = Vec<(u64, u64)>;

impl Worker {
    /// Writes what is left of a job.
    pub(super) fn write(&mut self, mut job: Job, offset: u64, updates: &mut Updates) -> Step {
        let total = job.op().buf.len() as u64;
        while job.done < total {
            // Copies give places up.
            if let Err(error) = self.image.desk.await_room() {
                return Err((job, error));
            }
            let rest = source(job.op()).from(job.done as usize);
            match self.write_some(rest, offset + job.done, total - job.done, updates) {
                Ok(Progress::Wrote(len)) => job.done += len,
                Ok(Progress::Transit(slice, index)) => {
                    return self.wait_for(job, &slice, index, updates);
                }
                Ok(Progress::Short) => return Ok(Some(job)),
                Err(error) => return Err((job, error)),
            }
        }
        if !job.op().buf.is_intact() {
            return Err((job, DiskError::from_errno(EFAULT)));
        }
        job.last = true;
        Ok(Some(job))
    }

    /// Resumes a job when a copy is over.
    pub(super) fn wait_for(
        &mut self,
        job: Job,
        slice: &Slice,
        index: usize,
        updates: &Updates,
    ) -> Step {
        if !updates.is_empty() {
            // Others wait for these, perhaps the one that this waits for.
            return Ok(Some(job));
        }
        Ok(lock(&slice.state).park(index, job))
    }

    /// Writes a part of `len` bytes at `offset` of the guest.
    pub(super) fn write_some(
        &mut self,
        source: Source<'_>,
        offset: u64,
        len: u64,
        updates: &mut Updates,
    ) -> Result<Progress, DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let (number, index) = image.tables.place(offset >> geometry.cluster_bits);
        let end = (number + 1) * geometry.slice_reach();
        let target = Target {
            offset,
            len: len.min(end - offset),
            index,
        };
        let slice = image.tables.slice(number);
        loop {
            let turn = image.epochs.enter(&self.path);
            let next = self.write_in(&slice, target, source, updates);
            self.path.leave(turn);
            let goes_on = match next? {
                Next::Is(progress) => return Ok(progress),
                Next::Wait(want) => self.await_clusters(want, updates)?,
                Next::Unshare => self.unshare(number, updates)?,
            };
            if !goes_on {
                return Ok(Progress::Short);
            }
        }
    }

    /// Waits for clusters that are ready for use, unless the operation has updates that may give some up. Whether it waited.
    /// It must not have entered an epoch: what is retired may wait for the end of that.
    ///
    /// # Errors
    /// There are none to be had.
    pub(super) fn await_clusters(&self, want: u64, updates: &Updates) -> Result<bool, DiskError> {
        if updates.is_empty() {
            self.image.await_clusters(want)?;
        }
        Ok(updates.is_empty())
    }

    /// Writes a part of what is to be written in a slice.
    fn write_in(
        &mut self,
        slice: &Arc<Slice>,
        target: Target,
        source: Source<'_>,
        updates: &mut Updates,
    ) -> Result<Next, DiskError> {
        let image = self.image.clone();
        let mut state = lock(&slice.state);
        image.tables.load(&mut self.lane, slice, &mut state)?;
        let granted = image.grant(&mut self.lane, slice, &mut state, target)?;
        Ok(match granted {
            Granted::Ready(len) => {
                let pieces = self.pieces(&state, Target { len, ..target })?;
                drop(state);
                let mut done = 0;
                for (host, len) in pieces {
                    self.write_data(host, source.from(done), len)?;
                    done += len as usize;
                }
                Next::Is(Progress::Wrote(len))
            }
            Granted::Transit => {
                let waits = (slice.clone(), target.index);
                Next::Is(Progress::Transit(waits.0, waits.1))
            }
            Granted::Copy => {
                let entry = image.entry(&state, target.index)?;
                // Not waited for here, in an epoch.
                let place = match image.is_copied_in_place(entry) {
                    true => None,
                    false => match image.take(1).and_then(|runs| runs.first().copied()) {
                        Some(run) => Some(run),
                        None => return Ok(Next::Wait(1)),
                    },
                };
                state.begin_transit(target.index);
                drop(state);
                match self.copy_up(slice, target, entry, source, place) {
                    Ok((update, len)) => {
                        updates.push(update);
                        Next::Is(Progress::Wrote(len))
                    }
                    Err(error) => {
                        let waiting = lock(&slice.state).end_transit(target.index);
                        self.line.put_all(waiting);
                        return Err(error);
                    }
                }
            }
            Granted::Shared => Next::Unshare,
            Granted::Want(want) => Next::Wait(want),
            // A lane waits.
            Granted::Busy | Granted::Later => return Err(broken()),
        })
    }

    /// Where the bytes are that have been granted: places in the file and lengths.
    fn pieces(&self, state: &State, target: Target) -> Result<Pieces, DiskError> {
        let image = &self.image;
        let geometry = image.base.geometry;
        let mut pieces: Pieces = Vec::new();
        let (mut at, end) = (target.offset, target.offset + target.len);
        while at < end {
            let cluster = at >> geometry.cluster_bits;
            let first = target.offset >> geometry.cluster_bits;
            let entry = image.entry(state, target.index + (cluster - first) as usize)?;
            let inside = at & (geometry.cluster() - 1);
            let len = (geometry.cluster() - inside).min(end - at);
            let unit = (inside >> geometry.unit_bits()) as u32;
            let Place::Data(_) = image.place(entry, cluster, unit) else {
                return Err(broken());
            };
            let host = entry.host(image.base.external).ok_or_else(broken)? + inside;
            match pieces.last_mut() {
                Some((first, sum)) if *first + *sum == host => *sum += len,
                _ => pieces.push((host, len)),
            }
            at += len;
        }
        Ok(pieces)
    }

    /// Writes to a place of the file.
    fn write_data(&mut self, host: u64, source: Source<'_>, len: u64) -> Result<(), DiskError> {
        match source {
            Source::Buffer(buf, at) => self.data().write_from(host, buf, at, len as usize),
            Source::Zeroes => self.data().zero(host, len, false),
        }
    }

    /// Gives a slice whose table is shared with a snapshot a table of its own, or waits for a cluster for it. Whether the
    /// operation continues: else it has updates that may give one up.
    pub(super) fn unshare(&mut self, slice: u64, updates: &Updates) -> Result<bool, DiskError> {
        let image = self.image.clone();
        let bits = image.base.geometry.cluster_bits;
        if !image.tables.is_shared(slice) {
            // Somebody else was quicker, before this needs a cluster.
            return Ok(true);
        }
        let Some(mine) = image.take(1).and_then(|runs| runs.first().copied()) else {
            return self.await_clusters(1, updates);
        };
        match image
            .tables
            .unshare(&mut self.lane, slice, mine.first << bits)
        {
            Ok(Some(old)) => {
                let first = old >> bits;
                image.retire([Run { first, count: 1 }]);
                Ok(true)
            }
            // Somebody else was quicker.
            Ok(None) => {
                image.reserve.put_back(mine);
                Ok(true)
            }
            Err(error) => {
                image.retire([mine]);
                Err(error)
            }
        }
    }
}

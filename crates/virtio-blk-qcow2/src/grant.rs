// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Places for new data: clusters that read as zeroes get one in the file, without a wait where that is possible.

use virtio_blk_core::disk::DiskError;

use crate::format::Entry;
use crate::image::{Image, Way};
use crate::medium::{MetaIo, Put};
use crate::refcounts::Run;
use crate::slice::{Slice, State};
use crate::tables::Tables;

/// Most clusters that get a place in one go.
const MAX_GRANT: u64 = 64;

/// How far a write has come.
#[derive(Debug)]
pub enum Granted {
    /// So many bytes of it, at least one, have a place where they can be written.
    Ready(u64),
    /// Its first cluster has to be copied up first.
    Copy,
    /// Its first cluster is being copied.
    Transit,
    /// Its slice's table is shared with a snapshot.
    Shared,
    /// So many clusters are wanted, and not there.
    Want(u64),
    /// Somebody else changes the L1 table: on a thread that may wait.
    Busy,
    /// Metadata can't be written in this way: on a thread that may wait.
    Later,
}

/// A write to a slice.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// First byte of the guest.
    pub offset: u64,
    /// Bytes, within the slice's reach.
    pub len: u64,
    /// The entry of the first cluster in the slice.
    pub index: usize,
}

/// An entry that is to refer to a cluster of the reserve.
#[derive(Debug)]
pub struct Change {
    /// Which entry of the slice.
    pub index: usize,
    /// The guest's cluster.
    pub cluster: u64,
    /// First byte of the cluster in the file.
    pub host: u64,
    /// The new entry.
    pub entry: Entry,
}

/// Entries of a slice that are being collected, to be written at once.
#[derive(Debug, Default)]
pub struct Granting {
    /// The entries. Their clusters are in transit.
    pub changes: Vec<Change>,
}

/// Where a write goes: a byte of the file.
#[derive(Debug)]
pub enum Spot {
    /// The entry is there.
    Placed(u64),
    /// The entry is among those that are being collected.
    New(u64),
    /// The entry is being written, for the grant with this number.
    Joined(u64, usize),
}

impl Image {
    /// The number of the slice that has the entry of the guest's byte `offset`.
    pub fn slice_of(&self, offset: u64) -> u64 {
        (self.tables.place(offset >> self.base.geometry.cluster_bits)).0
    }

    /// Where `len` bytes at `offset` can be written, if that takes no copy and no wait; `state` is that of their slice,
    /// which is writable. Clusters that read as zeroes get a place: their entries are added to `granting`. `in_flight`
    /// tells the grant of a cluster whose entry is being written, and its place.
    pub fn spot(
        &self,
        state: &mut State,
        offset: u64,
        len: u64,
        granting: &mut Granting,
        in_flight: &dyn Fn(u64) -> Option<(usize, u64)>,
    ) -> Option<Spot> {
        let geometry = self.base.geometry;
        let (first, inside) = (
            offset >> geometry.cluster_bits,
            offset & (geometry.cluster() - 1),
        );
        let count = ((offset + len.max(1) - 1) >> geometry.cluster_bits) - first + 1;
        let (_, index) = self.tables.place(first);
        if count == 1 {
            if state.in_transit(index) {
                let host = state.granted(index)?;
                if granting.changes.iter().any(|change| change.host == host) {
                    return Some(Spot::New(host + inside));
                }
                let (grant, known) = in_flight(first)?;
                // Another queue may have been granted it since.
                return (known == host).then_some(Spot::Joined(host + inside, grant));
            }
            let entry = self.entry(state, index).ok()?;
            match self.way(entry, first, self.units(inside, len)) {
                Way::InPlace(host) => {
                    self.learn(entry, first);
                    return Some(Spot::Placed(host + inside));
                }
                Way::Copy => return None,
                Way::Fresh => {}
            }
        }
        let whole = self.units(0, geometry.cluster());
        let is_fresh = |number: u64| {
            let index = index + number as usize;
            let fresh = |entry| self.way(entry, first + number, whole) == Way::Fresh;
            !state.in_transit(index) && self.entry(state, index).is_ok_and(fresh)
        };
        if count > MAX_GRANT || !(0..count).all(is_fresh) {
            return None;
        }
        let taken = self.take(count)?;
        let [run] = taken[..] else {
            taken.into_iter().for_each(|run| self.reserve.put_back(run));
            return None;
        };
        for number in 0..count {
            let host = (run.first + number) << geometry.cluster_bits;
            let index = index + number as usize;
            state.begin_grant(index, host);
            granting.changes.push(Change {
                index,
                cluster: first + number,
                host,
                entry: Entry::data(geometry, host),
            });
        }
        Some(Spot::New((run.first << geometry.cluster_bits) + inside))
    }

    /// Has as many bytes as possible of a write have a place in the file: `slice` is locked and loaded.
    ///
    /// A cluster that reads as zeroes gets a place that reads as zeroes, so that the order in which its entry and the
    /// data come into the file does not matter.
    ///
    /// # Errors
    /// The disk's; a damaged image. What has a place then reads as before.
    pub fn grant(
        &self,
        io: &mut dyn MetaIo,
        slice: &Slice,
        state: &mut State,
        target: Target,
    ) -> Result<Granted, DiskError> {
        let geometry = self.base.geometry;
        let first = target.offset >> geometry.cluster_bits;
        let last = (target.offset + target.len - 1) >> geometry.cluster_bits;
        let mut fresh = Vec::new();
        let mut ready = 0;
        for cluster in first..=last {
            let index = target.index + (cluster - first) as usize;
            let begin = target.offset.max(cluster << geometry.cluster_bits);
            let end = (target.offset + target.len).min((cluster + 1) << geometry.cluster_bits);
            let stop = if state.in_transit(index) {
                Some(Granted::Transit)
            } else {
                let entry = self.entry(state, index)?;
                let inside = begin & (geometry.cluster() - 1);
                match self.way(entry, cluster, self.units(inside, end - begin)) {
                    Way::InPlace(_) => {
                        self.learn(entry, cluster);
                        None
                    }
                    Way::Fresh if fresh.len() as u64 == MAX_GRANT => break,
                    Way::Fresh => {
                        fresh.push((index, cluster));
                        None
                    }
                    Way::Copy => Some(Granted::Copy),
                }
            };
            match stop {
                Some(Granted::Copy) if ready == 0 => {
                    return Ok(self.table(io, slice, state)?.unwrap_or(Granted::Copy));
                }
                Some(stop) if ready == 0 => return Ok(stop),
                Some(_) => break,
                None => ready += end - begin,
            }
        }
        if fresh.is_empty() {
            return Ok(Granted::Ready(ready));
        }
        match self.place_fresh(io, slice, state, &fresh)? {
            None => Ok(Granted::Ready(ready)),
            Some(other) => Ok(other),
        }
    }

    /// Gives clusters a place. `None`: they have one.
    fn place_fresh(
        &self,
        io: &mut dyn MetaIo,
        slice: &Slice,
        state: &mut State,
        fresh: &[(usize, u64)],
    ) -> Result<Option<Granted>, DiskError> {
        let geometry = self.base.geometry;
        if let Some(other) = self.table(io, slice, state)? {
            return Ok(Some(other));
        }
        let want = fresh.len() as u64;
        let Some(mut runs) = self.take(want) else {
            return Ok(Some(Granted::Want(want)));
        };
        let taken = runs.clone();
        let changes: Vec<(usize, Entry)> = fresh
            .iter()
            .map(|(index, _)| {
                let host = pop(&mut runs) << geometry.cluster_bits;
                (*index, Entry::data(geometry, host))
            })
            .collect();
        if let Some(result) = failed(self.tables.store(io, slice, state, &changes)) {
            self.retire(taken);
            return result;
        }
        for ((_, cluster), (_, entry)) in fresh.iter().zip(&changes) {
            self.learn(*entry, *cluster);
        }
        Ok(None)
    }
}

impl Image {
    /// Has a locked and loaded slice have a table that can be changed. `None`: it has.
    ///
    /// # Errors
    /// The disk's.
    pub fn table(
        &self,
        io: &mut dyn MetaIo,
        slice: &Slice,
        state: &mut State,
    ) -> Result<Option<Granted>, DiskError> {
        if Tables::is_writable(state) {
            return Ok(None);
        }
        if Tables::has_table(state) {
            return Ok(Some(Granted::Shared));
        }
        let Some(run) = self.take(1).and_then(|runs| runs.first().copied()) else {
            return Ok(Some(Granted::Want(1)));
        };
        let host = run.first << self.base.geometry.cluster_bits;
        let Some((put, used)) = self.tables.add_table(io, slice.number, host) else {
            self.reserve.put_back(run);
            return Ok(Some(Granted::Busy));
        };
        if !used {
            // Somebody else was quicker, and nothing refers to ours.
            self.reserve.put_back(run);
        }
        if let Some(result) = failed(put) {
            self.retire([run]);
            return result;
        }
        self.tables.is_loaded(slice, state);
        Ok(None)
    }
}

/// What a write of metadata that was not done means to who wanted it.
fn failed(put: Put) -> Option<Result<Option<Granted>, DiskError>> {
    match put {
        Put::Done => None,
        Put::Failed(error) => Some(Err(error)),
        Put::Later => Some(Ok(Some(Granted::Later))),
    }
}

/// Takes the first cluster of some runs, which have one.
fn pop(runs: &mut Vec<Run>) -> u64 {
    let Some(run) = runs.first_mut() else {
        return 0;
    };
    let first = run.first;
    run.first += 1;
    run.count -= 1;
    if run.count == 0 {
        runs.remove(0);
    }
    first
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An open image: what its queues and threads share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use virtio_blk_core::disk::{Caps, DiskError, SECTOR_SIZE};

use crate::base::{Base, EIO};
use crate::desk::Desk;
use crate::epoch::Epochs;
use crate::extents::NamedFiles;
use crate::format::{Compression, Entry, Header, Place};
use crate::lane::Lane;
use crate::map::Map;
use crate::medium::Medium;
use crate::refcounts::{Refcounts, Run};
use crate::reserve::Reserve;
use crate::slice::State;
use crate::sync::{lock, wait};
use crate::tables::Tables;

/// An open image.
pub struct Image {
    /// The file, sizes, header.
    pub base: Arc<Base>,
    /// Where the guest's data is: the same as the file, or an external data file.
    pub data: Arc<Medium>,
    /// The backing file as the guest of it would see it, and its bytes.
    pub backing: Option<(Arc<Medium>, u64)>,
    /// What they are called.
    pub named: NamedFiles,
    /// L1 and L2 tables.
    pub tables: Tables,
    /// The clusters' counts.
    pub refcounts: Mutex<Refcounts>,
    /// Clusters that are ready for use.
    pub reserve: Reserve,
    /// Where units are.
    pub map: Map,
    /// Who uses places in the file.
    pub epochs: Epochs,
    /// What the keeper is to do.
    pub desk: Desk,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Whether space that becomes free is given back to the host.
    pub discard: bool,
    /// Nothing may be changed.
    pub read_only: bool,
    /// The external data file is the guest's disk byte for byte.
    pub raw_external: bool,
    /// Persistent bitmaps that are up to date, and can't be kept so.
    bitmaps: u32,
    /// What the disk can do. The capacity in it is not kept up to date.
    caps: Caps,
    /// Bytes that the guest sees.
    size: AtomicU64,
    /// Whether threads are at work, and a signal that they have ended.
    running: Mutex<bool>,
    ended: Condvar,
}

/// What can be done about a write to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The data goes to this place of the file; nothing else is to be done.
    InPlace(u64),
    /// The cluster reads as zeroes and has no place: it gets one, and then the data goes there.
    Fresh,
    /// What the write leaves of the cluster has to be copied to a new place, or made zero.
    Copy,
}

impl Image {
    /// Puts together what was opened.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        base: Arc<Base>,
        data: Arc<Medium>,
        backing: Option<(Arc<Medium>, u64)>,
        tables: Tables,
        refcounts: Refcounts,
        header: &Header,
        caps: Caps,
        discard: bool,
        read_only: bool,
    ) -> Self {
        let geometry = base.geometry;
        let size = caps.capacity_bytes();
        Self {
            data,
            backing,
            named: NamedFiles::default(),
            tables,
            refcounts: Mutex::new(refcounts),
            reserve: Reserve::new(geometry.cluster_bits),
            map: Map::new(size, geometry.unit_bits()),
            epochs: Epochs::default(),
            desk: Desk::default(),
            compression: header.compression,
            bitmaps: if base.bitmaps.get().is_some() {
                0
            } else {
                header.bitmaps()
            },
            discard,
            read_only,
            raw_external: header.raw_external,
            caps,
            size: AtomicU64::new(size),
            running: Mutex::default(),
            ended: Condvar::new(),
            base,
        }
    }

    /// Bytes that the guest sees.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// What the disk can do.
    pub fn caps(&self) -> Caps {
        Caps {
            capacity: self.size() / SECTOR_SIZE,
            ..self.caps
        }
    }

    /// The image is larger now.
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Persistent bitmaps that are up to date, and won't be after the first change.
    pub fn bitmaps(&self) -> u32 {
        if self.read_only || self.base.changes.allowed() {
            0
        } else {
            self.bitmaps
        }
    }

    /// Checks an entry of the guest's cluster `cluster`, in whatever table it was found.
    ///
    /// # Errors
    /// The image is damaged.
    pub fn check(&self, entry: Entry) -> Result<Entry, DiskError> {
        let base = &self.base;
        if let Some(fault) = entry.fault(base.geometry, base.version) {
            return Err(base.damaged(fault));
        }
        if entry.is_compressed() {
            // Its end is rounded up to a sector, which may lie behind the end of the file.
            if base.external || entry.compressed(base.geometry).offset >= base.medium.len() {
                return Err(base.damaged("compressed data lies outside the file"));
            }
            // It would be let go of when it is overwritten, and the table with it.
            let (first, count) = entry.clusters(base.geometry, false).unwrap_or((0, 0));
            if (first..first + count).any(|cluster| base.is_table(cluster)) {
                return Err(base.damaged("compressed data is in one of the tables"));
            }
            self.meet_data(first, count);
            return Ok(entry);
        }
        let Some(host) = entry.host(base.external) else {
            return Ok(entry);
        };
        if base.external {
            return Ok(entry);
        }
        let cluster = host >> base.geometry.cluster_bits;
        if base.is_table(cluster) {
            return Err(base.damaged("a cluster of data is one of the tables"));
        }
        self.meet_data(cluster, 1);
        Ok(entry)
    }

    /// Data is in these clusters of the file.
    fn meet_data(&self, first: u64, count: u64) {
        if let Some(bitmaps) = self.base.bitmaps.get() {
            bitmaps.meet_data(first, count);
        }
    }

    /// Where unit `unit` of the guest's cluster `cluster` is, by its entry. What the backing file does not have is zero.
    pub fn place(&self, entry: Entry, cluster: u64, unit: u32) -> Place {
        let geometry = self.base.geometry;
        let place = entry.place(geometry, unit, self.base.external);
        if place != Place::Below {
            return place;
        }
        let at = (cluster << geometry.cluster_bits) + (u64::from(unit) << geometry.unit_bits());
        match &self.backing {
            Some((_, len)) if at < *len => Place::Below,
            _ => Place::Zero,
        }
    }

    /// Whether all units in `mask` of the guest's cluster `cluster` are zero, by its entry.
    pub fn is_zero(&self, entry: Entry, cluster: u64, mask: u32) -> bool {
        (0..self.base.geometry.units())
            .filter(|unit| mask >> unit & 1 != 0)
            .all(|unit| self.place(entry, cluster, unit) == Place::Zero)
    }

    /// A path to the external data file, if there is one.
    ///
    /// # Errors
    /// The disk's.
    pub fn external_lane(&self) -> Result<Option<Lane>, DiskError> {
        (self.base.external).then(|| self.data.lane()).transpose()
    }

    /// Whether a unit that is in the backing file ends within it, so that it can be read there in one piece.
    fn is_wholly_below(&self, cluster: u64, unit: u32) -> bool {
        let geometry = self.base.geometry;
        let at = (cluster << geometry.cluster_bits) + (u64::from(unit) << geometry.unit_bits());
        // Also the last unit of the disk, which may be a part of one only: the guest reaches the rest when the disk grows.
        let end = at + geometry.unit();
        self.backing.as_ref().is_some_and(|(_, len)| end <= *len)
    }

    /// Remembers where the units of a cluster are, by its entry, under the lock of its slice.
    pub fn learn(&self, entry: Entry, cluster: u64) {
        let geometry = self.base.geometry;
        let first = cluster << (geometry.cluster_bits - geometry.unit_bits());
        let end = self.data.len();
        let writable = self.own(entry).is_some();
        for unit in 0..geometry.units() {
            let place = self.place(entry, cluster, unit);
            let known = match place {
                Place::Data(host) => host + geometry.unit() <= end,
                Place::Below => self.is_wholly_below(cluster, unit),
                Place::Zero => true,
                Place::Compressed => false,
            };
            if known {
                self.map.set(first + u64::from(unit), place, writable);
            } else {
                self.map.clear(first + u64::from(unit));
            }
        }
    }

    /// What can be done about a write to the units `mask` of a cluster.
    pub fn way(&self, entry: Entry, cluster: u64, mask: u32) -> Way {
        let geometry = self.base.geometry;
        let units = || 0..geometry.units();
        let touched = || units().filter(|unit| mask >> unit & 1 != 0);
        if let Some(host) = self.own(entry)
            && touched().all(|unit| matches!(self.place(entry, cluster, unit), Place::Data(_)))
        {
            return Way::InPlace(host);
        }
        let is_nowhere = !self.base.external
            && entry.host(false).is_none()
            && units().all(|unit| self.place(entry, cluster, unit) == Place::Zero);
        if is_nowhere { Way::Fresh } else { Way::Copy }
    }

    /// The place of a cluster that may be written there, by its entry. One that does not lie within the file, as that was
    /// cut off or never written so far, reads as zeroes and gets another place when it is written.
    pub fn own(&self, entry: Entry) -> Option<u64> {
        let host = (entry.host(self.base.external)).filter(|_| entry.is_copied())?;
        let is_there = self.base.external || host + self.base.geometry.cluster() <= self.data.len();
        is_there.then_some(host)
    }

    /// Whether a copy-up leaves a cluster where it is, by its entry: in an external data file, and where subclusters are added
    /// to a cluster that is this image's own. Else it takes a new one.
    pub fn is_copied_in_place(&self, entry: Entry) -> bool {
        self.base.external || (self.base.geometry.extended && self.own(entry).is_some())
    }

    /// The units of a cluster that `len` bytes at byte `inside` of it touch.
    pub fn units(&self, inside: u64, len: u64) -> u32 {
        let bits = self.base.geometry.unit_bits();
        let (first, last) = (inside >> bits, (inside + len.max(1) - 1) >> bits);
        let upto = |unit: u64| (1_u64 << unit) - 1;
        (upto(last + 1) & !upto(first)) as u32
    }

    /// Clusters that nothing refers to any more, in the file: they are counted once less when that is stable, and when
    /// nobody uses them any more.
    pub fn retire(&self, runs: impl IntoIterator<Item = Run>) {
        self.desk.retire(runs);
    }

    /// The clusters that an entry refers to, to be retired.
    pub fn clusters_of(&self, entry: Entry) -> Option<Run> {
        let (first, count) = entry.clusters(self.base.geometry, self.base.external)?;
        Some(Run { first, count })
    }

    /// Takes clusters that are ready for use. `None`: there are not as many.
    pub fn take(&self, want: u64) -> Option<Vec<Run>> {
        let taken = self.reserve.take(want);
        if taken.ask {
            self.desk.refill();
        }
        (!taken.runs.is_empty()).then_some(taken.runs)
    }

    /// Waits for clusters that are ready for use.
    ///
    /// # Errors
    /// There are none to be had.
    pub fn await_clusters(&self, want: u64) -> Result<(), DiskError> {
        self.base.changes.check()?;
        self.reserve.wait(want, &|| self.desk.refill())
    }

    /// Waits until the threads before have ended, and notes that there are others.
    pub fn begin(&self) {
        let mut running = lock(&self.running);
        while *running {
            running = wait(&self.ended, running);
        }
        *running = true;
    }

    /// Notes that the threads have ended.
    pub fn end(&self) {
        *lock(&self.running) = false;
        self.ended.notify_all();
    }

    /// Makes everything stable, when the threads have ended.
    ///
    /// # Errors
    /// The image is frozen; the disks'.
    pub fn close(&self) -> Result<(), DiskError> {
        self.begin();
        self.leave_bitmaps();
        let stable = self.make_stable();
        self.end();
        stable
    }

    /// Makes everything stable.
    ///
    /// # Errors
    /// The image is frozen; the disks'.
    pub fn make_stable(&self) -> Result<(), DiskError> {
        if self.read_only || !self.base.changes.allowed() {
            return self.base.changes.check();
        }
        if self.base.external {
            self.data.lane()?.flush()?;
        }
        self.base.barrier(&mut self.base.medium.lane()?)
    }

    /// The entry of a cluster in a loaded slice.
    ///
    /// # Errors
    /// The image is damaged.
    pub fn entry(&self, state: &State, index: usize) -> Result<Entry, DiskError> {
        self.check(state.get(self.base.geometry, index))
    }
}

/// The error of a call that did not do what it promised.
pub fn broken() -> DiskError {
    DiskError::from_errno(EIO)
}

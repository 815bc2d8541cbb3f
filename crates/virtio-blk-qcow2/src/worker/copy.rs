// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copying up: a cluster gets a new place, and there what a write leaves of it, and what it brings.

use std::sync::Arc;

use virtio_blk_core::disk::{DiskError, IoBuf};

use super::{Source, Worker};
use crate::base::EFAULT;
use crate::desk::Update;
use crate::format::{Entry, Place};
use crate::grant::Target;
use crate::image::broken;
use crate::lane::aligned;
use crate::refcounts::Run;
use crate::slice::Slice;

/// Longest write in the middle of a cluster whose old bytes are read with what is left: one call costs more than them.
const SHORT: u64 = 16 << 10;

impl Worker {
    /// Writes to the first cluster of `target`, which is in transit, in `place`, a cluster that is ready for use, or in its
    /// own place if there is none ([`Image::is_copied_in_place`](crate::image::Image::is_copied_in_place)). The entry's
    /// update, and how many bytes of the write it brings.
    pub(super) fn copy_up(
        &mut self,
        slice: &Arc<Slice>,
        target: Target,
        entry: Entry,
        source: Source<'_>,
        place: Option<Run>,
    ) -> Result<(Update, u64), DiskError> {
        let image = self.image.clone();
        let (base, geometry) = (&image.base, image.base.geometry);
        let cluster = target.offset >> geometry.cluster_bits;
        let inside = target.offset & (geometry.cluster() - 1);
        let len = target.len.min(geometry.cluster() - inside);
        let mask = image.units(inside, len);
        // Subclusters can be added to a cluster that is this image's own, if it lies within the file.
        let own = image.own(entry);
        let by_units = geometry.extended
            && !entry.is_compressed()
            && (own.is_some() || entry.host(base.external).is_none());
        let unit = geometry.unit();
        // What has its place is written there by others meanwhile, who don't ask: not a byte of it is touched but those of
        // this write.
        let is_placed = |at: u64| {
            let place = image.place(entry, cluster, (at / unit) as u32);
            own.is_some() && matches!(place, Place::Data(_))
        };
        let end = inside + len;
        let range = if !by_units {
            0..geometry.cluster()
        } else {
            let first = if is_placed(inside) { 0 } else { inside % unit };
            let last = if is_placed(end - 1) {
                end
            } else {
                end.next_multiple_of(unit)
            };
            inside - first..last
        };
        let total = (range.end - range.start) as usize;
        // Kept if all goes well: after a failed wait somebody may still use it.
        let room = self.room();
        let data = room.part(0, total);
        let mut fill = || {
            // What is left of the cluster before and behind what is written.
            let (before, behind) = (inside - range.start, range.end - end);
            if before > 0 && behind > 0 && len <= SHORT {
                self.read_old(entry, cluster, range.start, &data)?;
            } else {
                let tail = (before + len) as usize;
                self.read_old(entry, cluster, range.start, &data.part(0, before as usize))?;
                self.read_old(entry, cluster, end, &data.part(tail, behind as usize))?;
            }
            match source {
                Source::Buffer(buf, at) => {
                    let mut piece = [0; 4096];
                    for done in (0..len as usize).step_by(piece.len()) {
                        let count = piece.len().min(len as usize - done);
                        let piece = piece.get_mut(..count).unwrap_or_default();
                        buf.copy_out(at + done, piece);
                        data.copy_in(before as usize + done, piece);
                    }
                    if !buf.is_intact() {
                        return Err(DiskError::from_errno(EFAULT));
                    }
                }
                Source::Zeroes => drop(data.fill(before as usize, len as usize, 0)),
            }
            Ok(())
        };
        if let Err(error) = fill() {
            // Nothing was written there.
            place
                .into_iter()
                .for_each(|run| image.reserve.put_back(run));
            return Err(error);
        }
        let host = match (place, own) {
            (Some(run), _) => run.first << geometry.cluster_bits,
            (None, Some(host)) if !base.external => host,
            (None, _) => cluster << geometry.cluster_bits,
        };
        // A data file may end within its last cluster.
        let left = image.data.len().saturating_sub(host + range.start);
        let total = usize::try_from(left).unwrap_or(usize::MAX).min(total);
        if let Err(error) = (self.data()).write_from(host + range.start, &data, 0, total) {
            // Nothing refers to it.
            image.retire(place);
            return Err(error);
        }
        self.room = room;
        let changed = if by_units {
            entry.with_data(geometry, host, mask)
        } else {
            Entry::data(geometry, host)
        };
        let kept = own.is_some() && by_units;
        let update = Update {
            slice: slice.clone(),
            index: target.index,
            cluster,
            entry: changed,
            old: image.clusters_of(entry).filter(|_| !kept),
            new: place,
        };
        Ok((update, len))
    }

    /// Room for a cluster, with anything in it.
    fn room(&mut self) -> IoBuf {
        let room = std::mem::take(&mut self.room);
        match room.is_empty() {
            true => aligned(self.image.base.geometry.cluster() as usize),
            false => room,
        }
    }

    /// Fills a buffer with bytes of a cluster from byte `from` of it on, by its entry.
    pub(super) fn read_old(
        &mut self,
        entry: Entry,
        cluster: u64,
        from: u64,
        out: &IoBuf,
    ) -> Result<(), DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let (mut at, end) = (from, from + out.len() as u64);
        while at < end {
            let unit = at >> geometry.unit_bits();
            let len = (((unit + 1) << geometry.unit_bits()).min(end) - at) as usize;
            let to = (at - from) as usize;
            let inside = at & (geometry.unit() - 1);
            match image.place(entry, cluster, unit as u32) {
                Place::Data(host) => self.data().read_into(host + inside, out, to, len)?,
                Place::Zero => drop(out.fill(to, len, 0)),
                Place::Below => {
                    let below = self.below.as_mut().ok_or_else(broken)?;
                    below.read_into((cluster << geometry.cluster_bits) + at, out, to, len)?;
                }
                Place::Compressed => {
                    let data = self.inflate(entry)?;
                    let from = at as usize;
                    out.copy_in(to, data.get(from..from + len).ok_or_else(broken)?);
                }
            }
            at += len as u64;
        }
        Ok(())
    }
}

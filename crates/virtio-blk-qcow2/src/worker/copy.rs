// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copying up: a cluster gets a new place, and there what a write leaves of it, and what it brings.

use std::sync::Arc;

use virtio_blk_core::disk::DiskError;

use super::{Source, Worker};
use crate::base::EFAULT;
use crate::format::{Entry, Place};
use crate::grant::Target;
use crate::image::broken;
use crate::keeper::Update;
use crate::refcounts::Run;
use crate::slice::Slice;

impl Worker {
    /// Writes to the first cluster of `target`, which is in transit, in a new place. The entry's update, and how many
    /// bytes of the write it brings.
    pub(super) fn copy_up(
        &mut self,
        slice: &Arc<Slice>,
        target: Target,
        entry: Entry,
        source: Source<'_>,
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
        let mut data = vec![0; (range.end - range.start) as usize];
        // What is left of the cluster before and behind what is written.
        let (before, behind) = (inside - range.start, range.end - end);
        if before > 0 {
            let head = data.get_mut(..before as usize).unwrap_or_default();
            self.read_old(entry, cluster, range.start, head)?;
        }
        if behind > 0 {
            let tail = data.get_mut((before + len) as usize..);
            self.read_old(entry, cluster, end, tail.unwrap_or_default())?;
        }
        if let Source::Buffer(buf, at) = source {
            let middle = data.get_mut(before as usize..(before + len) as usize);
            buf.copy_out(at, middle.unwrap_or_default());
            if !buf.is_intact() {
                return Err(DiskError::from_errno(EFAULT));
            }
        }
        let (host, new) = if base.external {
            (cluster << geometry.cluster_bits, None)
        } else if let Some(host) = own.filter(|_| by_units) {
            (host, None)
        } else {
            let first = image.take_one()?;
            let run = Run { first, count: 1 };
            (first << geometry.cluster_bits, Some(run))
        };
        // A data file may end within its last cluster.
        let room = image.data.len().saturating_sub(host + range.start);
        data.truncate(usize::try_from(room).unwrap_or(usize::MAX).min(data.len()));
        if let Err(error) = self.data().write(host + range.start, &data) {
            // Nothing refers to it.
            image.retire(new);
            return Err(error);
        }
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
            new,
        };
        Ok((update, len))
    }

    /// Reads bytes of a cluster from byte `from` of it on, by its entry.
    pub(super) fn read_old(
        &mut self,
        entry: Entry,
        cluster: u64,
        from: u64,
        out: &mut [u8],
    ) -> Result<(), DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let (mut at, mut out) = (from, out);
        while !out.is_empty() {
            let unit = at >> geometry.unit_bits();
            let len = ((unit + 1) << geometry.unit_bits()) - at;
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(out.len());
            let (part, rest) = out.split_at_mut(len);
            let inside = at & (geometry.unit() - 1);
            match image.place(entry, cluster, unit as u32) {
                Place::Data(host) => self.data().read(host + inside, part)?,
                Place::Zero => part.fill(0),
                Place::Below => {
                    let below = self.below.as_mut().ok_or_else(broken)?;
                    below.read((cluster << geometry.cluster_bits) + at, part)?;
                }
                Place::Compressed => {
                    let data = self.inflate(entry)?;
                    let from = at as usize;
                    part.copy_from_slice(data.get(from..from + len).ok_or_else(broken)?);
                }
            }
            at += len as u64;
            out = rest;
        }
        Ok(())
    }
}

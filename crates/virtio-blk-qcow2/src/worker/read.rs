// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads that a queue could not finish by itself.

use virtio_blk_core::disk::{DiskError, IoBuf};

use super::Worker;
use crate::format::{Entry, Place};
use crate::image::broken;
use crate::sync::lock;

/// A part of a read.
struct Piece {
    entry: Entry,
    cluster: u64,
    place: Place,
    /// First byte of the cluster.
    inside: u64,
    len: u64,
}

impl Worker {
    /// Fills a buffer from `offset` of the guest on.
    pub(super) fn read(&mut self, offset: u64, buf: &IoBuf) -> Result<(), DiskError> {
        let image = self.image.clone();
        let (mut at, end) = (offset, offset + buf.len() as u64);
        while at < end {
            let turn = image.epochs.enter(&self.path);
            let result = self.read_slice(at, end, buf, (at - offset) as usize);
            self.path.leave(turn);
            at = result?;
        }
        Ok(())
    }

    /// Reads up to the end of a slice, to byte `to` of the buffer. Where that is.
    fn read_slice(
        &mut self,
        offset: u64,
        end: u64,
        buf: &IoBuf,
        mut to: usize,
    ) -> Result<u64, DiskError> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        let (number, first) = image.tables.place(offset >> geometry.cluster_bits);
        let end = end.min((number + 1) * geometry.slice_reach());
        let slice = image.tables.slice(number);
        let mut state = lock(&slice.state);
        image.tables.load(&mut self.lane, &slice, &mut state)?;
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut at, mut learned) = (offset, None);
        while at < end {
            let cluster = at >> geometry.cluster_bits;
            let index = first + (cluster - (offset >> geometry.cluster_bits)) as usize;
            let entry = image.entry(&state, index)?;
            if learned != Some(cluster) {
                image.learn(entry, cluster);
                learned = Some(cluster);
            }
            let inside = at & (geometry.cluster() - 1);
            let unit = inside >> geometry.unit_bits();
            let len = (((unit + 1) << geometry.unit_bits()) - inside).min(end - at);
            let place = match image.place(entry, cluster, unit as u32) {
                Place::Data(host) => Place::Data(host + (inside & (geometry.unit() - 1))),
                other => other,
            };
            let last = pieces.last_mut();
            match last {
                Some(last) if last.goes_on(place, cluster) => last.len += len,
                _ => pieces.push(Piece {
                    entry,
                    cluster,
                    place,
                    inside,
                    len,
                }),
            }
            at += len;
        }
        drop(state);
        for piece in pieces {
            self.read_piece(&piece, buf, to)?;
            to += piece.len as usize;
        }
        Ok(end)
    }

    fn read_piece(&mut self, piece: &Piece, buf: &IoBuf, to: usize) -> Result<(), DiskError> {
        let len = piece.len as usize;
        match piece.place {
            Place::Data(host) => self.data().read_into(host, buf, to, len),
            Place::Zero => {
                buf.fill(to, len, 0);
                Ok(())
            }
            Place::Below => {
                let bits = self.image.base.geometry.cluster_bits;
                let offset = (piece.cluster << bits) + piece.inside;
                let below = self.below.as_mut().ok_or_else(broken)?;
                below.read_into(offset, buf, to, len)
            }
            Place::Compressed => {
                let from = piece.inside as usize;
                let data = self.inflate(piece.entry)?;
                buf.copy_in(to, data.get(from..from + len).ok_or_else(broken)?);
                Ok(())
            }
        }
    }

    /// The data of a compressed cluster.
    pub(super) fn inflate(&mut self, entry: Entry) -> Result<&[u8], DiskError> {
        let geometry = self.image.base.geometry;
        if self.inflater.last(entry.word).is_none() {
            let place = entry.compressed(geometry);
            let mut bytes = vec![0; place.len as usize];
            self.lane.read(place.offset, &mut bytes)?;
            let len = geometry.cluster() as usize;
            if self.inflater.inflate(&bytes, len, entry.word).is_none() {
                return Err(self
                    .image
                    .base
                    .damaged("a compressed cluster can't be read"));
            }
        }
        self.inflater.last(entry.word).ok_or_else(broken)
    }
}

impl Piece {
    /// Whether what follows can be read with this piece.
    fn goes_on(&self, place: Place, cluster: u64) -> bool {
        match (self.place, place) {
            (Place::Data(host), Place::Data(next)) => host + self.len == next,
            (Place::Zero, Place::Zero) | (Place::Below, Place::Below) => true,
            (Place::Compressed, Place::Compressed) => self.cluster == cluster,
            _ => false,
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Discards that a queue finishes by itself: they touch one slice at most, and wait for nothing.

use virtio_blk_core::disk::{DiskError, Op, Submit};

use super::Qcow2Queue;
use crate::erase::{Clusters, Erased};
use crate::medium::Inline;
use crate::sync::try_lock;
use crate::tables::Tables;

impl Qcow2Queue {
    /// Executes a discard, or hands it to the threads.
    pub(super) fn discard(&mut self, op: Op, offset: u64, len: u64) -> Submit {
        let offered = self.image.caps().discard.is_some();
        match offered.then(|| self.discard_inline(offset, len)).flatten() {
            Some(result) => Submit::Done(op.complete(result)),
            None => self.hand_over(op),
        }
    }

    /// How a discard ended. `None`: a thread does it, from the beginning.
    fn discard_inline(&mut self, offset: u64, len: u64) -> Option<Result<(), DiskError>> {
        let image = self.image.clone();
        let geometry = image.base.geometry;
        // Parts of clusters may have whole subclusters in them, and a data file has to be erased, too.
        if geometry.extended || image.base.external || image.base.changes.check().is_err() {
            return None;
        }
        let end = match offset + len {
            // The guest can't reach what is behind the end in the last cluster.
            end if end == image.size() => end.next_multiple_of(geometry.cluster()),
            end => end,
        };
        let first = offset.next_multiple_of(geometry.cluster()) >> geometry.cluster_bits;
        let count = (end >> geometry.cluster_bits).saturating_sub(first);
        if count == 0 {
            // Parts of clusters are left alone.
            return Some(Ok(()));
        }
        let (number, index) = image.tables.place(first);
        let clusters = Clusters {
            index,
            first,
            count,
        };
        if index as u64 + count > geometry.slice_entries() {
            return None;
        }
        let slice = image.tables.cached(number)?;
        let mut state = try_lock(&slice.state)?;
        if !image.tables.is_loaded(&slice, &mut state) {
            return None;
        }
        if image.is_erased(&state, clusters) {
            return Some(Ok(()));
        }
        if !self.inlining.get()
            || !image.base.changes.allowed()
            || !image.desk.has_room()
            || !Tables::is_writable(&state)
        {
            return None;
        }
        let mut io = Inline {
            queue: &mut *self.inner,
            room: &self.room,
        };
        let turn = image.epochs.enter(&self.path);
        let erased = image.erase(
            &mut io,
            &slice,
            &mut state,
            clusters,
            false,
            &mut Vec::new(),
        );
        self.path.leave(turn);
        match erased {
            Ok(Erased::Clusters(done)) => {
                self.inlining.worked();
                (done == count).then_some(Ok(()))
            }
            Ok(Erased::Later) => {
                self.inlining.failed();
                None
            }
            Ok(Erased::Transit | Erased::Shared | Erased::Want) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

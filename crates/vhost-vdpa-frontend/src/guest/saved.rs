// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest whose device stands still, as plain data.

use std::sync::Arc;

use vdpa_bus::{Callback, VqAddress, VqState};
use virtio_blk_core::spec::feature;
use vmm_sys_util::eventfd::EventFd;

use super::{Drained, Guest, GuestQueue};
use crate::PathError;

/// A queue of a paused device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFastQueue {
    /// Its index.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Where it lies.
    pub address: VqAddress,
    /// Where the device goes on ([`VqState::vring_base`]).
    pub base: u32,
}

/// A paused device, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFast {
    /// What the guest acknowledged.
    pub features: u64,
    /// The status byte that it sees.
    pub status: u8,
    /// What it wrote into the configuration space: offset and bytes.
    pub written: Vec<(usize, Vec<u8>)>,
    /// Its enabled queues.
    pub queues: Vec<SavedFastQueue>,
}

impl Guest {
    /// What has to be kept of it, with its queues at `states`.
    pub(crate) fn save(&self, states: &[(u16, VqState)]) -> SavedFast {
        let base = |index| {
            let found = states.iter().find(|(found, _)| *found == index);
            found.map_or(0, |(_, state)| state.vring_base())
        };
        let queues = self.enabled().map(|(index, queue)| SavedFastQueue {
            index,
            size: queue.size,
            address: queue.address,
            base: base(index),
        });
        SavedFast {
            features: self.features,
            status: self.status,
            written: self.written.clone(),
            queues: queues.collect(),
        }
    }

    /// The guest of `saved` on a device with `queues` queues of at most `max` entries that offers `offered`, without
    /// its memory, and where its queues stand.
    pub(crate) fn restored(
        saved: &SavedFast,
        offered: u64,
        queues: u16,
        max: u16,
        mut events: impl FnMut(u16) -> Option<(Arc<EventFd>, Callback)>,
    ) -> Result<(Self, Drained), PathError> {
        if saved.features & !offered != 0 {
            return Err(PathError::Features(saved.features));
        }
        let packed = saved.features & feature::RING_PACKED != 0;
        let mut guest = Self::new(queues);
        guest.features = saved.features;
        guest.status = saved.status;
        let mut states = Vec::new();
        for queue in &saved.queues {
            let index = queue.index;
            let state =
                VqState::from_vring_base(queue.base, packed).ok_or_else(|| PathError::Queue {
                    index,
                    why: format!("it can't go on at {:#x}", queue.base),
                })?;
            let (kick, call) = events(index).ok_or_else(|| PathError::Queue {
                index,
                why: "the VMM has no such queue".to_owned(),
            })?;
            let restored = GuestQueue {
                size: queue.size,
                address: queue.address,
                kick,
                call,
            };
            guest.set_queue(index, restored, max)?;
            states.push((index, state));
        }
        for (offset, bytes) in &saved.written {
            guest.note_write(*offset, bytes);
        }
        Ok((guest, states))
    }
}

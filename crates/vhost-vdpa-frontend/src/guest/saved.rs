// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side of a paused device, as plain data.

use std::sync::Arc;

use vdpa_bus::{Callback, VdpaDevice, VqAddress, VqState};
use virtio_blk_core::spec::feature;
use vmm_sys_util::eventfd::EventFd;

use super::{Guest, GuestQueue, QueuePositions, no_queue};
use crate::PathError;

/// A queue of a paused device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedGuestQueue {
    /// Its index.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Where it lies.
    pub address: VqAddress,
    /// The position at which the device continues ([`VqState::vring_base`]).
    pub base: u32,
}

/// What a guest negotiated and set up, and where the queues of the paused device stand. The same on both paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedGuest {
    /// What the guest acknowledged.
    pub features: u64,
    /// The status byte that it sees.
    pub status: u8,
    /// What it wrote into the configuration space: offset and bytes.
    pub config_writes: Vec<(usize, Vec<u8>)>,
    /// Its enabled queues.
    pub queues: Vec<SavedGuestQueue>,
}

impl Guest {
    /// Saves all but the memory, with the queues at `states`.
    pub(crate) fn save(&self, states: &[(u16, VqState)]) -> SavedGuest {
        let base = |index| {
            let found = states.iter().find(|(found, _)| *found == index);
            found.map_or(0, |(_, state)| state.vring_base())
        };
        let queues = self.enabled().map(|(index, queue)| SavedGuestQueue {
            index,
            size: queue.size,
            address: queue.address,
            base: base(index),
        });
        SavedGuest {
            features: self.features,
            status: self.status.get(),
            config_writes: self.config_writes.clone(),
            queues: queues.collect(),
        }
    }

    /// Restores what was saved, for `device`, of which `offered` is offered. Returns where the queues stand. `events`
    /// returns the kick eventfd and the callback of a queue, `None` if there is no such queue. Memory and the
    /// configuration's callback stay as they are. `saved` may come from a hostile source.
    ///
    /// # Errors
    /// It does not fit; nothing was changed.
    pub(crate) fn restore(
        &mut self,
        device: &dyn VdpaDevice,
        saved: &SavedGuest,
        offered: u64,
        mut events: impl FnMut(u16) -> Option<(Arc<EventFd>, Callback)>,
    ) -> Result<QueuePositions, PathError> {
        if saved.features & !offered != 0 {
            return Err(PathError::Features(saved.features));
        }
        let packed = saved.features & feature::RING_PACKED != 0;
        let mut guest = Self {
            features: saved.features,
            // Set at the end: until then everything may be refused.
            status: Arc::default(),
            queues: vec![None; self.queues.len()],
            memory: self.memory.clone(),
            config_writes: Vec::new(),
        };
        let mut states = Vec::new();
        for queue in &saved.queues {
            let index = queue.index;
            let state =
                VqState::from_vring_base(queue.base, packed).ok_or_else(|| PathError::Queue {
                    index,
                    why: format!("it can't continue at {:#x}", queue.base),
                })?;
            let (kick, call) = events(index).ok_or_else(|| no_queue(index, guest.queues.len()))?;
            let restored = GuestQueue {
                size: queue.size,
                address: queue.address,
                kick,
                call,
            };
            guest.set_queue(index, restored, device.get_vq_num_max())?;
            states.push((index, state));
        }
        for (offset, bytes) in &saved.config_writes {
            guest.record_config_write(*offset, bytes);
        }
        guest.status = self.status.clone();
        guest.status.set(saved.status);
        *self = guest;
        Ok(states)
    }
}

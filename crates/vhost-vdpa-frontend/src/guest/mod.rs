// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side of a device: what it negotiated and where its rings lie, whatever path they are on.

mod quiesce;
mod ring;
mod saved;
mod status;

use std::sync::Arc;

use vdpa_bus::{Callback, VdpaDevice, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::feature;
use virtio_blk_core::spec::status::FEATURES_OK;
use vmm_sys_util::eventfd::EventFd;

pub(crate) use quiesce::{
    QueuePositions, QuiesceError, bind_kicks, drain, rebind_and_kick, reset, suspend,
    wait_while_completing,
};
pub(crate) use ring::RingView;
pub use saved::{SavedGuest, SavedGuestQueue};
pub(crate) use status::GuestStatus;

use crate::PathError;
use crate::error::{DeviceStep, Step};

/// A queue as the guest set it up. Addresses are guest physical.
#[derive(Clone, Debug)]
pub struct GuestQueue {
    /// Entries.
    pub size: u16,
    /// Where it lies.
    pub address: VqAddress,
    /// Written when the guest kicks (KVM's ioeventfd); not blocking. Handed to the device as it is.
    pub kick: Arc<EventFd>,
    /// What interrupts the guest: a [`Callback::Trigger`] of KVM's irqfd works with every device.
    pub call: Callback,
}

/// Everything that must survive resets that the guest does not know of.
pub(crate) struct Guest {
    /// What it acknowledged.
    pub(crate) features: u64,
    /// The status byte that it sees, and the configuration interrupt.
    pub(crate) status: Arc<GuestStatus>,
    /// By index; those it enabled.
    pub(crate) queues: Vec<Option<GuestQueue>>,
    /// Its memory: addresses are guest physical.
    pub(crate) memory: IotlbTable,
    /// What it wrote into the configuration space, to be written again after a reset: offset and bytes.
    pub(crate) config_writes: Vec<(usize, Vec<u8>)>,
}

/// Writes of the guest's into the configuration space that are kept at most: a block device has one field.
const MAX_CONFIG_WRITES: usize = 16;

impl Guest {
    pub(crate) fn new(queues: u16, status: Arc<GuestStatus>) -> Self {
        Self {
            features: 0,
            status,
            queues: vec![None; queues.into()],
            memory: IotlbTable::new(),
            config_writes: Vec::new(),
        }
    }

    /// Forgets all but the memory, as a reset does.
    pub(crate) fn reset(&mut self) {
        self.features = 0;
        self.status.set(0);
        self.queues.fill(None);
        self.config_writes.clear();
    }

    /// Whether its driver runs.
    pub(crate) fn runs(&self) -> bool {
        self.status.runs()
    }

    /// The queues it enabled.
    pub(crate) fn enabled(&self) -> impl Iterator<Item = (u16, &GuestQueue)> {
        (0..)
            .zip(&self.queues)
            .filter_map(|(index, queue)| Some((index, queue.as_ref()?)))
    }

    /// Notes what it acknowledges of `offered`.
    pub(crate) fn acknowledge(&mut self, features: u64, offered: u64) -> Result<(), PathError> {
        if self.status.get() & FEATURES_OK != 0 {
            return Err(PathError::Busy("features are fixed after FEATURES_OK"));
        }
        if features & !offered != 0 {
            return Err(PathError::Features(features));
        }
        self.features = features;
        Ok(())
    }

    /// Records a queue of at most `max` entries.
    pub(crate) fn set_queue(
        &mut self,
        index: u16,
        queue: GuestQueue,
        max: u16,
    ) -> Result<(), PathError> {
        let refuse = |why: String| Err(PathError::Queue { index, why });
        let packed = self.features & feature::RING_PACKED != 0;
        if queue.size == 0 || queue.size > max || !packed && !queue.size.is_power_of_two() {
            return refuse(format!(
                "{} entries, at most {max} are possible",
                queue.size
            ));
        }
        let count = self.queues.len();
        match self.queues.get_mut(usize::from(index)) {
            Some(slot) => {
                *slot = Some(queue);
                Ok(())
            }
            None => Err(no_queue(index, count)),
        }
    }

    /// Records a write into the configuration space, to be made again after a reset that the guest does not know of.
    pub(crate) fn record_config_write(&mut self, offset: usize, bytes: &[u8]) {
        self.config_writes
            .retain(|(at, old)| (*at, old.len()) != (offset, bytes.len()));
        if self.config_writes.len() < MAX_CONFIG_WRITES {
            self.config_writes.push((offset, bytes.to_vec()));
        }
    }

    /// Writes again what the guest wrote, on a device that was reset and negotiated since.
    pub(crate) fn replay_config_writes(&self, device: &dyn VdpaDevice) -> Result<(), PathError> {
        for (offset, bytes) in &self.config_writes {
            device
                .set_config(*offset, bytes)
                .step(DeviceStep::ReplayConfig)?;
        }
        Ok(())
    }

    /// Where a ring starts after a reset.
    pub(crate) fn first_position(&self) -> VqState {
        if self.features & feature::RING_PACKED != 0 {
            VqState::Packed {
                last_avail_counter: true,
                last_avail_idx: 0,
                last_used_counter: true,
                last_used_idx: 0,
            }
        } else {
            VqState::Split { avail_index: 0 }
        }
    }

    /// The enabled split rings, resolved.
    pub(crate) fn rings(&self) -> Result<Vec<(u16, RingView)>, PathError> {
        self.enabled()
            .map(|(index, queue)| {
                RingView::new(&self.memory, queue)
                    .map(|view| (index, view))
                    .ok_or_else(|| PathError::Queue {
                        index,
                        why: "its rings are not in memory, or not aligned".to_owned(),
                    })
            })
            .collect()
    }

    /// Interrupts the guest on every queue: a notification may have gone lost with the device's reset.
    pub(crate) fn signal(&self) {
        for (_, queue) in self.enabled() {
            queue.call.notify();
        }
    }
}

fn no_queue(index: u16, count: usize) -> PathError {
    PathError::Queue {
        index,
        why: format!("the device has {count} queues"),
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device in a snapshot.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vdpa_bus::VqState;
use vhost_vdpa_frontend::{SavedGuest, SavedGuestQueue};
use virtio_blk_core::device::{SavedDevice, SavedQueue};
use virtio_blk_core::ring::QueueState;
use virtio_blk_core::spec::status;

use super::{Backend, Block, address};
use crate::error::{Error, Result};

/// A device, its queues and its driver's progress.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedBlock {
    status: u8,
    driver_features: u64,
    backend: SavedBackend,
}

#[derive(Debug, Serialize, Deserialize)]
enum SavedBackend {
    Own(SavedDevice),
    Vdpa {
        features: u64,
        /// What was written into the configuration space: offset and bytes.
        written: Vec<(usize, Vec<u8>)>,
        /// Registers; `next_avail` says where the device stands.
        queues: Vec<SavedQueue>,
    },
}

impl SavedBlock {
    /// How many queues the device had.
    pub fn queues(&self) -> usize {
        self.registers().len()
    }

    fn registers(&self) -> &[SavedQueue] {
        match &self.backend {
            SavedBackend::Own(device) => &device.queues,
            SavedBackend::Vdpa { queues, .. } => queues,
        }
    }
}

impl Block {
    /// The state of a paused device.
    pub fn save(&mut self) -> Result<SavedBlock> {
        let status = self.status();
        let queues = self.queues.iter();
        let mut queues: Vec<_> = queues
            .map(|queue| SavedQueue::new(queue.state, queue.in_flight.clone()))
            .collect();
        let saved = match &self.backend {
            Backend::Own(device) => SavedBackend::Own(device.save(queues)),
            Backend::Vdpa(disk) => {
                let saved = disk.switch.save();
                let saved = saved.map_err(|error| Error::Snapshot(error.to_string()))?;
                for running in &saved.queues {
                    if let Some(queue) = queues.get_mut(usize::from(running.index)) {
                        queue.state.next_avail = running.base as u16;
                    }
                }
                SavedBackend::Vdpa {
                    features: saved.features,
                    written: saved.config_writes,
                    queues,
                }
            }
        };
        Ok(SavedBlock {
            status,
            driver_features: self.driver_features,
            backend: saved,
        })
    }

    /// Takes over saved state. [`Block::resume`] starts the queues.
    pub fn restore(&mut self, saved: &SavedBlock) -> Result<()> {
        let (has, had) = (self.queues.len(), saved.queues());
        if has != had {
            let text = format!("a disk had {had} queues, not {has}");
            return Err(Error::Snapshot(text));
        }
        self.paused = true;
        self.driver_features = saved.driver_features;
        let broken = saved.status & status::DEVICE_NEEDS_RESET != 0;
        self.broken.store(broken, Ordering::Release);
        self.interrupt.set(saved.status & status::DRIVER_OK != 0);
        let max_size = self.backend.queue_size();
        for (queue, saved) in self.queues.iter_mut().zip(saved.registers()) {
            queue.state = QueueState {
                max_size,
                ..saved.state
            };
            queue.in_flight.clone_from(&saved.in_flight);
        }
        let failed = |error: &dyn std::fmt::Display| Error::Snapshot(error.to_string());
        match (&self.backend, &saved.backend) {
            (Backend::Own(device), SavedBackend::Own(saved_device)) => {
                // One after the other, as the driver did it.
                for bit in [
                    status::ACKNOWLEDGE,
                    status::DRIVER,
                    status::FEATURES_OK,
                    status::DRIVER_OK,
                    status::FAILED,
                ] {
                    if saved.status & bit != 0 {
                        self.status.write(bit, saved_device.features, device);
                    }
                }
                device.restore(saved_device).map_err(|error| failed(&error))
            }
            (
                Backend::Vdpa(disk),
                SavedBackend::Vdpa {
                    features, written, ..
                },
            ) => {
                let runs = saved.status & status::DRIVER_OK != 0;
                let queues = (0..).zip(&self.queues);
                let queues = queues.filter(|(_, queue)| runs && queue.state.ready);
                let queues = queues.map(|(index, queue)| SavedGuestQueue {
                    index,
                    size: queue.state.size,
                    address: address(&queue.state),
                    base: VqState::Split {
                        avail_index: queue.state.next_avail,
                    }
                    .vring_base(),
                });
                let state = SavedGuest {
                    features: *features,
                    status: saved.status & !status::DEVICE_NEEDS_RESET,
                    config_writes: written.clone(),
                    queues: queues.collect(),
                };
                let events = |index| {
                    let queue = self.guest_queue(index)?;
                    Some((queue.kick, queue.call))
                };
                disk.switch
                    .restore(&state, events)
                    .map_err(|error| failed(&error))
            }
            _ => Err(failed(&"a disk of another kind")),
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device in a snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_blk_core::device::{SavedDevice, SavedQueue};
use virtio_blk_core::ring::QueueState;
use virtio_blk_core::spec::status;
use vmm_sys_util::eventfd::EventFd;

use super::Block;
use crate::error::{Error, Result};

/// A device, its queues and its driver's progress.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedBlock {
    status: u8,
    driver_features: u64,
    backend: SavedBackend,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum SavedBackend {
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

/// A queue that a restored driver had enabled.
pub struct RestoredQueue {
    pub index: u16,
    pub state: QueueState,
    pub kick: Arc<EventFd>,
    /// What the device writes to interrupt the driver, where it executes requests by itself.
    pub call: Option<Arc<EventFd>>,
}

impl SavedBackend {
    /// What the driver acknowledged.
    const fn features(&self) -> u64 {
        match self {
            Self::Own(device) => device.features,
            Self::Vdpa { features, .. } => *features,
        }
    }
}

impl Block {
    /// The state of a paused device.
    pub fn save(&mut self) -> Result<SavedBlock> {
        let status = self.status();
        let queues = self.queues.iter();
        let queues = queues.map(|queue| SavedQueue::new(queue.state, queue.in_flight.clone()));
        Ok(SavedBlock {
            status,
            driver_features: self.driver_features,
            backend: self.disk.save(queues.collect())?,
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
        let runs = saved.status & status::DRIVER_OK != 0;
        self.interrupt.set(runs);
        let device = self.disk.device();
        let max_size = device.queue_size();
        for (queue, saved) in self.queues.iter_mut().zip(saved.registers()) {
            queue.state = QueueState {
                max_size,
                ..saved.state
            };
            queue.in_flight.clone_from(&saved.in_flight);
        }
        let offloads = device.offloads();
        // One after the other, as the driver did it. A device that executes requests by itself negotiates when it
        // resumes.
        for bit in [
            status::ACKNOWLEDGE,
            status::DRIVER,
            status::FEATURES_OK,
            status::DRIVER_OK,
            status::FAILED,
        ] {
            if saved.status & bit != 0 {
                let accept = || offloads || device.accept(saved.backend.features()).is_ok();
                self.status.write_with(bit, accept);
            }
        }
        let enabled = (0..).zip(&self.queues);
        let enabled = enabled.filter(|(_, queue)| runs && queue.state.ready);
        let calls: Vec<_> = self.calls().collect();
        let queues = enabled.map(|(index, queue)| RestoredQueue {
            index,
            state: queue.state,
            kick: queue.kick.clone(),
            call: calls.get(usize::from(index)).map(|&call| call.clone()),
        });
        self.disk
            .restore(&saved.backend, saved.status, queues.collect())?;
        self.offloaded = offloads && runs;
        Ok(())
    }
}

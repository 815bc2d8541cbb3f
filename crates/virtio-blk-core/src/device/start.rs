// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starting queues.

use super::Device;
use crate::disk::DiskError;
use crate::memory::DeviceMemory;
use crate::request::{DeviceView, RequestLimits};
use crate::ring::{QueueState, RingError};
use crate::runner::{QueueParts, QueueRunner, QueueSetup, Reports};
use crate::spec::feature;

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The device has no such queue.
    #[error("queue {index} of a device with {queues}")]
    Index {
        /// As asked for.
        index: u16,
        /// How many there are.
        queues: u16,
    },
    /// Features were not negotiated.
    #[error("the driver's features were not accepted yet")]
    NotNegotiated,
    /// The driver's ring is not usable.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The disk gave no data path.
    #[error("the disk can't serve another queue: {0}")]
    Disk(#[source] DiskError),
}

impl Device {
    /// Starts queue `index` at `state`, which is validated together with the heads to replay: sizes,
    /// alignment, mapping. The result takes nothing from the ring before its first
    /// [`QueueRunner::service`]. The driver is notified once, as an earlier owner of the queue may have ended
    /// before it could.
    ///
    /// # Errors
    /// [`StartError`]; nothing of the guest's was touched. The disk was only asked for a data path if the
    /// ring is usable.
    pub fn start_queue<M: DeviceMemory>(
        &self,
        index: u16,
        setup: QueueSetup<M>,
        state: impl Into<QueueState>,
    ) -> Result<QueueRunner<M>, StartError> {
        let abi = self.guest_abi();
        let counters =
            self.counters(index)
                .filter(|_| index < abi.queues)
                .ok_or(StartError::Index {
                    index,
                    queues: abi.queues,
                })?;
        let features = self.accepted();
        if features & feature::VERSION_1 == 0 {
            return Err(StartError::NotNegotiated);
        }
        let state = QueueState {
            max_size: abi.queue_size,
            ..state.into()
        };
        let mut limits = RequestLimits::new(&self.shown_caps(), features);
        limits.capacity = self.capacity();
        let parts = QueueParts {
            features,
            device: DeviceView {
                limits,
                shared: self.shared.clone(),
                serial: abi.serial,
                write_cache: self.write_cache(),
            },
            counters: counters.clone(),
            reports: Reports {
                queue: index,
                listeners: self.errors.clone(),
            },
        };
        QueueRunner::start(setup, parts, &state, || {
            self.disk.open_queue(state.size).map_err(StartError::Disk)
        })
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The use of the slow path's disk: from before its first queue starts until the last has stopped.
//!
//! Layers may keep something of the disk in memory. On the fast path the guest goes past them, and a guest that is
//! paused may continue elsewhere.
//!
//! A guest's reset with requests in flight resets the device before the disk is released, as it must not wait for them:
//! what a layer would still write then fails, as it would in a power cut.

use std::time::Instant;

use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::MediumEvent;
use virtio_blk_core::spec::status::DEVICE_NEEDS_RESET;

use super::{Inner, PathSwitch};
use crate::error::PathError;

/// Logs a failure that no caller waits for.
pub(super) fn log_medium(event: MediumEvent<'_>) {
    match event {
        MediumEvent::Lost(error) => {
            log::error!("what the slow path's disk kept in memory may be lost: {error}");
        }
        MediumEvent::Refused(error) => log::error!("the slow path's disk: {error}"),
        MediumEvent::Settled => {}
    }
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Takes the disk into use. The slow path's device works.
    pub(super) fn take_disk(&self) -> Result<(), PathError> {
        let Some(medium) = &self.medium else {
            return Ok(());
        };
        let taken = medium.take(Instant::now() + self.options.drain_timeout);
        let late = "the slow path's disk takes too long to be taken into use";
        Ok(taken.ok_or(PathError::Busy(late))??)
    }

    /// Releases the disk, all of whose queues have stopped. The slow path's device still works.
    pub(super) fn leave_disk(&self) -> Result<(), PathError> {
        let Some(medium) = &self.medium else {
            return Ok(());
        };
        medium.want(false);
        let left = medium.wait_left(Instant::now() + self.options.drain_timeout);
        let late = "the slow path's disk still makes stable what it kept in memory";
        left.ok_or(PathError::Busy(late))?.map_err(PathError::Lost)
    }

    /// As [`Self::leave_disk`] for a guest that resets its device: what is lost is what a power cut would have taken,
    /// and was logged. Where the disk takes too long, what it does is cancelled.
    pub(super) fn forget_disk(&self) {
        if let Err(PathError::Busy(_)) = self.leave_disk() {
            self.slow.cancel_all();
            let _ = self.leave_disk();
        }
        if let Some(medium) = &self.medium {
            medium.reset();
        }
    }

    /// Starts to release the disk, without waiting.
    pub(super) fn stop_wanting_disk(&self) {
        if let Some(medium) = &self.medium {
            medium.want(false);
        }
    }

    /// Has the slow path take nothing new. Returns whether all its queues work and have nothing in flight.
    pub(super) fn is_at_rest(&self, inner: &mut Inner<M>) -> bool {
        let Inner {
            guest,
            executor,
            served,
            ..
        } = inner;
        if guest.status.get() & DEVICE_NEEDS_RESET != 0 {
            // The thread of a queue may wait for the device.
            return false;
        }
        for index in &*served {
            executor.set_intake(*index, false);
        }
        served.iter().all(|index| executor.in_flight(*index) == 0)
    }
}

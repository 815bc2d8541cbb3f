// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device and queue state as plain data, for snapshots and migration.
//!
//! The data is treated as hostile when it comes back: everything is checked against the device that
//! takes it, and queue addresses once more by [`Device::start_queue`].

use super::{AbiError, Device, GuestAbi, NegotiationError, features};
use crate::ring::{MAX_QUEUE_SIZE, QueueState, are_distinct};
use crate::spec::feature;

/// The version this code writes.
const VERSION: u16 = 2;

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedQueue {
    /// Where it lies and how far it was worked on.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub state: QueueState,
    /// Heads taken and not returned, in order; empty after a drain.
    pub in_flight: Vec<u16>,
}

impl SavedQueue {
    /// From what a stopped queue left.
    pub fn new(state: impl Into<QueueState>, in_flight: Vec<u16>) -> Self {
        let state = state.into();
        Self { state, in_flight }
    }
}

/// A device with its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedDevice {
    /// Layout of this structure.
    pub version: u16,
    /// The driver's features; 0: not negotiated.
    pub features: u64,
    /// The driver's cache mode.
    pub writeback: bool,
    /// Capacity in sectors that the driver has seen.
    pub capacity: u64,
    /// Logical block size in bytes that the driver has seen.
    pub block_size: u32,
    /// The queues, by index.
    pub queues: Vec<SavedQueue>,
    /// What the guest was told; version 1 does not have it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub abi: Option<GuestAbi>,
}

/// Why saved state was refused. The device is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Written by code that knows more.
    #[error("saved state has version {0}, this device reads up to {VERSION}")]
    Version(u16),
    /// The driver uses features that this device does not offer.
    #[error("saved features do not fit this device: {0}")]
    Features(#[from] NegotiationError),
    /// The guest was told what this device can't keep to.
    #[error(transparent)]
    Abi(#[from] AbiError),
    /// The driver knows another block size.
    #[error("saved state has blocks of {saved} bytes, this disk of {device}")]
    BlockSize {
        /// As saved.
        saved: u32,
        /// This device's.
        device: u32,
    },
    /// More queues than this device has.
    #[error("saved state has {saved} queues, this device {device}")]
    Queues {
        /// As saved.
        saved: usize,
        /// This device's.
        device: u16,
    },
    /// A queue that can't exist.
    #[error("saved queue {index}: {what}")]
    Queue {
        /// Its index.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl Device {
    /// The device's state together with that of its stopped queues, by index.
    pub fn save(&self, queues: Vec<SavedQueue>) -> SavedDevice {
        SavedDevice {
            version: VERSION,
            features: self.accepted(),
            writeback: self.shared.writeback(),
            capacity: self.capacity(),
            block_size: self.caps.align.guest_block,
            queues,
            abi: Some(self.guest_abi()),
        }
    }

    /// Takes over saved state, after checking all of it, together with what the guest was told: the device
    /// keeps to it as after [`Device::adopt`]. The transport then starts the queues that are
    /// ready, with their `in_flight` heads as [`crate::runner::QueueSetup::replay`].
    ///
    /// A capacity that differs from the saved one is announced as a config change.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing was changed.
    pub fn restore(&self, saved: &SavedDevice) -> Result<(), RestoreError> {
        if saved.version == 0 || saved.version > VERSION {
            return Err(RestoreError::Version(saved.version));
        }
        if let Some(abi) = &saved.abi {
            self.check_abi(abi)?;
        }
        let abi = saved.abi.unwrap_or_else(|| self.guest_abi());
        if saved.queues.len() > usize::from(abi.queues) {
            return Err(RestoreError::Queues {
                saved: saved.queues.len(),
                device: abi.queues,
            });
        }
        let block = self.caps.align.guest_block;
        if saved.features != 0 && saved.block_size != block {
            return Err(RestoreError::BlockSize {
                saved: saved.block_size,
                device: block,
            });
        }
        for (index, queue) in saved.queues.iter().enumerate() {
            check_queue(queue, abi.queue_size)
                .map_err(|what| RestoreError::Queue { index, what })?;
        }
        if saved.features != 0 {
            features::check(abi.features, saved.features)?;
        }
        self.reset();
        if let Some(abi) = &saved.abi {
            self.adopt_checked(abi);
        }
        if saved.features == 0 {
            return Ok(());
        }
        self.accept(saved.features)?;
        if saved.features & feature::CONFIG_WCE != 0 {
            self.shared.set_writeback(saved.writeback);
        }
        if saved.abi.is_none() && saved.capacity != self.capacity() {
            self.config_changed();
        }
        Ok(())
    }
}

/// Checks a queue of a device with queues of up to `max_size` descriptors.
fn check_queue(queue: &SavedQueue, max_size: u16) -> Result<(), &'static str> {
    let (state, in_flight) = (&queue.state, &queue.in_flight);
    if state.version > QueueState::VERSION {
        return Err("the state was written by newer code");
    }
    if !state.ready {
        return if in_flight.is_empty() {
            Ok(())
        } else {
            Err("requests in flight on a queue that is not ready")
        };
    }
    if !state.size.is_power_of_two() || state.size > max_size.min(MAX_QUEUE_SIZE) {
        return Err("the size is no power of two or beyond this device's");
    }
    let taken = usize::from(state.next_avail.wrapping_sub(state.next_used));
    if taken != in_flight.len() || taken > usize::from(state.size) {
        return Err("the indices do not agree with the requests in flight");
    }
    if !are_distinct(in_flight, state.size) {
        return Err("a head in flight is out of range or named twice");
    }
    Ok(())
}

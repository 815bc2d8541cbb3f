// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device and queue state as plain data, for snapshots and migration.
//!
//! The data is treated as hostile when it comes back: everything is checked against the device that
//! takes it, and queue addresses once more by [`Device::start_queue`].

use std::sync::atomic::Ordering;

use virtio_queue::QueueState;

use super::{AbiError, Device, GuestAbi, NegotiationError, features};
use crate::ring::{MAX_QUEUE_SIZE, are_distinct};
use crate::spec::feature;

/// The version this code writes.
const VERSION: u16 = 2;

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedQueue {
    /// Size in descriptors.
    pub size: u16,
    /// Enabled by the driver.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
    /// The next available entry to take.
    pub next_avail: u16,
    /// The next used entry to fill.
    pub next_used: u16,
    /// Heads taken and not returned, in order; empty after a drain.
    pub in_flight: Vec<u16>,
}

impl SavedQueue {
    /// From what a stopped queue left.
    pub fn new(state: &QueueState, in_flight: Vec<u16>) -> Self {
        Self {
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
            in_flight,
        }
    }

    /// The state to start a queue of at most `max_size` descriptors with.
    pub fn state(&self, max_size: u16, event_idx: bool) -> QueueState {
        QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
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
            self.shared
                .writeback
                .store(saved.writeback, Ordering::Relaxed);
        }
        if saved.abi.is_none() && saved.capacity != self.capacity() {
            self.config_changed();
        }
        Ok(())
    }
}

/// Checks a queue of a device with queues of up to `max_size` descriptors.
fn check_queue(queue: &SavedQueue, max_size: u16) -> Result<(), &'static str> {
    if !queue.ready {
        return if queue.in_flight.is_empty() {
            Ok(())
        } else {
            Err("requests in flight on a queue that is not ready")
        };
    }
    if !queue.size.is_power_of_two() || queue.size > max_size.min(MAX_QUEUE_SIZE) {
        return Err("the size is no power of two or beyond this device's");
    }
    let taken = usize::from(queue.next_avail.wrapping_sub(queue.next_used));
    if taken != queue.in_flight.len() || taken > usize::from(queue.size) {
        return Err("the indices do not agree with the requests in flight");
    }
    if !are_distinct(&queue.in_flight, queue.size) {
        return Err("a head in flight is out of range or named twice");
    }
    Ok(())
}

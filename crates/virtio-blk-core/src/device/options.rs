// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device is set up.

use crate::disk::{Caps, DiskError};
use crate::ring::MAX_QUEUE_SIZE;
use crate::spec::SERIAL_SIZE;

/// The shape of a device, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of queues.
    pub queues: u16,
    /// The largest size of each queue in descriptors: a power of two, at least 4.
    pub queue_size: u16,
    /// Serial number as `GET_ID` returns it: at most 20 bytes, NUL-padded by the device.
    pub serial: String,
    /// Read-only towards the driver, whatever the disk allows.
    pub read_only: bool,
    /// Let the driver switch the cache mode (CONFIG_WCE). Off for transports that can't write the
    /// configuration space.
    pub config_wce: bool,
    /// Bits the transport adds to the offer (ACCESS_PLATFORM, RING_RESET, …). It answers for them.
    pub transport_features: u64,
    /// Bits never to offer.
    pub masked_features: u64,
}

impl Default for Options {
    /// One queue of 256, no serial number, writable, switchable cache mode.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            serial: String::new(),
            read_only: false,
            config_wce: true,
            transport_features: 0,
            masked_features: 0,
        }
    }
}

/// What is wrong with [`Options`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// No queue, or more than the disk serves.
    #[error("{queues} queues: give 1 to {max}")]
    Queues {
        /// As given.
        queues: u16,
        /// The disk's limit.
        max: u16,
    },
    /// The queue size is not usable.
    #[error("queue size {0}: give a power of two from 4 to {MAX_QUEUE_SIZE}")]
    QueueSize(u16),
    /// The serial number is too long or holds a NUL.
    #[error("serial number {0:?}: give at most {SERIAL_SIZE} bytes without NUL")]
    Serial(String),
    /// The disk's capabilities make no sense.
    #[error(transparent)]
    Disk(DiskError),
}

impl Options {
    pub(super) fn validate(&self, caps: &Caps) -> Result<(), OptionsError> {
        if self.queues == 0 || self.queues > caps.max_queues {
            return Err(OptionsError::Queues {
                queues: self.queues,
                max: caps.max_queues,
            });
        }
        if !self.queue_size.is_power_of_two() || !(4..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            return Err(OptionsError::QueueSize(self.queue_size));
        }
        if self.serial.len() > SERIAL_SIZE || self.serial.contains('\0') {
            return Err(OptionsError::Serial(self.serial.clone()));
        }
        Ok(())
    }

    /// The serial number as `GET_ID` returns it.
    pub(super) fn serial_bytes(&self) -> [u8; SERIAL_SIZE] {
        let mut bytes = [0; SERIAL_SIZE];
        for (to, from) in bytes.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        bytes
    }
}

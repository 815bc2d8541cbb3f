// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device is set up.

use super::{GuestAbi, MAX_SEG_MAX};
use crate::disk::{Caps, DiskError, EraseLimits, ZeroLimits};
use crate::request::MAX_SEGMENTS;
use crate::ring::MAX_QUEUE_SIZE;
use crate::spec::{SERIAL_SIZE, feature};

/// `seg_max` unless something else is wanted: a ring of 128 takes it without indirect tables.
const SEG_MAX: u32 = 126;

/// The shape of a device, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Number of queues.
    pub queues: u16,
    /// The largest size of each queue in descriptors: a power of two, at least 4.
    pub queue_size: u16,
    /// Most data segments of one request, as the driver is told (`seg_max`): from 1 to [`MAX_SEG_MAX`].
    ///
    /// A request also has a header and a status, and without indirect tables its descriptors must fit the
    /// ring, whose size the driver chooses (with vhost-user: the client, QEMU by default 128). A driver
    /// that builds longer chains than its ring has room for waits for ever. So where INDIRECT_DESC is
    /// masked, at most `queue_size - 2` is accepted, and a driver that does not acknowledge it must have a
    /// ring of at least `seg_max + 2`. With indirect tables the ring's size does not matter.
    ///
    /// `None`: 126, which fits a ring of 128, or what fits a smaller `queue_size`.
    pub seg_max: Option<u32>,
    /// Serial number as `GET_ID` returns it: at most 20 bytes, NUL-padded by the device.
    pub serial: String,
    /// Read-only towards the driver, whatever the disk allows.
    pub read_only: bool,
    /// Let the driver switch the cache mode (CONFIG_WCE). Off for transports that can't write the
    /// configuration space.
    pub config_wce: bool,
    /// Bits the transport adds to the offer (ACCESS_PLATFORM, RING_RESET, …). It is responsible for them.
    pub transport_features: u64,
    /// Bits never to offer.
    pub masked_features: u64,
}

impl Default for DeviceOptions {
    /// One queue of 256, no serial number, writable, switchable cache mode.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            seg_max: None,
            serial: String::new(),
            read_only: false,
            config_wce: true,
            transport_features: 0,
            masked_features: 0,
        }
    }
}

/// What is wrong with [`DeviceOptions`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceOptionsError {
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
    /// More data segments than a chain can have.
    #[error("{seg_max} segments a request: give 1 to {max}{}", if *indirect { "" } else { ", what the queue size allows without INDIRECT_DESC" })]
    SegMax {
        /// As given.
        seg_max: u32,
        /// The most that is possible.
        max: u32,
        /// Whether INDIRECT_DESC is offered.
        indirect: bool,
    },
    /// The serial number is too long or holds a NUL.
    #[error("serial number {0:?}: give at most {SERIAL_SIZE} bytes without NUL")]
    Serial(String),
    /// The disk's capabilities make no sense.
    #[error(transparent)]
    Disk(DiskError),
}

impl DeviceOptions {
    pub(super) fn validate(&self, caps: &Caps) -> Result<(), DeviceOptionsError> {
        if self.queues == 0 || self.queues > caps.max_queues {
            return Err(DeviceOptionsError::Queues {
                queues: self.queues,
                max: caps.max_queues,
            });
        }
        if !self.queue_size.is_power_of_two() || !(4..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            return Err(DeviceOptionsError::QueueSize(self.queue_size));
        }
        let indirect = self.masked_features & feature::RING_INDIRECT_DESC == 0;
        let max = if indirect {
            MAX_SEG_MAX
        } else {
            u32::from(self.queue_size) - 2
        };
        if let Some(seg_max) = self.seg_max
            && !(1..=max).contains(&seg_max)
        {
            return Err(DeviceOptionsError::SegMax {
                seg_max,
                max,
                indirect,
            });
        }
        if self.serial.len() > SERIAL_SIZE || self.serial.contains('\0') {
            return Err(DeviceOptionsError::Serial(self.serial.clone()));
        }
        Ok(())
    }

    /// What a device of these options over a disk of these capabilities tells the guest when it offers
    /// `features`.
    pub(super) fn present(&self, caps: &Caps, features: u64) -> GuestAbi {
        let has = |bit| features & bit != 0;
        let erase = |limits: EraseLimits| EraseLimits {
            max_segments: limits.max_segments.min(MAX_SEGMENTS),
            ..limits
        };
        let zeroes = |limits: ZeroLimits| ZeroLimits {
            max_segments: limits.max_segments.min(MAX_SEGMENTS),
            ..limits
        };
        let fitting = u32::from(self.queue_size) - 2;
        GuestAbi {
            features,
            capacity: caps.capacity,
            queues: self.queues,
            queue_size: self.queue_size,
            seg_max: self.seg_max.unwrap_or_else(|| SEG_MAX.min(fitting)),
            block_size: caps.align.guest_block,
            topology: caps.topology,
            writeback: has(feature::FLUSH),
            discard: caps.discard.filter(|_| has(feature::DISCARD)).map(erase),
            write_zeroes: (caps.write_zeroes)
                .filter(|_| has(feature::WRITE_ZEROES))
                .map(zeroes),
            secure_erase: (caps.secure_erase)
                .filter(|_| has(feature::SECURE_ERASE))
                .map(erase),
            serial: self.serial_bytes(),
        }
    }

    /// The serial number as `GET_ID` returns it.
    fn serial_bytes(&self) -> [u8; SERIAL_SIZE] {
        let mut bytes = [0; SERIAL_SIZE];
        for (to, from) in bytes.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        bytes
    }
}

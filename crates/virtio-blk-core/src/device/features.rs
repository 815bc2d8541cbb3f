// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is offered and what may be acknowledged (virtio 1.4, 2.2.2, 5.2.5.2 and 6.2).

use std::sync::atomic::Ordering;

use super::{Device, DeviceOptions, lock};
use crate::disk::Caps;
use crate::request::WriteCache;
use crate::spec::feature::{self, *};

/// Why the driver's features are refused: FEATURES_OK must not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// Bits that were not offered.
    #[error("the driver acknowledged features that were not offered: {0:#x}")]
    NotOffered(u64),
    /// A pre-1.0 driver.
    #[error("the driver did not acknowledge VIRTIO_F_VERSION_1")]
    Version1,
}

/// The bits a device of these capabilities and options offers.
pub(super) fn offer(caps: &Caps, options: &DeviceOptions) -> u64 {
    let mut offer = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC | SEG_MAX | BLK_SIZE | TOPOLOGY;
    let mut when = |condition: bool, bit: u64| {
        if condition {
            offer |= bit;
        }
    };
    let writable = !caps.read_only;
    when(caps.read_only, RO);
    when(caps.flush, FLUSH);
    when(caps.flush && options.config_wce, CONFIG_WCE);
    when(options.queues > 1, MQ);
    when(caps.discard.is_some() && writable, DISCARD);
    when(caps.write_zeroes.is_some() && writable, WRITE_ZEROES);
    when(caps.secure_erase.is_some() && writable, SECURE_ERASE);
    when(caps.lifetime, LIFETIME);
    offer = (offer | options.transport_features) & !(options.masked_features & !VERSION_1);
    if offer & FLUSH == 0 {
        // Its prerequisite (virtio 1.4, 5.2.5.2).
        offer &= !CONFIG_WCE;
    }
    offer
}

/// Whether a driver may acknowledge `features` of what is `offered`.
pub(super) fn check(offered: u64, features: u64) -> Result<(), NegotiationError> {
    let extra = features & !offered;
    if extra != 0 {
        return Err(NegotiationError::NotOffered(extra));
    }
    if features & VERSION_1 == 0 {
        return Err(NegotiationError::Version1);
    }
    Ok(())
}

impl Device {
    /// The feature bits offered.
    pub fn offered(&self) -> u64 {
        lock(&self.shown).abi.features
    }

    /// The feature bits the driver acknowledged; 0 before [`Device::accept`].
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }

    /// Takes what the driver acknowledged, at FEATURES_OK. Any subset of the offer that has VERSION_1 is
    /// accepted: no block feature offered here needs another to be acknowledged.
    ///
    /// # Errors
    /// The driver must not see FEATURES_OK. What was accepted before stays.
    pub fn accept(&self, features: u64) -> Result<(), NegotiationError> {
        check(self.offered(), features)?;
        self.accepted.store(features, Ordering::Release);
        self.set_writeback();
        Ok(())
    }

    /// Sets `writeback` as it stands after negotiation: as the guest was told by an earlier device, the
    /// first time, where the driver can switch it.
    pub(super) fn set_writeback(&self) {
        let told = lock(&self.shown).writeback.take();
        let accepted = self.accepted();
        // A driver that can't flush must not find a volatile cache because another one could.
        let told = told.filter(|writeback| {
            accepted & CONFIG_WCE != 0 && (!writeback || accepted & FLUSH != 0)
        });
        let writeback = told.unwrap_or_else(|| self.initial_writeback());
        self.shared.set_writeback(writeback);
    }

    /// `writeback` as it stands right after negotiation (virtio 1.4, 5.2.5.2).
    pub(super) fn initial_writeback(&self) -> bool {
        let accepted = self.accepted();
        let through = accepted & CONFIG_WCE != 0 && accepted & FLUSH == 0;
        self.offered() & FLUSH != 0 && !through
    }

    /// How writes become stable under what was negotiated.
    pub(super) fn write_cache(&self) -> WriteCache {
        let accepted = self.accepted();
        if !self.caps.flush {
            WriteCache::Back
        } else if accepted & CONFIG_WCE != 0 {
            WriteCache::Switchable
        } else if accepted & FLUSH != 0 {
            WriteCache::Back
        } else {
            WriteCache::Through
        }
    }

    /// The names of the offered bits, lowest first.
    pub fn offered_names(&self) -> Vec<String> {
        feature::names(self.offered())
    }
}

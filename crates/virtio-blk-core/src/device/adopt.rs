// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking over what another device told the guest.

use super::{AbiError, Device, GuestAbi, Shown, lock};
use crate::disk::{Caps, EraseLimits, ZeroLimits};
use crate::spec::feature::RO;

impl Device {
    /// What the guest is told, now: by [`Device::offered`], the configuration space and `GET_ID`.
    pub fn guest_abi(&self) -> GuestAbi {
        GuestAbi {
            capacity: self.capacity(),
            writeback: self.shared.writeback(),
            ..lock(&self.shown).abi
        }
    }

    /// Keeps to what a guest was told by another device: from now on, over all resets, this one presents
    /// the same features, limits, number and size of queues. That is possible where it can do as much or
    /// more; the capacity may have grown, which is announced as a change of the configuration space.
    /// [`Device::present_own`] ends it.
    ///
    /// Call it before the driver's features are accepted, and before queues start. The cache mode that was
    /// told takes effect with the next [`Device::accept`] (or at once if that has happened), if the driver
    /// can switch it.
    ///
    /// # Errors
    /// [`AbiError`]: what differs, and what to do. Nothing was changed.
    pub fn adopt(&self, abi: &GuestAbi) -> Result<(), AbiError> {
        self.check_abi(abi)?;
        let extra = self.accepted() & !abi.features;
        if extra != 0 {
            return Err(AbiError::Negotiated { extra });
        }
        self.adopt_checked(abi);
        Ok(())
    }

    /// Ends the effect of [`Device::adopt`]: presents again what this device's disk and options can. A transport
    /// calls it when the guest that was told something else is gone for this device, as the next client may have
    /// another guest; after [`Device::reset`], with no queue running. Listeners are not called: there is no
    /// driver whose configuration space would change.
    pub fn present_own(&self) {
        *lock(&self.shown) = Shown {
            abi: self.own,
            writeback: None,
        };
        self.set_writeback();
    }

    /// As [`Device::adopt`], for what [`Device::check_abi`] accepted.
    pub(super) fn adopt_checked(&self, abi: &GuestAbi) {
        {
            let mut shown = lock(&self.shown);
            shown.abi = *abi;
            shown.writeback = Some(abi.writeback);
        }
        if self.accepted() != 0 {
            self.set_writeback();
        }
        if abi.capacity != self.capacity() {
            self.config_changed();
        }
    }

    /// Whether this device can present `abi`.
    pub(super) fn check_abi(&self, abi: &GuestAbi) -> Result<(), AbiError> {
        abi.validate()?;
        let own = &self.own;
        if abi.queues > own.queues {
            let (told, now) = (abi.queues, own.queues);
            return Err(AbiError::Queues { told, now });
        }
        if abi.queue_size > own.queue_size {
            let (told, now) = (abi.queue_size, own.queue_size);
            return Err(AbiError::QueueSize { told, now });
        }
        if abi.block_size != own.block_size {
            let (told, now) = (abi.block_size, own.block_size);
            return Err(AbiError::BlockSize { told, now });
        }
        if own.features & RO != 0 && abi.features & RO == 0 {
            return Err(AbiError::ReadOnly);
        }
        // A disk that may be written can be presented as one that may not.
        let missing = abi.features & !(own.features | RO);
        if missing != 0 {
            return Err(AbiError::Features { missing });
        }
        check_limits(abi, own)?;
        if abi.serial != own.serial {
            return Err(AbiError::Serial {
                told: abi.serial_text(),
                now: own.serial_text(),
            });
        }
        let (told, now) = (abi.capacity, self.capacity());
        if told > now {
            return Err(AbiError::Capacity { told, now });
        }
        Ok(())
    }

    /// The disk's capabilities as far as the guest was told of them.
    pub(super) fn shown_caps(&self) -> Caps {
        let abi = lock(&self.shown).abi;
        Caps {
            // Also where the bit is masked.
            read_only: self.caps.read_only || abi.features & RO != 0,
            discard: abi.discard,
            write_zeroes: abi.write_zeroes,
            secure_erase: abi.secure_erase,
            ..self.caps
        }
    }
}

/// Limits that the guest was told may be lower than the device's; the alignment of discards is a hint.
fn check_limits(abi: &GuestAbi, own: &GuestAbi) -> Result<(), AbiError> {
    let erase = |limits: Option<EraseLimits>| {
        limits.map_or([0; 2], |limits| [limits.max_sectors, limits.max_segments])
    };
    let zeroes = |limits: Option<ZeroLimits>| {
        limits.map_or([0; 2], |limits| [limits.max_sectors, limits.max_segments])
    };
    let fields = [
        (
            ["max_discard_sectors", "max_discard_seg"],
            erase(abi.discard),
            erase(own.discard),
        ),
        (
            ["max_write_zeroes_sectors", "max_write_zeroes_seg"],
            zeroes(abi.write_zeroes),
            zeroes(own.write_zeroes),
        ),
        (
            ["max_secure_erase_sectors", "max_secure_erase_seg"],
            erase(abi.secure_erase),
            erase(own.secure_erase),
        ),
    ];
    for (names, told, now) in fields {
        for ((field, told), now) in names.into_iter().zip(told).zip(now) {
            if told > now {
                return Err(AbiError::Limit { field, told, now });
            }
        }
    }
    Ok(())
}

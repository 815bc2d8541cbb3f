// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When to kick the device, and when it is to interrupt (virtio 1.4, 2.7.7 and 2.7.10).

use std::sync::atomic::{Ordering, fence};

use super::split::Armed;
use super::{RingError, SplitDriver};
use crate::Memory;
use crate::wire::{AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY};

impl SplitDriver {
    /// Whether the device wants a kick for what was published since the last call.
    ///
    /// # Errors
    /// [`RingError::Memory`].
    pub fn needs_kick<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<bool, RingError> {
        let published = self.published as u16;
        if published == self.kicked {
            return Ok(false);
        }
        // The index must be out before we look whether the device asks to be notified, or both sides
        // may wait for each other (virtio 1.4, 2.7.13.3.1).
        fence(Ordering::SeqCst);
        let wanted = if self.config.event_idx {
            let event = mem.load_u16(self.layout.avail_event(), Ordering::Relaxed)?;
            crossed(event, self.kicked, published)
        } else {
            let flags = mem.load_u16(self.layout.used_flags(), Ordering::Relaxed)?;
            flags & USED_F_NO_NOTIFY == 0
        };
        self.kicked = published;
        Ok(wanted)
    }

    /// Asks for an interrupt after the next used chain. Returns whether there are used chains already:
    /// then poll instead of waiting.
    ///
    /// # Errors
    /// [`RingError::Memory`], [`RingError::Violation`].
    pub fn enable_interrupts<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<bool, RingError> {
        self.interrupt_after(mem, 1)
    }

    /// Asks for an interrupt once `count` more chains are used (with event index; without, after each).
    /// 0 counts as 1. Returns whether that many are used already.
    ///
    /// # Errors
    /// As for [`SplitDriver::enable_interrupts`].
    pub fn interrupt_after<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        count: u16,
    ) -> Result<bool, RingError> {
        self.check_broken()?;
        let distance = if self.config.event_idx {
            count.saturating_sub(1)
        } else {
            0
        };
        let event = self.used.wrapping_add(distance);
        // Where the device was asked for the same before, and looked at afterwards, it need not be asked again.
        if self.armed.is_none_or(|armed| armed.event != event) {
            if self.config.event_idx {
                self.set_used_event(mem, event)?;
            } else if self.flags != 0 {
                self.set_flags(mem, 0)?;
            }
            // What we ask for must be out before we look, or an interrupt may get lost in between.
            fence(Ordering::SeqCst);
        }
        let idx = self.load_used_idx(mem)?;
        self.armed = Some(Armed { from: idx, event });
        Ok(idx.wrapping_sub(self.used) > distance)
    }

    /// Asks for no interrupts. The device may still send some.
    ///
    /// # Errors
    /// [`RingError::Memory`].
    pub fn disable_interrupts<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<(), RingError> {
        self.armed = None;
        if self.config.event_idx {
            // The entry just taken: the furthest away there is.
            self.set_used_event(mem, self.used.wrapping_sub(1))
        } else {
            self.set_flags(mem, AVAIL_F_NO_INTERRUPT)
        }
    }

    /// Whether the device has used so much since interrupts were last enabled that it must have sent
    /// an interrupt, or must do so now (virtio 1.4, 2.7.7.2). For tests that catch lost ones.
    ///
    /// # Errors
    /// [`RingError::Memory`], [`RingError::Violation`].
    pub fn interrupt_due<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<bool, RingError> {
        self.check_broken()?;
        let Some(Armed { from, event }) = self.armed else {
            return Ok(false);
        };
        let idx = self.load_used_idx(mem)?;
        Ok(if self.config.event_idx {
            crossed(event, from, idx)
        } else {
            idx != from
        })
    }

    pub(super) fn set_flags<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        flags: u16,
    ) -> Result<(), RingError> {
        mem.store_u16(self.layout.avail_flags(), flags, Ordering::Relaxed)?;
        self.flags = flags;
        Ok(())
    }

    pub(super) fn set_used_event<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        event: u16,
    ) -> Result<(), RingError> {
        mem.store_u16(self.layout.used_event(), event, Ordering::Relaxed)?;
        self.used_event = event;
        Ok(())
    }
}

/// Whether an index that went from `old` to `new` passed the entry `event` (virtio 1.4, 2.7.10).
const fn crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

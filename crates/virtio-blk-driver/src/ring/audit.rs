// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the device left alone what is not its own.

use std::sync::atomic::Ordering;

use vm_memory::GuestAddress;

use super::{RingError, SplitDriver, Violation};
use crate::Memory;
use crate::wire::{DESC_LEN, Descriptor, USED_F_NO_NOTIFY};

impl SplitDriver {
    /// Compares everything only the driver may write with what it wrote, and the used ring's flags with
    /// what is allowed. Reads the whole ring: for tests and post-mortems.
    ///
    /// # Errors
    /// [`RingError::Violation`] with the first difference, [`RingError::Memory`].
    pub fn audit<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<(), RingError> {
        self.check_broken()?;
        for index in 0..self.layout.size() {
            let mut bytes = [0; DESC_LEN as usize];
            mem.read_at(self.layout.desc_at(index), &mut bytes)?;
            if Descriptor::from_bytes(bytes) != self.table[usize::from(index)] {
                return Err(self.violation(Violation::DescriptorChanged { index }));
            }
            let entry = self.entries[usize::from(index)];
            self.audit_avail(mem, self.layout.avail_at(index), entry)?;
        }
        self.audit_avail(mem, self.layout.avail_flags(), self.flags)?;
        self.audit_avail(mem, self.layout.avail_idx(), self.published as u16)?;
        self.audit_avail(mem, self.layout.used_event(), self.used_event)?;

        let flags = mem.load_u16(self.layout.used_flags(), Ordering::Relaxed)?;
        let allowed = if self.config.event_idx {
            0
        } else {
            USED_F_NO_NOTIFY
        };
        if flags & !allowed != 0 {
            return Err(self.violation(Violation::UsedFlags { flags }));
        }
        Ok(())
    }

    fn audit_avail<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        at: GuestAddress,
        expected: u16,
    ) -> Result<(), RingError> {
        if mem.load_u16(at, Ordering::Relaxed)? == expected {
            return Ok(());
        }
        let offset = at.0 - self.layout.avail().0;
        Err(self.violation(Violation::AvailChanged { offset }))
    }
}

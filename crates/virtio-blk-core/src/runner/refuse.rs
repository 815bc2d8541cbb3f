// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that can't be taken. None of them may look like a success: a driver does not clear the status
//! byte, so that one which comes back without a status is taken for done.

use super::{ErrorCause, QueueError, QueueRunner};
use crate::memory::DeviceMemory;
use crate::ring::{ChainError, Ring, StatusPlace};
use crate::spec::RequestStatus;

impl<M: DeviceMemory> QueueRunner<M> {
    /// Refuses the chain whose head is in `chain`, which was just taken. Returns what it counts of a pass's budget.
    ///
    /// # Errors
    /// The driver can't be told: the queue is broken.
    #[cold]
    pub(super) fn refuse_malformed(&mut self, error: ChainError) -> Result<usize, QueueError> {
        if let Some(log) = &mut self.log {
            log.taken(self.chain.head());
        }
        self.refuse_chain(error);
        self.check_ring()?;
        self.publish_some()?;
        Ok(1 + self.ring.effort())
    }

    /// Refuses the chain whose head is in `chain`: with IOERR where the driver looks for a status; without
    /// one where the chain has no writable byte, so that the driver can't look for any; else latches the ring.
    #[cold]
    pub(super) fn refuse_chain(&mut self, error: ChainError) {
        let head = self.chain.head();
        match self.ring.status_place(&self.map, head) {
            StatusPlace::At { addr, alone } => match self.status_at(addr) {
                Some(status) => {
                    self.note_malformed(error);
                    self.counters.errors.add(1);
                    // SAFETY: translated a moment ago from the map that `self` holds.
                    unsafe { status.host.write_volatile(RequestStatus::IoErr as u8) };
                    self.map.mark_dirty(addr, 1);
                    self.add_used(head, u32::from(alone));
                }
                None => self.break_off(ChainError::StatusUnmapped),
            },
            StatusPlace::Nowhere => {
                self.note_malformed(error);
                self.add_used(head, 0);
            }
            StatusPlace::Unknown => self.break_off(error),
        }
    }

    fn note_malformed(&self, error: ChainError) {
        self.counters.malformed.add(1);
        self.reports.tell(ErrorCause::Chain(error));
    }

    /// Breaks the queue for the chain at hand: the next call of the ring says so. The ring itself is sound,
    /// and what was finished before is published.
    fn break_off(&mut self, error: ChainError) {
        self.counters.malformed.add(1);
        // If this fails, the ring has latched its own error.
        let _ = self.publish();
        self.ring.break_off(self.chain.head(), error);
    }

    /// Whether the ring still works.
    #[inline]
    pub(super) fn check_ring(&self) -> Result<(), QueueError> {
        match self.ring.latched() {
            None => Ok(()),
            Some(error) => Err(QueueError::Ring(error)),
        }
    }
}

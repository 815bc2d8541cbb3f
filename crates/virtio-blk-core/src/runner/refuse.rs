// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that can't be taken. None of them may look like a success: a driver does not clear the status
//! byte, so that one which comes back without a status is taken for done.

use super::QueueError;
use super::completion::Finished;
use super::queue_runner::QueueRunner;
use crate::memory::DeviceMemory;
use crate::ring::{ChainError, LastWritable, Ring};
use crate::spec::RequestStatus;

impl<M: DeviceMemory> QueueRunner<M> {
    /// Refuses the chain whose head is in `chain`, which was just taken. Returns
    /// its budget cost.
    ///
    /// # Errors
    /// The driver can't be told: the queue is broken.
    #[cold]
    pub(super) fn refuse_malformed(&mut self, error: ChainError) -> Result<usize, QueueError> {
        self.completer.taken(self.fetch.chain.head());
        self.refuse_chain(error);
        self.check_ring()?;
        self.publish_some()?;
        Ok(1 + self.fetch.reading_cost())
    }

    /// Refuses the chain whose head is in `chain`: with IOERR where the driver looks for a status; without
    /// one where the chain has no writable byte, so that the driver can't look for any; else latches the ring.
    #[cold]
    pub(super) fn refuse_chain(&mut self, error: ChainError) {
        let fetch = &mut self.fetch;
        let head = fetch.chain.head();
        match fetch.ring.last_writable(&fetch.map, head) {
            LastWritable::At { addr, alone } => match fetch.status_at(addr) {
                Some(status) => {
                    self.completer.note_malformed(error);
                    let refused = Finished {
                        head,
                        status,
                        result: RequestStatus::IoErr,
                        counted: None,
                        data_len: 0,
                        written: 0,
                        // Nothing was written before the status, so it only counts where nothing is.
                        writable_len: u32::from(!alone),
                        writable: &[],
                    };
                    self.completer.finish(&mut fetch.ring, &fetch.map, refused);
                }
                None => self.break_off(ChainError::StatusUnmapped),
            },
            LastWritable::Nowhere => {
                self.completer.note_malformed(error);
                self.completer.add_used(&mut fetch.ring, head, 0);
            }
            LastWritable::Unknown => self.break_off(error),
        }
    }

    /// Breaks the queue for the chain at hand: the next call of the ring says so. The ring itself is sound,
    /// and what was finished before is published.
    fn break_off(&mut self, error: ChainError) {
        self.completer.counters().malformed.add(1);
        // If this fails, the ring has latched its own error.
        let _ = self.publish();
        let head = self.fetch.chain.head();
        self.fetch.ring.break_off(head, error);
    }
}

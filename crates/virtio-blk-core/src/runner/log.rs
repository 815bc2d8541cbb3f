// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The seam for an in-flight log: memory that survives the process and tells its successor which heads
//! were taken and not yet returned.

/// Told about each head on its way. Called in the order of events, from the runner's thread, between the
/// memory accesses that the guest sees; an implementation therefore stores at once (plain memory, no
/// I/O) and never fails.
pub trait InFlightLog: Send {
    /// `head` was taken from the available ring, or is replayed. Called before anything is done for it.
    fn taken(&mut self, head: u16);

    /// `heads` are about to become visible as used, in this order, with one index store that makes the
    /// used index `used_idx`.
    fn returning(&mut self, heads: &[u16], used_idx: u16);

    /// The index store announced by the last [`InFlightLog::returning`] has happened.
    fn returned(&mut self, heads: &[u16], used_idx: u16);
}

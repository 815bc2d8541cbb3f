// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether what the server has acknowledged is still there.
//!
//! A write that completed may be in a volatile cache of the server's until a flush. If the server is replaced meanwhile
//! (killed and started again, its machine as well), a flush of the new one succeeds and says nothing of what was
//! lost with the old one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_blk_core::disk::DiskError;

/// What is known of a disk's completed writes.
#[derive(Default)]
pub(crate) struct Durability {
    /// Changes that completed and were not stable by themselves.
    completed: AtomicU64,
    /// Those of them that a flush covers.
    flushed: AtomicU64,
    /// How often the server may have been replaced.
    epoch: AtomicU64,
    /// Writes may be lost: the `errno` of every later flush.
    lost: OnceLock<i32>,
}

impl Durability {
    /// A change has completed that is not stable by itself.
    pub(crate) fn completed(&self) {
        self.completed.fetch_add(1, Ordering::SeqCst);
    }

    /// What a flush that is submitted now will cover: for [`Durability::flushed`].
    pub(crate) fn mark(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }

    /// A flush has completed.
    pub(crate) fn flushed(&self, mark: u64) {
        self.flushed.fetch_max(mark, Ordering::SeqCst);
    }

    /// How often the server may have been replaced.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// A connection of the epoch `before` was made anew, and what is at its other end may not be the same server.
    /// Returns whether completed writes may be lost, the first time. `trusted`: no server loses any.
    pub(crate) fn replaced(&self, before: u64, trusted: bool) -> bool {
        let next = before + 1;
        if self
            .epoch
            .compare_exchange(before, next, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            // Another connection noticed it before.
            return false;
        }
        let unflushed = self.mark() > self.flushed.load(Ordering::SeqCst);
        unflushed && !trusted && self.lost.set(libc::ECONNRESET).is_ok()
    }

    /// # Errors
    /// [`DiskError::FlushLost`].
    pub(crate) fn check(&self) -> Result<(), DiskError> {
        match self.lost.get() {
            Some(errno) => Err(DiskError::FlushLost { errno: *errno }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_without_a_flush_are_missed() {
        let durability = Durability::default();
        assert!(!durability.replaced(0, false), "nothing was written");
        durability.completed();
        let mark = durability.mark();
        durability.completed();
        durability.flushed(mark);
        assert!(durability.check().is_ok());
        // Of before: this connection follows the other.
        assert!(!durability.replaced(0, false));
        assert!(
            durability.replaced(1, false),
            "the second write was after the flush"
        );
        assert!(matches!(
            durability.check(),
            Err(DiskError::FlushLost { .. })
        ));
        // Later flushes change nothing about that.
        durability.flushed(durability.mark());
        assert!(durability.check().is_err());
    }

    #[test]
    fn a_server_that_is_trusted_is_another_one_all_the_same() {
        let durability = Durability::default();
        durability.completed();
        assert!(!durability.replaced(0, true));
        assert!(durability.check().is_ok());
        assert_eq!(durability.epoch(), 1);
    }

    #[test]
    fn flushed_writes_are_not_missed() {
        let durability = Durability::default();
        durability.completed();
        durability.flushed(durability.mark());
        assert!(!durability.replaced(0, false));
        assert!(durability.check().is_ok());
        assert_eq!(durability.epoch(), 1);
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device and its running queues share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What changes while queues run; read by each of them for each request.
#[derive(Debug)]
pub(crate) struct SharedConfig {
    capacity: AtomicU64,
    writeback: AtomicBool,
}

impl SharedConfig {
    /// With a capacity in sectors, and write-back.
    pub(crate) const fn new(capacity: u64) -> Self {
        Self {
            capacity: AtomicU64::new(capacity),
            writeback: AtomicBool::new(true),
        }
    }

    /// Capacity in sectors.
    #[inline]
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Sets the capacity in sectors. Returns whether it was another.
    pub(crate) fn set_capacity(&self, capacity: u64) -> bool {
        self.capacity.swap(capacity, Ordering::Relaxed) != capacity
    }

    /// The driver's cache mode.
    #[inline]
    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Sets the driver's cache mode.
    pub(crate) fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
    }
}

/// How writes become stable (virtio 1.4, 5.2.5.2 and 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteCache {
    /// No volatile cache below, or the driver flushes: writes need nothing.
    Back,
    /// FLUSH was offered and the driver can't flush: each write is stable before it completes.
    Through,
    /// The driver switches with `writeback`.
    Switchable,
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of an image whether it is open or not.

use std::sync::atomic::{AtomicU64, Ordering};

use virtio_blk_core::disk::{DiskEvent, SECTOR_SIZE};

use crate::listeners::Listeners;

/// The size of an image, and who wants to know of changes.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Bytes that the guest sees.
    capacity: AtomicU64,
    pub listeners: Listeners,
}

impl Control {
    /// For an image of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity: AtomicU64::new(capacity),
            listeners: Listeners::default(),
        }
    }

    /// Bytes that the guest sees.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Takes over a new size in bytes, and tells the listeners if it is one.
    pub fn set_capacity(&self, bytes: u64) {
        if self.capacity.swap(bytes, Ordering::AcqRel) != bytes {
            self.listeners.tell(DiskEvent::Resized {
                capacity: bytes / SECTOR_SIZE,
            });
        }
    }
}

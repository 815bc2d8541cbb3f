// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The size of an image, which others may change.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use virtio_blk_core::disk::{DiskEvent, DiskListener, SECTOR_SIZE};

/// The size of an image, and who is told of a new one.
pub(crate) struct Size {
    name: String,
    /// Sectors.
    capacity: AtomicU64,
    listeners: Mutex<Vec<DiskListener>>,
}

impl Size {
    /// Of the image of this name, which has so many bytes.
    pub(crate) fn new(name: String, bytes: u64) -> Self {
        Self {
            name,
            capacity: AtomicU64::new(bytes / SECTOR_SIZE),
            listeners: Mutex::default(),
        }
    }

    /// In sectors.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub(crate) fn listen(&self, listener: DiskListener) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.push(listener);
    }

    /// The image has so many bytes now. Listeners are told if that is new; the caller holds no lock, and is the only one
    /// that has asked since it did.
    pub(crate) fn set(&self, bytes: u64) {
        let capacity = bytes / SECTOR_SIZE;
        let before = self.capacity.swap(capacity, Ordering::AcqRel);
        if before == capacity {
            return;
        }
        log::info!(
            "{}: the image has {} bytes now, {} before",
            self.name,
            capacity * SECTOR_SIZE,
            before * SECTOR_SIZE
        );
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for listener in listeners {
            listener(DiskEvent::Resized { capacity });
        }
    }
}

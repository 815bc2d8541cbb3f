// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listeners for changes of a disk.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use virtio_blk_core::disk::{DiskEvent, DiskListener};

/// The listeners of one disk.
#[derive(Default)]
pub(crate) struct Listeners(Mutex<Vec<DiskListener>>);

impl Listeners {
    /// Adds one.
    pub fn add(&self, listener: DiskListener) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(listener);
    }

    /// Tells all. No lock is held meanwhile.
    pub fn tell(&self, event: DiskEvent) {
        let all = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for listener in all {
            listener(event);
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Listeners({count})")
    }
}

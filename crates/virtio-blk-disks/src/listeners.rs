// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listeners for events.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_blk_core::disk::DiskEvent;

/// Functions to call for each event; without more said, for changes of a disk.
pub(crate) struct Listeners<F: ?Sized = dyn Fn(DiskEvent) + Send + Sync>(Mutex<Vec<Arc<F>>>);

impl<F: ?Sized> Listeners<F> {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<F>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub fn add(&self, listener: Arc<F>) {
        self.lock().push(listener);
    }

    /// Calls `tell` with each of them. No lock is held meanwhile.
    pub fn each(&self, tell: impl Fn(&F)) {
        let all = self.lock().clone();
        for listener in all {
            tell(&listener);
        }
    }
}

impl Listeners {
    /// Tells all of a change of the disk.
    pub fn tell(&self, event: DiskEvent) {
        self.each(|listener| listener(event));
    }
}

impl<F: ?Sized> Default for Listeners<F> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<F: ?Sized> fmt::Debug for Listeners<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listeners({})", self.lock().len())
    }
}

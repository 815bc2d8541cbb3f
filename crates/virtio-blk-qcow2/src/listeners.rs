// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who wants to know of changes to a disk.

use std::fmt;
use std::sync::Mutex;

use virtio_blk_core::disk::{DiskEvent, DiskListener};

use crate::sync::lock;

/// The listeners of one disk.
#[derive(Default)]
pub struct Listeners(Mutex<Vec<DiskListener>>);

impl Listeners {
    /// Adds one.
    pub fn add(&self, listener: DiskListener) {
        lock(&self.0).push(listener);
    }

    /// Tells all. No lock is held meanwhile.
    pub fn tell(&self, event: DiskEvent) {
        let all = lock(&self.0).clone();
        for listener in all {
            listener(event);
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listeners({})", lock(&self.0).len())
    }
}

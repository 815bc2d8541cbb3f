// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was held back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a [`super::ThrottleDisk`] held back, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleStats {
    /// Operations that wait now.
    pub waiting: u64,
    /// Operations that had to wait and were released.
    pub released: u64,
    /// How long those waited, added up.
    pub time: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    waiting: AtomicU64,
    released: AtomicU64,
    nanos: AtomicU64,
}

impl Counts {
    pub(super) fn held(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn released(&self, nanos: u64) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.released.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn cancelled(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> ThrottleStats {
        ThrottleStats {
            waiting: self.waiting.load(Ordering::Relaxed),
            released: self.released.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

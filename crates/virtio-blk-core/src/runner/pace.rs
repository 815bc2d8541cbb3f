// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much one pass may do for ranges, and when what it finished is due to be shown.

use std::time::{Duration, Instant};

/// What a disk finished inside the call is shown at the latest after this time.
const PUBLISH_AFTER: Duration = Duration::from_micros(100);

/// The state of a pass. Only looked at for ranges, and for operations that took the long way.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What may still be done for ranges.
    left: usize,
    /// Something waits for the next pass.
    held: bool,
    /// When something was last shown in this pass, as far as that was looked at.
    shown: Option<Instant>,
}

impl Pace {
    /// A new pass.
    #[inline(always)]
    pub(super) fn begin(&mut self, budget: usize) {
        self.left = budget;
        self.shown = None;
    }

    /// Whether an operation on `len` bytes of the medium may be begun in this pass; then it counts. At least
    /// one may.
    pub(super) fn spend(&mut self, len: u64) -> bool {
        if self.left == 0 {
            self.held = true;
            return false;
        }
        let weight = 1 + usize::try_from(len >> 16).unwrap_or(usize::MAX - 1);
        self.left = self.left.saturating_sub(weight);
        true
    }

    /// Whether something waits for the next pass alone.
    pub(super) const fn is_held(&self) -> bool {
        self.held
    }

    /// As `is_held`; it waits no longer.
    pub(super) fn take_held(&mut self) -> bool {
        std::mem::take(&mut self.held)
    }

    /// Whether what was finished is due, after an operation that may have taken long.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = match self.shown {
            // How long the first took is not known.
            None => true,
            Some(at) => now.saturating_duration_since(at) >= PUBLISH_AFTER,
        };
        if due {
            self.shown = Some(now);
        }
        due
    }
}

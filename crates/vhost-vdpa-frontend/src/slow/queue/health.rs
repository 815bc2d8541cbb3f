// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A look after a device that finishes nothing.

use std::time::{Duration, Instant};

use super::SlowQueue;

/// How often the status of a device that finishes nothing is checked, and the device kicked again: some lose a kick.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// When the device last made progress, as far as the clock was looked at: it is only where nothing was finished, which is
/// rare on a busy queue.
pub(super) struct Health {
    /// The device finished a request since the clock was looked at, or had nothing.
    moved: bool,
    progress: Instant,
    checked: Instant,
}

impl Health {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            moved: true,
            progress: now,
            checked: now,
        }
    }

    /// The device finished a request, be it all of an operation or a part.
    #[inline]
    pub(super) const fn note_progress(&mut self) {
        self.moved = true;
    }
}

impl SlowQueue {
    /// Looks whether the device is alive, where it seems not to be: it has something, and finished nothing.
    pub(super) fn check_health(&mut self) {
        if self.in_flight() == 0 {
            return;
        }
        let now = Instant::now();
        let health = &mut self.health;
        if std::mem::take(&mut health.moved) {
            (health.progress, health.checked) = (now, now);
            return;
        }
        let progress = health.progress;
        if now.duration_since(health.checked) < self.check_interval() {
            return;
        }
        self.health.checked = now;
        if self.shared.looks_broken() {
            self.shared.give_up(&"its status says that it does not run");
        } else if let Some(timeout) = self.shared.options.timeout
            && now.duration_since(progress) >= timeout
        {
            self.shared
                .give_up(&format_args!("nothing was finished for {timeout:?}"));
        } else if let Some(shadow) = &self.shadow {
            self.shared.device.kick_vq(shadow.index);
        }
    }

    /// When to look next. `None`: the device has nothing. May have passed, if the clock was not looked at for long.
    pub(super) fn next_check(&self) -> Option<Instant> {
        (self.in_flight() != 0).then(|| self.health.checked + self.check_interval())
    }

    fn check_interval(&self) -> Duration {
        let timeout = self.shared.options.timeout;
        timeout.map_or(HEALTH_CHECK_INTERVAL, |timeout| {
            timeout.min(HEALTH_CHECK_INTERVAL)
        })
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How far long work is: a bar on standard error, where that is a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Work that is over sooner has no bar.
const SHORT: Duration = Duration::from_millis(300);
/// How often the bar is drawn.
const PAUSE: Duration = Duration::from_millis(100);
/// Characters of a bar.
const WIDTH: usize = 40;

/// A bar that is redrawn, and gone when this is dropped.
pub struct Progress {
    what: &'static str,
    is_wanted: bool,
    is_shown: bool,
    next: Instant,
}

impl Progress {
    /// Of work that is called `what`. With `json` standard error is no place for it.
    pub fn new(what: &'static str, json: bool) -> Self {
        Self {
            what,
            is_wanted: !json && std::io::stderr().is_terminal(),
            is_shown: false,
            next: Instant::now() + SHORT,
        }
    }

    /// So much is done, of so much.
    pub fn tell(&mut self, done: u64, all: u64) {
        let now = Instant::now();
        if !self.is_wanted || now < self.next {
            return;
        }
        self.next = now + PAUSE;
        self.is_shown = true;
        let mut out = std::io::stderr().lock();
        let _ = write!(out, "\r\x1b[2K{} {}", self.what, bar(done, all));
        let _ = out.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            // A terminal that is gone needs it no more.
            let _ = std::io::stderr().write_all(b"\r\x1b[2K");
        }
    }
}

/// The bar and the share in percent.
fn bar(done: u64, all: u64) -> String {
    let share = |of: u64| {
        let share = u128::from(done.min(all)) * u128::from(of) / u128::from(all.max(1));
        usize::try_from(share).unwrap_or(0)
    };
    let filled = share(WIDTH as u64);
    format!(
        "[{}{}] {:3}%",
        "#".repeat(filled),
        " ".repeat(WIDTH - filled),
        share(100)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_what_is_done() {
        assert_eq!(bar(0, 0), format!("[{}]   0%", " ".repeat(40)));
        assert_eq!(
            bar(1, 2),
            format!("[{}{}]  50%", "#".repeat(20), " ".repeat(20))
        );
        let whole = format!("[{}] 100%", "#".repeat(40));
        assert_eq!(bar(u64::MAX, u64::MAX), whole);
        assert_eq!(bar(9, 3), whole);
    }
}

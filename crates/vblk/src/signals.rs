// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SIGTERM and SIGINT: the first ends in order, the second at once. SIGHUP looks at the disk again. SIGXFSZ, at a
//! write beyond the limit on the length of files, is not the end: the write fails.

use std::io;

use signal_hook::consts::signal::SIGXFSZ;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Handles signals on a thread of its own: calls `stop` at the first SIGTERM or SIGINT and `refresh` at
/// each SIGHUP; ends the process at the second. Neither may block: no signal is handled meanwhile.
///
/// # Errors
/// The handlers or the thread can't be set up.
pub fn handle(
    stop: impl Fn() + Send + 'static,
    refresh: impl Fn() + Send + 'static,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXFSZ])?;
    std::thread::Builder::new()
        .name("vblk-signals".into())
        .spawn(move || {
            let (mut stopping, mut is_limit_told) = (false, false);
            for signal in signals.forever() {
                if signal == SIGHUP {
                    refresh();
                } else if signal == SIGXFSZ {
                    // One comes with each write, of which a guest makes as many as it likes.
                    if !std::mem::replace(&mut is_limit_told, true) {
                        log::warn!("a file reached the limit on the length of files (ulimit -f)");
                    }
                } else if stopping {
                    std::process::exit(128 + signal);
                } else {
                    stopping = true;
                    log::info!("finishing requests; a second signal ends at once");
                    stop();
                }
            }
        })?;
    Ok(())
}

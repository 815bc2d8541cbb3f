// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waiting at a terminal: for a time, for the key `q`, for a signal.

use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{emulate_default_handler, pipe};

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The time is over.
    Time,
    /// The user wants the end.
    Quit,
}

/// The terminal that keys come from, as it was before once this is dropped; and signals.
pub(super) struct Terminal {
    /// How the terminal was. `None`: keys are not read.
    before: Option<Termios>,
    interrupted: UnixStream,
    terminated: UnixStream,
}

/// A stream that has something to read once `signal` came.
fn notice(signal: i32) -> io::Result<UnixStream> {
    let (ours, handler) = UnixStream::pair()?;
    pipe::register(signal, handler)?;
    Ok(ours)
}

/// Has keys come one by one and unseen, where standard input is a terminal that this process may use.
fn read_keys() -> Option<Termios> {
    let input = io::stdin();
    // A process in the background that changes the terminal is stopped.
    if !input.is_terminal() || tcgetpgrp(&input).ok()? != getpgrp() {
        return None;
    }
    let before = tcgetattr(&input).ok()?;
    let mut keys = before.clone();
    keys.local_modes
        .remove(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(&input, OptionalActions::Now, &keys).ok()?;
    Some(before)
}

impl Terminal {
    /// Takes keys and signals over.
    ///
    /// # Errors
    /// A descriptor can't be had.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupted: notice(SIGINT)?,
            terminated: notice(SIGTERM)?,
            before: read_keys(),
        })
    }

    /// Whether keys are read, so that `q` ends it.
    pub(super) fn has_keys(&self) -> bool {
        self.before.is_some()
    }

    fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            // A terminal that is gone needs it no more.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        }
    }

    /// Waits for `time`, or until the user wants the end. At SIGTERM the process ends.
    ///
    /// # Errors
    /// Waiting failed.
    pub(super) fn wait(&mut self, time: Duration) -> io::Result<Wake> {
        let until = Instant::now() + time;
        let input = io::stdin();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![
                PollFd::new(&self.interrupted, PollFlags::IN),
                PollFd::new(&self.terminated, PollFlags::IN),
            ];
            if self.has_keys() {
                fds.push(PollFd::new(&input, PollFlags::IN));
            }
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(Wake::Time),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let is_ready = |index| ready.get(index).copied().unwrap_or(false);
            if is_ready(0) {
                return Ok(Wake::Quit);
            }
            if is_ready(1) {
                self.restore();
                emulate_default_handler(SIGTERM)?;
            }
            if is_ready(2) && self.key()? {
                return Ok(Wake::Quit);
            }
        }
    }

    /// Reads keys. Returns whether one of them wants the end.
    fn key(&mut self) -> io::Result<bool> {
        let mut keys = [0; 64];
        let read = io::stdin().read(&mut keys)?;
        if read == 0 {
            // Nothing comes any more.
            self.restore();
        }
        Ok(keys.iter().take(read).any(|key| matches!(key, b'q' | b'Q')))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

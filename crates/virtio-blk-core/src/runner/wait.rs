// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waiting for a disk: the one place of this crate that blocks.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Waits until `fd` is readable or `deadline` has passed. Signals and errors end the wait early: the
/// caller looks at its condition again anyway.
pub(super) fn readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) {
    let mut pollfd = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut pollfd, 1, poll_timeout(deadline)) };
}

/// `deadline` as an argument of `poll`: milliseconds, rounded up; -1 without one.
pub(super) fn poll_timeout(deadline: Option<Instant>) -> libc::c_int {
    deadline.map_or(-1, |at| {
        let left = at.saturating_duration_since(Instant::now());
        let up = left + Duration::from_micros(999);
        libc::c_int::try_from(up.as_millis()).unwrap_or(libc::c_int::MAX)
    })
}

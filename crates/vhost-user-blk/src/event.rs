// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Eventfds that a client handed over.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};

use rustix::fs::OFlags;
use vmm_sys_util::eventfd::EventFd;

/// Accepts a descriptor as an eventfd: anything else could block or spin a queue's thread. Makes it
/// non-blocking, as the client's own end then is too.
///
/// # Errors
/// It is something else, or its flags can't be set.
pub(crate) fn check(file: &File) -> io::Result<()> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    match std::fs::read_link(link) {
        Ok(target) if target.as_os_str() == "anon_inode:[eventfd]" => {}
        Ok(target) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the client sent {} where an eventfd belongs",
                    target.display()
                ),
            ));
        }
        // A sandbox without /proc: take it as it is.
        Err(_) => {}
    }
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?;
    Ok(())
}

/// The descriptor as vmm-sys-util's type.
pub(crate) fn eventfd(file: File) -> EventFd {
    // SAFETY: the descriptor is open and nobody else's: `into_raw_fd` gave up its ownership.
    unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }
}

/// Signals an eventfd. A full counter needs no further signal.
pub(crate) fn signal(mut file: &File) {
    let _ = file.write(&1u64.to_ne_bytes());
}

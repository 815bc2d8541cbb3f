// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks on images, in the terms of QEMU.
//!
//! QEMU says by shared locks on single bytes what it does with an image, and what it does not let others do; and
//! looks whether anybody holds a byte that stands against it (`raw_apply_lock_bytes` and `raw_check_lock_bytes` in
//! its `block/file-posix.c`). The bytes from 100 on are permissions in use, those from 200 on permissions that are
//! not shared. We do the same, so that two writers exclude each other, QEMU's and ours alike, and readers that allow for
//! a writer (`qemu-img -U`) work beside us as they do beside QEMU.
//!
//! Locks belong to the open file description (`F_OFD_SETLK`): they end when its last descriptor is closed, and two
//! disks of one process exclude each other too.

mod holder;

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::error::OpenError;
use super::sys;
pub use holder::Holder;

/// Permissions, as offsets of their bytes: reading consistent data, writing, resizing.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// Where permissions in use are said.
const USED: i64 = 100;
/// Where permissions are said that others don't get.
const UNSHARED: i64 = 200;
/// Bytes in each of the two ranges.
const PERMISSIONS: i64 = 5;

/// How long opening an image waits for its lock. A process that was killed keeps its locks until the kernel has
/// taken its io_urings apart, which happens some milliseconds after its end, or more than 200 on a host that has
/// much else to do.
pub(super) const OPEN_PATIENCE: Duration = Duration::from_secs(2);
/// How long taking an image over waits for who uses it.
pub(super) const HANDOVER_PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries; up to twice that, so that two who try don't do so at the same moments.
const PAUSE: Duration = Duration::from_millis(15);

/// When a file is locked against other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lock {
    /// From its opening until the disk and its queues are gone.
    #[default]
    On,
    /// Never.
    Off,
    /// While the disk is in use, from [`Disk::activate`](virtio_blk_core::disk::Disk::activate) to
    /// [`Disk::deactivate`](virtio_blk_core::disk::Disk::deactivate): so that two servers can hand an image over.
    Handover,
}

impl From<bool> for Lock {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

/// Locks a file for a writer, or for a reader; tries for as long as `patience`.
///
/// # Errors
/// Somebody holds a lock against it, or the file system has no locks. No lock is left behind.
pub(super) fn lock(
    file: &File,
    writer: bool,
    patience: Duration,
    path: &Path,
) -> Result<(), OpenError> {
    let start = Instant::now();
    loop {
        let Err(source) = attempt(file, writer) else {
            return Ok(());
        };
        unlock(file);
        if !matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
            return Err(OpenError::NoLocks {
                path: path.to_owned(),
                source,
            });
        }
        let waited = start.elapsed();
        if waited >= patience {
            return Err(OpenError::Locked {
                path: path.to_owned(),
                holder: Holder::find(file),
                waited: patience,
            });
        }
        let odd = u64::from(waited.subsec_nanos()) % PAUSE.as_micros() as u64;
        std::thread::sleep(PAUSE + Duration::from_micros(odd));
    }
}

/// Lets go of all locks of a file.
pub(super) fn unlock(file: &File) {
    for first in [USED, UNSHARED] {
        // Nothing else can be done; closing the file does it too.
        let _ = sys::lock_bytes(file, sys::LockCall::Set, libc::F_UNLCK, first, PERMISSIONS);
    }
}

/// Says what is done, then looks whether anybody minds. In this order, of two who do so at the same time at least
/// one sees the other.
fn attempt(file: &File, writer: bool) -> io::Result<()> {
    let used: &[i64] = if writer {
        &[READ, WRITE, RESIZE]
    } else {
        &[READ]
    };
    let unshared = [WRITE, RESIZE];
    let say = |first: i64, permissions: &[i64]| {
        permissions.iter().try_for_each(|permission| {
            let byte = first + permission;
            sys::lock_bytes(file, sys::LockCall::Set, libc::F_RDLCK, byte, 1).map(drop)
        })
    };
    say(USED, used)?;
    say(UNSHARED, &unshared)?;
    let against = |first: i64, permissions: &[i64]| {
        permissions.iter().try_for_each(|permission| {
            let byte = first + permission;
            let found = sys::lock_bytes(file, sys::LockCall::Get, libc::F_WRLCK, byte, 1)?;
            if i32::from(found) == libc::F_UNLCK {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
        })
    };
    against(USED, &unshared)?;
    against(UNSHARED, used)
}

#[cfg(test)]
mod tests;

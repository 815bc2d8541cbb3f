// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a file was changed, by the time of its last change.
//!
//! Linux sets `ctime` at every write and every change of the size or of holes, and nobody can set it back
//! (`file_update_time` in the kernel's `fs/inode.c`). Two changes within one tick of the kernel's coarse clock may have
//! the same time; so a file's time names its content only once that clock has moved on.
//!
//! Two things it does not tell. A store through a mapping sets the time when it makes a page dirty, not once it is so:
//! queues that write through one unmap it when they are dropped, which is before the file is let go of. And after a
//! power cut a file may have an older time with newer content, as `fdatasync` need not write the time: a stamp is good
//! for one boot of the host.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use virtio_blk_core::disk::ContentStamp;

use super::sys;

/// Longer than the kernel's coarse clock stands still: 10 ms with `CONFIG_HZ=100`.
const LONGEST_TICK: Duration = Duration::from_millis(25);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(1);
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// The content of a file now. `None`: its file system does not vouch for its times (block devices, files in memory,
/// network file systems), or stores them in whole seconds.
pub(super) fn of(file: &File) -> Option<ContentStamp> {
    if !sys::keeps_times(file) {
        return None;
    }
    let about = file.metadata().ok().filter(|about| about.is_file())?;
    let seconds = u64::try_from(about.ctime()).ok()?;
    let nanoseconds = u64::try_from(about.ctime_nsec()).ok()?;
    let precise = nanoseconds != 0 && nanoseconds < SECOND;
    precise.then_some(ContentStamp([
        about.dev(),
        about.ino(),
        seconds,
        nanoseconds,
    ]))
}

/// The same, if whatever changes the file after this call gives it another time. Waits a tick of the kernel's clock for
/// that, if the last change is as young.
pub(super) fn settled(file: &File) -> Option<ContentStamp> {
    let stamp = of(file)?;
    let ContentStamp([_, _, seconds, nanoseconds]) = stamp;
    let deadline = Instant::now() + LONGEST_TICK;
    while (seconds, nanoseconds) >= sys::coarse_time()? {
        if Instant::now() >= deadline {
            // The clock was set back.
            return None;
        }
        std::thread::sleep(POLL);
    }
    Some(stamp)
}

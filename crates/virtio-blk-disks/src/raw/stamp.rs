// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a file was changed, by the time of its last change.
//!
//! Linux sets `ctime` at every write and every change of the size or of holes, and nobody can set it back
//! (`file_update_time` in the kernel's `fs/inode.c`). Two changes within one tick of the kernel's coarse clock may have
//! the same time; so a file's time names its content only once that clock has moved on.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use virtio_blk_core::disk::ContentStamp;

use super::sys;

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

/// The same, if whatever changes the file after this call gives it another time.
pub(super) fn settled(file: &File) -> Option<ContentStamp> {
    let stamp = of(file)?;
    let ContentStamp([_, _, seconds, nanoseconds]) = stamp;
    ((seconds, nanoseconds) < sys::coarse_time()?).then_some(stamp)
}

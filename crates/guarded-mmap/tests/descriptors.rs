// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process without a descriptor to spare. A test program of its own: the limit is the process's.

#![allow(clippy::unwrap_used)]

use std::fs::File;

use guarded_mmap::{Mapping, Protection};

#[test]
fn memory_is_taken_away_without_a_descriptor() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let mapping = Mapping::new(&file, 0, 8192, Protection::ReadWrite).unwrap();
    // Whatever number is free.
    let mut filler = Vec::new();
    let limit = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    // SAFETY: the pointer is valid.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
    while let Ok(file) = File::open("/dev/null") {
        filler.push(file);
    }
    mapping.revoke().unwrap();
    assert!(mapping.is_poisoned());
    // SAFETY: mapped for writing, and nobody else uses it.
    unsafe { mapping.as_ptr().write_volatile(7) };
    drop(filler);
    let mut byte = [1];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).unwrap();
    assert_eq!(byte, [0], "the write did not reach the file");
}

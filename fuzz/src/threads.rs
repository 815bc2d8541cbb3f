// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that outlive a run.

use std::time::{Duration, Instant};

/// How long they may.
const PATIENCE: Duration = Duration::from_secs(10);

fn count() -> usize {
    std::fs::read_dir("/proc/self/task")
        .expect("a file system of processes")
        .count()
}

/// Does something and waits until the threads that it started have ended: to be called where nothing else runs. One that
/// ends only just then would look like a leak to the sanitizer.
pub fn outlive(act: impl FnOnce()) {
    let before = count();
    act();
    let deadline = Instant::now() + PATIENCE;
    while count() > before {
        assert!(Instant::now() < deadline, "a thread does not end");
        std::thread::sleep(Duration::from_micros(50));
    }
}

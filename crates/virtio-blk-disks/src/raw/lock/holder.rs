// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who has a lock on a file.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Who has a lock on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Another disk of this process.
    ThisProcess,
    /// A process with this number and name.
    Process(u32, String),
    /// That can't be found out: a process of somebody else, or one that has just ended.
    Unknown,
}

impl Holder {
    /// Looks through what the processes say of their open files; the kernel names no owner of such a lock.
    pub(super) fn find(file: &File) -> Self {
        let Ok(about) = file.metadata() else {
            return Self::Unknown;
        };
        let (major, minor) = (libc::major(about.dev()), libc::minor(about.dev()));
        let place = format!(" {major:02x}:{minor:02x}:{} ", about.ino());
        let holds = |process: &Path| {
            let files = fs::read_dir(process.join("fdinfo")).into_iter().flatten();
            files.flatten().any(|file| {
                let text = fs::read_to_string(file.path()).unwrap_or_default();
                let mut lines = text.lines();
                lines.any(|line| line.starts_with("lock:") && line.contains(&place))
            })
        };
        if holds(Path::new("/proc/self")) {
            return Self::ThisProcess;
        }
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let number = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let Some(number) = number else {
                continue;
            };
            if holds(&process.path()) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Self::Process(number, name.trim().to_owned());
            }
        }
        Self::Unknown
    }
}

impl fmt::Display for Holder {
    /// A sentence about the image, with what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisProcess => f.write_str(
                "another disk of this process uses it. Is the image given twice? `fuser -v` and `lsof` show all \
                 users of a file",
            ),
            Self::Process(number, name) => write!(
                f,
                "process {number} ({name}) uses it, see `fuser -v` or `lsof`. End that one"
            ),
            Self::Unknown => f.write_str(
                "something else uses it (a virtual machine, qemu-storage-daemon, vblk). `fuser -v` or `lsof` on it \
                 shows what. End that",
            ),
        }
    }
}

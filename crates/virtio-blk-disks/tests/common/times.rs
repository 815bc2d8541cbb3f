// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A directory on a file system whose times prove that a file was not changed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the file system of the build has other times (overlayfs in containers, tmpfs), another one.
pub struct TimedDirectory {
    directory: tempfile::TempDir,
    /// Where an image of ext4 is mounted, in the directory.
    mounted: Option<PathBuf>,
}

impl TimedDirectory {
    /// `None`, with a word about it, if this host has no such file system and lets this process make none.
    pub fn new() -> Option<Self> {
        let build = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let mut places = vec![build, std::env::temp_dir(), "/var/tmp".into()];
        places.extend(std::env::var_os("HOME").map(PathBuf::from));
        let made = (places.iter())
            .filter(|place| keeps_times(place))
            .find_map(|place| tempfile::tempdir_in(place).ok());
        if let Some(directory) = made {
            let mounted = None;
            return Some(Self { directory, mounted });
        }
        let found = Self::mount();
        if found.is_none() {
            eprintln!(
                "NOT TESTED: what a file's times prove. No directory of {places:?} is on ext4, XFS or Btrfs, and no \
                 image of ext4 can be mounted here (as root, with mkfs.ext4 and loop devices)."
            );
        }
        found
    }

    /// Mounts a new file system in a file.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let (image, at) = (directory.path().join("fs.img"), directory.path().join("fs"));
        File::create(&image).ok()?.set_len(32 << 20).ok()?;
        std::fs::create_dir(&at).ok()?;
        let run = |command: &mut Command| command.output().is_ok_and(|done| done.status.success());
        let made = run(Command::new("mkfs.ext4")
            .args(["-q", "-I", "256"])
            .arg(&image))
            && run(Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &at]));
        let mounted = Some(at);
        made.then_some(Self { directory, mounted })
    }

    pub fn path(&self) -> &Path {
        (self.mounted.as_deref()).unwrap_or_else(|| self.directory.path())
    }
}

impl Drop for TimedDirectory {
    fn drop(&mut self) {
        if let Some(mounted) = &self.mounted {
            let _ = Command::new("umount").arg(mounted).status();
        }
    }
}

/// Whether the file system is one of those whose times prove something: ext4, XFS, Btrfs.
pub fn keeps_times(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|about| {
        [0xEF53, 0x5846_5342, 0x9123_683E].contains(&(about.f_type as u64 & 0xFFFF_FFFF))
    })
}

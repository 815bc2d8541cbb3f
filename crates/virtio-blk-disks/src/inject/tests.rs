// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::unix::fs::FileExt;

use super::*;

fn write(offset: u64) -> Made {
    Made::new(Call::Write, offset, 512)
}

fn sync() -> Made {
    Made::new(Call::Sync, 0, 0)
}

#[test]
fn the_nth_call_of_the_kinds_fails_once_or_for_good() {
    for (for_good, failed) in [(false, [2].as_slice()), (true, &[2, 3, 4])] {
        let injector = Injector::new();
        let hook = Hook::new(&injector, &tempfile::tempfile().unwrap());
        hook.around(sync(), || 0);
        let plan = Plan::new(2, &[Call::Sync], libc::EIO);
        injector.arm(if for_good { plan.for_good() } else { plan });
        for number in 1..5 {
            assert_eq!(hook.around(write(0), || 512), 512);
            let mut made = false;
            let outcome = hook.around(sync(), || {
                made = true;
                0
            });
            let fails = failed.contains(&number);
            assert_eq!(
                (outcome, made),
                (if fails { -libc::EIO } else { 0 }, !fails)
            );
        }
        assert_eq!(injector.struck(), failed.len() as u64);
        injector.disarm();
        assert_eq!(hook.around(sync(), || 0), 0);
        assert_eq!(
            (injector.calls(Call::Sync), injector.calls(Call::Write)),
            (6, 4)
        );
        assert_eq!(injector.calls(Call::Completion), 10);
    }
}

#[test]
fn a_completion_fails_although_the_call_was_made() {
    let injector = Injector::new();
    let hook = Hook::new(&injector, &tempfile::tempfile().unwrap());
    injector.arm(Plan::new(1, &[Call::Completion], libc::ENOSPC));
    let mut made = false;
    let outcome = hook.around(write(0), || {
        made = true;
        512
    });
    assert!(made);
    assert_eq!(outcome, -libc::ENOSPC);
}

#[test]
fn a_failed_write_back_is_told_once_per_description() {
    let injector = Injector::new();
    let file = tempfile::tempfile().unwrap();
    let (one, two) = (Hook::new(&injector, &file), Hook::new(&injector, &file));
    injector.arm(Plan::new(1, &[Call::WriteBack], libc::EIO));
    assert_eq!(one.around(write(0), || 512), 512);
    let later = one.again(&file).unwrap();
    for hook in [&one, &two] {
        assert_eq!(hook.around(sync(), || 0), -libc::EIO);
        assert_eq!(hook.around(sync(), || 0), 0);
    }
    assert_eq!(later.around(sync(), || 0), 0);
}

/// A file of four sectors with a write of `value` to each that is asked for.
struct Tracked {
    directory: tempfile::TempDir,
    injector: Injector,
    hook: Hook,
    file: File,
}

impl Tracked {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, [0; 2048]).unwrap();
        let injector = Injector::new();
        injector.track(&path).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let hook = Hook::new(&injector, &file);
        Self {
            directory,
            injector,
            hook,
            file,
        }
    }

    fn write(&self, sector: u64, value: u8) -> i32 {
        self.hook.around(write(sector * 512), || {
            self.file.write_all_at(&[value; 512], sector * 512).unwrap();
            512
        })
    }

    fn sync(&self) -> i32 {
        self.hook.around(sync(), || 0)
    }

    /// The first byte of each sector after a cut.
    fn cut(&self, keep: Keep) -> Vec<u8> {
        self.injector.cut(keep).unwrap();
        let content = std::fs::read(self.directory.path().join("disk.img")).unwrap();
        content.chunks(512).map(|sector| sector[0]).collect()
    }
}

#[test]
fn a_cut_leaves_what_is_stable_and_what_is_kept() {
    for (keep, left) in [
        (Keep::Nothing, [1, 0, 1, 0]),
        (Keep::Everything, [3, 2, 1, 0]),
    ] {
        let tracked = Tracked::new();
        tracked.write(0, 1);
        tracked.write(2, 1);
        assert_eq!(tracked.sync(), 0);
        tracked.write(1, 2);
        tracked.write(0, 3);
        assert_eq!(tracked.cut(keep), left);
    }
}

#[test]
fn a_failed_sync_drops_what_it_was_to_make_stable() {
    for kind in [Call::Sync, Call::Completion] {
        let tracked = Tracked::new();
        tracked.write(0, 1);
        tracked.injector.arm(Plan::new(1, &[kind], libc::EIO));
        assert_eq!(tracked.sync(), -libc::EIO);
        tracked.write(1, 2);
        assert_eq!(tracked.sync(), 0);
        // Linux leaves the pages in its cache, clean.
        assert_eq!(tracked.file.metadata().unwrap().len(), 2048);
        assert_eq!(tracked.cut(Keep::Everything), [0, 2, 0, 0]);
    }
}

#[test]
fn a_failed_write_back_drops_what_was_written_before() {
    let tracked = Tracked::new();
    tracked
        .injector
        .arm(Plan::new(2, &[Call::WriteBack], libc::EIO));
    for sector in 0..3 {
        assert_eq!(tracked.write(sector, 1), 512);
    }
    assert_eq!((tracked.sync(), tracked.sync()), (-libc::EIO, 0));
    assert_eq!(tracked.cut(Keep::Everything), [0, 0, 1, 0]);
}

#[test]
fn what_a_stable_write_stored_is_stable() {
    let tracked = Tracked::new();
    let made = Made {
        stable: true,
        ..write(512)
    };
    tracked.write(0, 1);
    tracked.hook.around(made, || {
        tracked.file.write_all_at(&[2; 512], 512).unwrap();
        512
    });
    assert_eq!(tracked.cut(Keep::Nothing), [0, 2, 0, 0]);
}

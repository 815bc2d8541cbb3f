// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Raw disks on a block device of the host: a loop device, where this process may make one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{BLOCK, Rig, act, directory, image, read, run};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use virtio_blk_core::disk::{Disk, DiskError, DiskEvent, IoBuf, OpKind};
use virtio_blk_disks::{Engine, RawDisk, RawOptions};

const BLOCKS: u64 = 2048;

/// A loop device over a file. Detached on drop.
struct Loop(PathBuf);

impl Loop {
    /// `None`, with a word about it, where that is not possible.
    fn new(file: &Path, sector: u32) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(file)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Self(name.trim().into()))
            }
            other => {
                eprintln!("no loop device here, nothing tested: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_behaves_like_the_model() {
    let directory = directory();
    let path = image(directory.path(), BLOCKS as usize * BLOCK);
    let Some(device) = Loop::new(&path, 512) else {
        return;
    };
    for engine in [Engine::Sync, Engine::Auto] {
        for direct in [false, true] {
            let options = RawOptions::new(&device.0).engine(engine).direct(direct);
            let acts = proptest::collection::vec(act(BLOCKS, 64), 1..60);
            let mut runner = TestRunner::new(ProptestConfig {
                cases: 12,
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            let result = runner.run(&acts, |acts| {
                let disk = RawDisk::open(&options).unwrap();
                assert_eq!(disk.caps().capacity, BLOCKS);
                let mut rig = Rig::new(&disk, 32, BLOCK);
                acts.into_iter().for_each(|act| rig.act(act));
                rig.finish();
                Ok(())
            });
            result.unwrap_or_else(|error| panic!("{engine:?} direct {direct}: {error}"));
        }
    }
}

#[test]
fn what_a_block_device_says_is_advertised() {
    let directory = directory();
    let path = image(directory.path(), BLOCKS as usize * BLOCK);
    let Some(device) = Loop::new(&path, 4096) else {
        return;
    };
    let disk = RawDisk::open(&RawOptions::new(&device.0)).unwrap();
    let caps = disk.caps();
    caps.validate().unwrap();
    assert_eq!(caps.align.guest_block, 4096);
    assert!(caps.secure_erase.is_none());
    let mut queue = disk.open_queue(1).unwrap();
    assert!(matches!(
        read(&mut *queue, 512, 512),
        Err(DiskError::Misaligned)
    ));
    if caps.discard.is_some() {
        let discard = OpKind::Discard {
            offset: 4096,
            len: 8192,
        };
        run(&mut *queue, discard, IoBuf::new()).result.unwrap();
        assert_eq!(read(&mut *queue, 4096, 8192).unwrap(), [0; 8192]);
    }
    drop((queue, disk));
    let small = RawOptions::new(&device.0).block_size(Some(512));
    let message = RawDisk::open(&small).unwrap_err().to_string();
    assert!(message.contains("4096"), "{message}");
}

#[test]
fn refresh_sees_that_a_device_grew() {
    let directory = directory();
    let path = image(directory.path(), BLOCKS as usize * BLOCK);
    let Some(device) = Loop::new(&path, 512) else {
        return;
    };
    let disk = RawDisk::open(&RawOptions::new(&device.0)).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    disk.listen(Arc::new(move |event| log.lock().unwrap().push(event)));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(2 * BLOCKS * BLOCK as u64).unwrap();
    let status = Command::new("losetup")
        .arg("--set-capacity")
        .arg(&device.0)
        .status();
    assert!(status.unwrap().success());
    disk.refresh().unwrap();
    let capacity = 2 * BLOCKS;
    assert_eq!(disk.caps().capacity, capacity);
    assert_eq!(*events.lock().unwrap(), [DiskEvent::Resized { capacity }]);
}

#[test]
fn a_device_that_the_host_set_read_only_is_refused_with_the_cure() {
    let directory = directory();
    let path = image(directory.path(), BLOCKS as usize * BLOCK);
    let Some(device) = Loop::new(&path, 512) else {
        return;
    };
    let set = |how| {
        let status = Command::new("blockdev").arg(how).arg(&device.0).status();
        assert!(status.unwrap().success());
    };
    set("--setro");
    for options in [
        RawOptions::new(&device.0),
        RawOptions::new(&device.0).inspect(true),
    ] {
        let message = RawDisk::open(&options).unwrap_err().to_string();
        for part in ["readonly=on", "--setrw", device.0.to_str().unwrap()] {
            assert!(message.contains(part), "{message}");
        }
        let disk = RawDisk::open(&options.read_only(true)).unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        read(&mut *queue, 0, BLOCK).unwrap();
    }
    set("--setrw");
    let disk = RawDisk::open(&RawOptions::new(&device.0)).unwrap();
    let error = disk.resize(1 << 30).unwrap_err().to_string();
    assert!(error.contains("block device"), "{error}");
    let mut queue = disk.open_queue(1).unwrap();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
}

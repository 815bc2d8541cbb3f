// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Raw disks on a block device of the host: a loop device, where this process may make one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
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

/// A file system in memory of a few bytes, at a directory. Unmounted on drop.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// `None`, with a word about it, where that is not possible.
    fn new(directory: &'a Path, bytes: usize) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "small"])
            .arg(directory)
            .status();
        if matches!(&status, Ok(status) if status.success()) {
            return Some(Self(directory));
        }
        eprintln!("nothing can be mounted here, nothing tested: {status:?}");
        None
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// The kernel's own way with a write-back that fails: the loop device's file is in a file system that is full.
#[test]
fn a_real_write_back_that_fails_fails_the_flushes_of_all_queues() {
    const SIZE: usize = 16 << 20;
    for engine in [Engine::Sync, Engine::Auto, Engine::IoUring] {
        let directory = directory();
        let Some(_small) = Small::new(directory.path(), SIZE / 8) else {
            return;
        };
        let path = directory.path().join("sparse.img");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(SIZE as u64)
            .unwrap();
        let Some(device) = Loop::new(&path, 512) else {
            return;
        };
        let options = RawOptions::new(&device.0).engine(engine);
        let disk = RawDisk::open(&options).unwrap();
        let mut queues: Vec<_> = (0..3).map(|_| disk.open_queue(4).unwrap()).collect();
        let flush = |queue: &mut dyn virtio_blk_core::disk::IoQueue| {
            run(queue, OpKind::Flush, IoBuf::new()).result
        };
        flush(&mut *queues[1]).unwrap();
        let witnesses = [(); 3].map(|()| std::fs::File::open(&device.0).unwrap());
        for offset in (0..SIZE as u64).step_by(1 << 20) {
            // The page cache takes it all.
            common::write(&mut *queues[0], offset, vec![7; 1 << 20]).unwrap();
        }
        // Not by the queue that wrote, and with descriptions that have not been told.
        for queue in queues.iter_mut().rev() {
            for _ in 0..2 {
                let result = flush(&mut **queue);
                assert!(result.is_err(), "{engine:?}");
            }
        }
        // That is how the kernel tells: each description, once, and also who only asks.
        let asks = |file: &std::fs::File| {
            let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE;
            // SAFETY: the descriptor is open; no memory is involved.
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 1, flags) }
        };
        for witness in &witnesses[..2] {
            assert!(witness.sync_data().is_err());
            witness.sync_data().unwrap();
        }
        assert_eq!((asks(&witnesses[2]), asks(&witnesses[2])), (-1, 0));
        let late = disk.open_queue(4).unwrap();
        queues.push(late);
        assert!(flush(&mut **queues.last_mut().unwrap()).is_err());
        assert!(disk.flush_error().is_some());
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each system call of a raw disk fails in turn, and no promise is broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::directory;
use common::faults::{Subject, fail_each_call};
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::inject::Injector;
use virtio_blk_disks::raw::{OpenError, io_uring_support};
use virtio_blk_disks::{Engine, RawDisk, RawOptions};

/// A raw image with an engine.
struct Raw {
    engine: Engine,
    direct: bool,
}

impl Raw {
    fn options(&self, directory: &Path) -> RawOptions {
        RawOptions::new(self.file(directory))
            .engine(self.engine)
            .direct(self.direct)
    }
}

impl Subject for Raw {
    fn prepare(&self, directory: &Path, content: &[u8]) {
        std::fs::write(self.file(directory), content).unwrap();
    }

    fn file(&self, directory: &Path) -> PathBuf {
        directory.join("disk.img")
    }

    fn open(&self, directory: &Path, injector: Option<&Injector>) -> Option<Arc<dyn Disk>> {
        let options = self.options(directory);
        let options = match injector {
            Some(injector) => options.inject(injector),
            None => options,
        };
        RawDisk::open(&options)
            .ok()
            .map(|disk| Arc::new(disk) as Arc<dyn Disk>)
    }
}

fn play(engine: Engine, direct: bool) {
    if engine == Engine::IoUring && io_uring_support().is_err() {
        return;
    }
    let raw = Raw { engine, direct };
    let directory = directory();
    raw.prepare(directory.path(), &[0; 4096]);
    if let Err(OpenError::NoDirect { .. }) = RawDisk::open(&raw.options(directory.path())) {
        return;
    }
    let name = format!("{engine:?}, direct: {direct}");
    let runs = fail_each_call(&raw, &name, 1, 1);
    println!("{name}: {runs} runs");
}

#[test]
fn system_calls() {
    play(Engine::Sync, false);
}

#[test]
fn system_calls_direct() {
    play(Engine::Sync, true);
}

#[test]
fn io_uring() {
    play(Engine::IoUring, false);
}

#[test]
fn io_uring_direct() {
    play(Engine::IoUring, true);
}

#[test]
fn the_mixture() {
    play(Engine::Auto, false);
}

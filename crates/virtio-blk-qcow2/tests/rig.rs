// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each system call of a run fails in turn: what was acknowledged and flushed is there, or an error was told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::faults::{Subject, fail_each_call};
use common::write;
use files::Setup;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::Engine;
use virtio_blk_disks::inject::Injector;

/// An image that is made with these options, and how its content gets into it.
struct Image {
    setup: &'static str,
    how: How,
    engine: Engine,
}

enum How {
    Written,
    Backing,
    Compressed,
    Snapshot,
}

fn image(directory: &Path) -> PathBuf {
    directory.join("disk.qcow2")
}

impl Subject for Image {
    fn prepare(&self, directory: &Path, content: &[u8]) {
        // Made once: what a run needs is a copy.
        let (image, base) = (image(directory), directory.join("base.img"));
        let path = directory.join("first.qcow2");
        if path.exists() {
            std::fs::copy(&path, image).unwrap();
            return;
        }
        match self.how {
            How::Backing => {
                std::fs::write(&base, content).unwrap();
                let options = format!("{},backing_file=base.img,backing_fmt=raw", self.setup);
                qemu::create(&path, &options, content.len());
            }
            How::Compressed => {
                std::fs::write(&base, content).unwrap();
                let (base, path) = (base.to_str().unwrap(), path.to_str().unwrap());
                qemu::ok(&[
                    "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", self.setup, base, path,
                ]);
            }
            How::Written | How::Snapshot => {
                qemu::create(&path, self.setup, content.len());
                let disk = Setup::new(&path).open().unwrap();
                write(&mut *disk.open_queue(1).unwrap(), 0, content.to_vec()).unwrap();
                drop(disk);
                if matches!(self.how, How::Snapshot) {
                    let path = path.to_str().unwrap();
                    qemu::ok(&["snapshot", "-q", "-c", "before", path]);
                }
            }
        }
        std::fs::copy(path, image).unwrap();
    }

    fn file(&self, directory: &Path) -> PathBuf {
        image(directory)
    }

    fn open(&self, directory: &Path, injector: Option<&Injector>) -> Option<Arc<dyn Disk>> {
        let setup = Setup::new(image(directory)).backing(true);
        let disk = match injector {
            Some(injector) => setup.engine(self.engine).inject(injector).open().ok()?,
            None => setup.open().unwrap(),
        };
        Some(Arc::new(disk))
    }
}

fn fails(name: &str, setup: &'static str, how: How, engine: Engine, seed: u64) {
    // All of them take minutes.
    let step = if files::long() { 1 } else { 9 };
    let runs = fail_each_call(&Image { setup, how, engine }, name, seed, step);
    println!("{name}: {runs} runs");
}

#[test]
fn written_images() {
    fails("written", "cluster_size=4k", How::Written, Engine::Sync, 1);
}

#[test]
fn images_of_small_clusters() {
    fails(
        "small clusters",
        "cluster_size=512",
        How::Written,
        Engine::Sync,
        2,
    );
}

#[test]
fn images_over_others() {
    fails(
        "over another",
        "cluster_size=8k",
        How::Backing,
        Engine::Auto,
        3,
    );
}

#[test]
fn images_with_subclusters_over_others() {
    let setup = "cluster_size=64k,extended_l2=on";
    fails(
        "subclusters over another",
        setup,
        How::Backing,
        Engine::Auto,
        4,
    );
}

#[test]
fn compressed_images() {
    let setup = "cluster_size=4k,compression_type=zstd";
    fails("compressed", setup, How::Compressed, Engine::Sync, 5);
}

#[test]
fn images_with_a_snapshot() {
    fails(
        "snapshot",
        "cluster_size=4k",
        How::Snapshot,
        Engine::Sync,
        6,
    );
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests of qcow2 images share.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use virtio_blk_core::disk::{Disk, DiskEvent};
use virtio_blk_disks::{Qcow2Disk, Qcow2Options};

use crate::common::BLOCK;

pub const BLOCKS: u64 = 1024;
pub const SIZE: usize = BLOCKS as usize * BLOCK;

pub fn path(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

pub fn open(path: &Path) -> Qcow2Disk {
    Qcow2Disk::open(&Qcow2Options::new(path)).unwrap()
}

/// The sizes that a disk's listeners are told, in bytes.
pub fn sizes(disk: &Qcow2Disk) -> Arc<Mutex<Vec<u64>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let told = all.clone();
    disk.listen(Arc::new(move |event| match event {
        DiskEvent::Resized { capacity } => told.lock().unwrap().push(capacity * 512),
        other => panic!("{other:?}"),
    }));
    all
}

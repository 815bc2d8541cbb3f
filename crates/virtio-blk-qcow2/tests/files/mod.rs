// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of images: raw disks, whose system calls may be failed.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_disks::inject::Injector;
use virtio_blk_disks::{Engine, RawDisk, RawOptions};
use virtio_blk_qcow2::{Access, Files, Qcow2Disk, Qcow2Options};

/// Opens files as raw disks.
#[derive(Clone, Debug, Default)]
pub struct RawFiles {
    pub engine: Engine,
    pub direct: bool,
    /// The image's file, and who fails calls on it.
    pub inject: Option<(PathBuf, Injector)>,
}

impl Files for RawFiles {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Disk>, DiskError> {
        let mut options = RawOptions::new(path)
            .engine(self.engine)
            .direct(self.direct)
            .extend(true);
        options = match access {
            Access::Look => options.read_only(true).inspect(true),
            Access::Read => options.read_only(true),
            Access::Write => options,
        };
        if let Some((image, injector)) = &self.inject
            && image == path
        {
            options = options.inject(injector);
        }
        Ok(Arc::new(RawDisk::open(&options)?))
    }
}

/// Opens an image for writing, with its backing file.
pub fn open(path: &Path) -> Qcow2Disk {
    open_with(path, RawFiles::default(), Qcow2Options::new().backing(true))
}

/// Opens an image.
pub fn open_with(path: &Path, files: RawFiles, options: Qcow2Options) -> Qcow2Disk {
    Qcow2Disk::open(path, Arc::new(files), options).unwrap()
}

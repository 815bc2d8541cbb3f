// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of images: raw disks, whose system calls may be failed.
#![allow(dead_code)] // Each test binary uses a part of it.

#[cfg(test)]
pub mod gate;
#[cfg(test)]
pub mod play;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use virtio_blk_core::disk::{Disk, DiskError, DiskEvent};
use virtio_blk_disks::inject::Injector;
use virtio_blk_disks::{Engine, RawDisk, RawOptions};
use virtio_blk_qcow2::{Access, Files, OpenError, Qcow2Disk, Qcow2Options};

use crate::common::BLOCK;

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

/// Whether tests shall take their time (`.ci/run --full`).
pub fn long() -> bool {
    std::env::var_os("VBLK_LONG_TESTS").is_some()
}

pub const BLOCKS: u64 = 1024;
pub const SIZE: usize = BLOCKS as usize * BLOCK;

pub fn path(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
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

/// Opens an image for writing, with its backing file.
pub fn open(path: &Path) -> Qcow2Disk {
    open_with(path, RawFiles::default(), Qcow2Options::new().backing(true))
}

/// Opens an image.
pub fn open_with(path: &Path, files: RawFiles, options: Qcow2Options) -> Qcow2Disk {
    Qcow2Disk::open(path, Arc::new(files), options).unwrap()
}

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct Setup {
    path: PathBuf,
    files: RawFiles,
    options: Qcow2Options,
}

impl Setup {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            files: RawFiles::default(),
            options: Qcow2Options::new(),
        }
    }

    pub fn backing(mut self, yes: bool) -> Self {
        self.options = self.options.backing(yes);
        self
    }

    pub fn read_only(mut self, yes: bool) -> Self {
        self.options = self.options.read_only(yes);
        self
    }

    pub fn inspect(mut self, yes: bool) -> Self {
        self.options = self.options.inspect(yes);
        self
    }

    pub fn repair(mut self, yes: bool) -> Self {
        self.options = self.options.repair(yes);
        self
    }

    pub fn discard(mut self, yes: bool) -> Self {
        self.options = self.options.discard(yes);
        self
    }

    pub fn engine(mut self, engine: Engine) -> Self {
        self.files.engine = engine;
        self
    }

    pub fn direct(mut self, yes: bool) -> Self {
        self.files.direct = yes;
        self
    }

    pub fn inject(mut self, injector: &Injector) -> Self {
        self.files.inject = Some((self.path.clone(), injector.clone()));
        self
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn open(&self) -> Result<Qcow2Disk, OpenError> {
        Qcow2Disk::open(&self.path, Arc::new(self.files.clone()), self.options)
    }

    /// The same on another disk.
    pub fn over(disk: Arc<dyn Disk>, setup: &Self) -> Result<Qcow2Disk, OpenError> {
        Qcow2Disk::over(
            disk,
            &setup.path,
            Arc::new(setup.files.clone()),
            setup.options,
        )
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images in files of the host, by name: `qcow2:PATH`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_disks::disk_arg::words::{self, differing, on_off};
use virtio_blk_disks::disk_arg::{ArgError, DiskOptions};
use virtio_blk_disks::{Engine, Lock, RawDisk, RawOptions, raw};

use crate::disk::Qcow2Disk;
use crate::error::OpenError;
use crate::files::{Access, Files};
use crate::options::Qcow2Options;

/// A qcow2 image in a file or block device of the host, and how it is to be used as a disk: what
/// `qcow2:PATH,OPTION=VALUE…` says.
///
/// The image and the files that it names are opened as [`RawDisk`]s, which also lock them: the image and an external data
/// file for itself, or shared if it is read-only, backing files always shared.
///
/// ```
/// use virtio_blk_disks::Lock;
/// use virtio_blk_qcow2::Qcow2File;
///
/// let image = Qcow2File::new("disk.qcow2").backing(true).lock(Lock::Handover);
/// # assert!(image.open().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qcow2File {
    #[serde(skip)]
    path: PathBuf,
    #[serde(rename = "readonly")]
    read_only: bool,
    #[serde(deserialize_with = "words::allow_or_deny")]
    backing: bool,
    direct: bool,
    engine: Engine,
    discard: bool,
    lock: Lock,
    #[serde(deserialize_with = "words::auto_or_off")]
    mmap: bool,
    repair: bool,
    #[serde(skip)]
    inspect: bool,
}

impl Default for Qcow2File {
    /// Of no path yet.
    fn default() -> Self {
        Self::new("")
    }
}

impl Qcow2File {
    /// The image at `path`: writable, without other files, through the page cache, with discard and a lock.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            backing: false,
            direct: false,
            engine: Engine::Auto,
            discard: true,
            lock: Lock::On,
            mmap: true,
            repair: false,
            inspect: false,
        }
    }

    /// Whether the disk is read-only (default: no).
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// See [`Qcow2Options::backing`] (default: no).
    #[must_use]
    pub fn backing(mut self, yes: bool) -> Self {
        self.backing = yes;
        self
    }

    /// See [`RawOptions::direct`] (default: no).
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// How I/O is made (default: [`Engine::Auto`]).
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// See [`Qcow2Options::discard`] (default: yes).
    #[must_use]
    pub fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// When the files are locked against other users (default: [`Lock::On`], which `true` stands for; `false` for
    /// [`Lock::Off`]). With [`Lock::Handover`] the tables are read when the disk is activated, and all that was changed is
    /// stable in the file before the lock is let go.
    #[must_use]
    pub fn lock(mut self, when: impl Into<Lock>) -> Self {
        self.lock = when.into();
        self
    }

    /// See [`RawOptions::mmap`] (default: yes).
    #[must_use]
    pub fn mmap(mut self, yes: bool) -> Self {
        self.mmap = yes;
        self
    }

    /// See [`Qcow2Options::repair`] (default: no).
    #[must_use]
    pub fn repair(mut self, yes: bool) -> Self {
        self.repair = yes;
        self
    }

    /// See [`Qcow2Options::inspect`] (default: no). No file is locked then.
    #[must_use]
    pub fn inspect(mut self, yes: bool) -> Self {
        self.inspect = yes;
        self
    }

    /// The image's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the format is told.
    pub const fn options(&self) -> Qcow2Options {
        Qcow2Options::new()
            .read_only(self.read_only)
            .backing(self.backing)
            .discard(self.discard)
            .inspect(self.inspect)
            .handover(matches!(self.lock, Lock::Handover))
            .repair(self.repair)
    }

    /// Opens the image, locks its files and checks its tables.
    ///
    /// # Errors
    /// Each names the file and says what to change, see [`OpenError`].
    pub fn open(&self) -> Result<Qcow2Disk, OpenError> {
        Qcow2Disk::open(&self.path, Arc::new(self.clone()), self.options())
    }
}

impl Files for Qcow2File {
    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Disk>, DiskError> {
        // Other files are open only while the image is.
        let lock = match self.lock {
            Lock::Handover if path != self.path => Lock::On,
            lock => lock,
        };
        let options = RawOptions::new(path)
            .direct(self.direct)
            .engine(self.engine)
            .discard(self.discard)
            .mmap(self.mmap)
            .lock(lock)
            .read_only(access != Access::Write)
            .inspect(access == Access::Look)
            .extend(true);
        match RawDisk::open(&options) {
            Ok(disk) => Ok(Arc::new(disk)),
            // The system's number stays behind the text, where who reports it finds it.
            Err(error) => Err(match &error {
                raw::OpenError::Io { source, .. } => io::Error::new(source.kind(), error).into(),
                _ => error.into(),
            }),
        }
    }
}

impl DiskOptions for Qcow2File {
    const NAME: &'static str = "qcow2";
    const TARGET: &'static str = "PATH";
    const HELP: &'static str = "qcow2:PATH[,readonly=on|off][,backing=deny|allow][,direct=on|off]\
                                [,engine=auto|io_uring|sync][,discard=on|off][,lock=on|off|handover][,mmap=auto|off]\
                                [,repair=on|off]";
    const MANUAL: &'static str = "  \
  qcow2:PATH[,OPTION…]    a qcow2 image: readonly, direct, engine, discard,
                          lock and mmap as above, and
      backing=deny|allow  open the files that the image names, its backing
                          file and external data file; for trusted images
                          only (deny)
      repair=on|off       mend the counts of an image that is marked as dirty
                          (off: it is refused, but for readonly=on)";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.path = target.into();
        Ok(())
    }

    fn target(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let backing = |allowed| if allowed { "allow" } else { "deny" };
        let mmap = |auto| if auto { "auto" } else { "off" };
        differing([
            ("readonly", on_off(self.read_only), on_off(usual.read_only)),
            ("direct", on_off(self.direct), on_off(usual.direct)),
            ("discard", on_off(self.discard), on_off(usual.discard)),
            ("lock", words::lock(self.lock), words::lock(usual.lock)),
            ("backing", backing(self.backing), backing(usual.backing)),
            (
                "engine",
                words::engine(self.engine),
                words::engine(usual.engine),
            ),
            ("mmap", mmap(self.mmap), mmap(usual.mmap)),
            ("repair", on_off(self.repair), on_off(usual.repair)),
        ])
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let read_only = read_only || self.read_only;
        let image = self.clone().read_only(read_only);
        let disk = Self::open(&image).map_err(|error| DiskError::Config(error.to_string()))?;
        Ok(Arc::new(disk))
    }

    fn for_inspection(self) -> Self {
        self.inspect(true)
    }

    fn unlocked(self) -> Self {
        self.lock(false)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[cfg(test)]
mod tests;

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a qcow2 image is to be used as a disk.

use std::path::{Path, PathBuf};

use serde::Deserialize;

#[cfg(feature = "inject")]
use crate::inject::Injector;
use crate::{Engine, Lock, disk_arg};

/// How a qcow2 image is to be used as a disk: what [`super::Qcow2Disk::open`] takes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qcow2Options {
    #[serde(skip)]
    pub(crate) path: PathBuf,
    #[serde(rename = "readonly")]
    pub(crate) read_only: bool,
    #[serde(deserialize_with = "disk_arg::allow_or_deny")]
    pub(crate) backing: bool,
    pub(crate) engine: Engine,
    pub(crate) discard: bool,
    pub(crate) lock: Lock,
    #[serde(skip)]
    pub(crate) inspect: bool,
    #[cfg(feature = "inject")]
    #[serde(skip)]
    pub(crate) inject: Option<Injector>,
}

impl Default for Qcow2Options {
    /// Of no path yet.
    fn default() -> Self {
        Self::new("")
    }
}

impl Qcow2Options {
    /// The image at `path`: writable, without a backing file, with discard and a lock.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            backing: false,
            engine: Engine::Auto,
            discard: true,
            lock: Lock::On,
            inspect: false,
            #[cfg(feature = "inject")]
            inject: None,
        }
    }

    /// Whether the disk is read-only (default: no).
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Whether the image may name a backing file (default: no). Whoever wrote the image chooses that
    /// file, and its content becomes the guest's to read: say yes only for images you trust.
    #[must_use]
    pub fn backing(mut self, yes: bool) -> Self {
        self.backing = yes;
        self
    }

    /// How I/O on allocated clusters is made (default: [`Engine::Auto`]).
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Whether discards give space back to the host, too (default: yes). The clusters become free inside
    /// the image in any case.
    #[must_use]
    pub fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// When the files are locked against other users: the image for itself, or shared if read-only; backing files
    /// always shared (default: [`Lock::On`], which `true` stands for; `false` for [`Lock::Off`]).
    ///
    /// With [`Lock::Handover`] the tables are read when the disk is activated, and all that is kept of them is in the
    /// file, stable, before the lock is let go.
    #[must_use]
    pub fn lock(mut self, when: impl Into<Lock>) -> Self {
        self.lock = when.into();
        self
    }

    /// Whether the image is only looked at (default: no): its files are opened for reading, without a lock, and nothing
    /// about them is changed, also while others use them. The disk says what it could do if it were opened to be used,
    /// and completes every change with [`DiskError::ReadOnly`](virtio_blk_core::disk::DiskError::ReadOnly). What
    /// somebody changes meanwhile can make the image look damaged.
    #[must_use]
    pub fn inspect(mut self, yes: bool) -> Self {
        self.inspect = yes;
        self
    }

    /// Whether operations may change the image.
    pub(super) const fn is_writable(&self) -> bool {
        !self.read_only && !self.inspect
    }

    /// Has the system calls on the image, not those on its backing files, counted and failed by an injector, for
    /// tests (default: none).
    #[cfg(feature = "inject")]
    #[must_use]
    pub fn inject(mut self, injector: &Injector) -> Self {
        self.inject = Some(injector.clone());
        self
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

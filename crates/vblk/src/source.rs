// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a DISK on the command line is: a disk of one of the kinds that this program links.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use vhost_vdpa_frontend::{SlowOptions, SlowPath, VhostVdpa};
use virtio_blk_core::disk::{Caps, Disk, DiskError};
use virtio_blk_disks::disk_arg::{
    ArgError, DiskKind, DiskKinds, DiskOptions, FromTree, MemoryOptions, NullOptions, Tree,
    TreeError,
};
use virtio_blk_disks::{DiskArg, Engine, RawDisk, RawOptions};
use virtio_blk_nbd::NbdOptions;
use virtio_blk_qcow2::Qcow2File;
use virtio_blk_rbd::RbdOptions;

use crate::report::{self, describe};

/// The kinds of disks that this program links.
pub const KINDS: DiskKinds<'static> = DiskKinds::new(&[
    DiskKind::of::<RawOptions>(),
    DiskKind::of::<Qcow2File>(),
    DiskKind::of::<MemoryOptions>(),
    DiskKind::of::<NullOptions>(),
    DiskKind::of::<NbdOptions>(),
    DiskKind::of::<RbdOptions>(),
    DiskKind::of::<VdpaOptions>(),
]);

/// Where the blocks are: a disk of one of [`KINDS`]. `Display` writes what `FromStr` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source(DiskArg);

/// A vDPA block device of the kernel's, driven through vhost-vdpa.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VdpaOptions {
    #[serde(skip)]
    path: PathBuf,
}

impl VdpaOptions {
    fn attach(&self) -> Result<SlowPath, Box<dyn Error>> {
        let device = Arc::new(VhostVdpa::open(&self.path)?);
        if let Err(error) = device.use_doorbells() {
            log::info!("kicks take a system call: {error}");
        }
        Ok(SlowPath::new(device, SlowOptions::default())?)
    }
}

impl DiskOptions for VdpaOptions {
    const NAME: &'static str = "vdpa";
    const TARGET: &'static str = "/dev/vhost-vdpa-N";
    const HELP: &'static str = "vdpa:/dev/vhost-vdpa-N";
    const MANUAL: &'static str = "  \
  vdpa:/dev/vhost-vdpa-N  a vDPA block device that vhost_vdpa is bound to; it
                          is reset first";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.path = target.into();
        Ok(())
    }

    fn target(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Whether it can be written is the device's own affair.
    fn open(&self, _: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let attached = self.attach();
        let path = attached.map_err(|error| DiskError::Config(describe(error.as_ref())))?;
        Ok(Arc::new(path))
    }
}

/// An opened DISK.
pub struct Opened {
    pub disk: Arc<dyn Disk>,
    /// The same as a vDPA device, if it is one: it copies data unless it is told of guests' memory.
    pub vdpa: Option<SlowPath>,
}

/// What a look at a DISK shows.
pub struct Looked {
    /// What the disk can do if it is served writable, where it can be.
    pub caps: Caps,
    /// How it does its I/O, and why not better; of a file.
    pub engine: Option<String>,
}

/// How a file's I/O is done, in words.
fn engine(disk: &RawDisk) -> String {
    let name = match disk.engine() {
        Engine::Auto => "system calls, and io_uring for what has to wait",
        Engine::IoUring => "io_uring",
        // There are no others by now.
        _ => "system calls",
    };
    match disk.engine_note() {
        Some(why) => format!("{name} ({why})"),
        None => name.to_owned(),
    }
}

/// A disk's file can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}; {hint}", describe(source.as_ref()))]
pub struct OpenFailed {
    source: Box<dyn Error>,
    /// What to do.
    hint: String,
}

/// The error with what can be done about it, where that is known.
fn hinted(error: Box<dyn Error>, path: &Path) -> Box<dyn Error> {
    let path = path.display();
    let kind =
        report::errno(error.as_ref()).map(|errno| io::Error::from_raw_os_error(errno).kind());
    let hint = match kind {
        Some(io::ErrorKind::NotFound) => {
            format!("check the path, or make an empty raw image: truncate -s 8G {path}")
        }
        Some(io::ErrorKind::PermissionDenied) => format!(
            "`ls -l {path}` shows who may use it: run as such a user, or with readonly=on to read only"
        ),
        Some(io::ErrorKind::ReadOnlyFilesystem) => "serve it with readonly=on".to_owned(),
        _ => return error,
    };
    OpenFailed {
        source: error,
        hint,
    }
    .into()
}

impl Source {
    /// All formats that a DISK can have.
    pub fn formats() -> Vec<&'static str> {
        KINDS.iter().map(|kind| kind.name).collect()
    }

    /// Looks at it without a change: files are opened for reading and without locks, also while others use them. A vDPA
    /// device is reset and taken over, as it can't be opened otherwise; the kernel refuses that for one in use.
    ///
    /// # Errors
    /// As for [`Source::open`].
    pub fn look(&self) -> Result<Looked, Box<dyn Error>> {
        self.try_look().map_err(|error| self.explain(error))
    }

    fn try_look(&self) -> Result<Looked, Box<dyn Error>> {
        // What can't be written can perhaps be read: files of odd sizes, devices that the host set read-only.
        self.look_as(false)
            .or_else(|error| self.look_as(true).map_err(|_| error))
    }

    fn look_as(&self, read_only: bool) -> Result<Looked, Box<dyn Error>> {
        let caps = |caps| Looked { caps, engine: None };
        let spec = &self.0;
        if let Some(image) = spec.options::<Qcow2File>() {
            let mut image = image.clone().inspect(true);
            if read_only {
                image = image.read_only(true);
            }
            return Ok(caps(image.open()?.caps()));
        }
        let Some(raw) = spec.options::<RawOptions>() else {
            let spec = spec.clone().for_inspection();
            return Ok(caps(spec.open(read_only)?.caps()));
        };
        let mut options = raw.clone().inspect(true);
        if read_only {
            options = options.read_only(true);
        }
        let disk = RawDisk::open(&options)?;
        Ok(Looked {
            caps: disk.caps(),
            engine: Some(engine(&disk)),
        })
    }

    /// The file that it stands for, if it is one.
    pub fn file(&self) -> Option<&Path> {
        self.0.path()
    }

    /// Opens it. A vDPA device is reset and taken over; whether it can be written is its own affair.
    ///
    /// # Errors
    /// The file or device, what is wrong with it and, where that is known, what to do.
    pub fn open(&self, read_only: bool) -> Result<Opened, Box<dyn Error>> {
        self.try_open(read_only)
            .map_err(|error| self.explain(error))
    }

    fn explain(&self, error: Box<dyn Error>) -> Box<dyn Error> {
        match self.file() {
            Some(path) => hinted(error, path),
            None => error,
        }
    }

    fn try_open(&self, read_only: bool) -> Result<Opened, Box<dyn Error>> {
        let Some(vdpa) = self.0.options::<VdpaOptions>() else {
            let disk = self.0.open(read_only)?;
            return Ok(Opened { disk, vdpa: None });
        };
        let path = vdpa.attach()?;
        Ok(Opened {
            disk: Arc::new(path.clone()),
            vdpa: Some(path),
        })
    }
}

impl FromTree for Source {
    fn from_tree(tree: &Tree) -> Result<Self, TreeError> {
        KINDS.read(tree).map(Self)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a DISK on the command line is: a disk of our own, or a vDPA device.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use vhost_vdpa_frontend::{SlowOptions, SlowPath, VhostVdpa};
use virtio_blk_core::disk::{Caps, Disk};
use virtio_blk_disks::disk_arg::{DiskKind, Kinds, MemoryOptions, NullOptions, SpecError};

use crate::report::{self, describe};
use virtio_blk_disks::{DiskSpec, Engine, Qcow2Disk, Qcow2Options, RawDisk, RawOptions};

/// The kinds of disks that this program links, beside vDPA devices.
const KINDS: Kinds<'static> = Kinds::new(&[
    DiskKind::of::<RawOptions>(),
    DiskKind::of::<Qcow2Options>(),
    DiskKind::of::<MemoryOptions>(),
    DiskKind::of::<NullOptions>(),
]);

/// Where the blocks are. `Display` writes what `FromStr` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A disk of our own.
    Disk(DiskSpec),
    /// A vDPA block device of the kernel's, driven through vhost-vdpa.
    Vdpa(PathBuf),
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
        let own = KINDS.iter().map(|kind| kind.name);
        own.chain(["vdpa"]).collect()
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
        let Self::Disk(spec) = self else {
            return Ok(caps(self.open(read_only)?.disk.caps()));
        };
        if let Some(qcow2) = spec.options::<Qcow2Options>() {
            let mut options = qcow2.clone().inspect(true);
            if read_only {
                options = options.read_only(true);
            }
            return Ok(caps(Qcow2Disk::open(&options)?.caps()));
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
        match self {
            Self::Disk(spec) => spec.path(),
            Self::Vdpa(_) => None,
        }
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
        Ok(match self {
            Self::Disk(spec) => Opened {
                disk: spec.open(read_only)?,
                vdpa: None,
            },
            Self::Vdpa(path) => {
                let device = Arc::new(VhostVdpa::open(path)?);
                let path = SlowPath::new(device, SlowOptions::default())?;
                Opened {
                    disk: Arc::new(path.clone()),
                    vdpa: Some(path),
                }
            }
        })
    }
}

impl FromStr for Source {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.strip_prefix("vdpa:") {
            Some("") => Err(SpecError::Missing {
                format: "vdpa",
                what: "/dev/vhost-vdpa-N",
            }),
            Some(path) => Ok(Self::Vdpa(path.into())),
            None => KINDS.parse(text).map(Self::Disk),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(spec) => spec.fmt(f),
            Self::Vdpa(path) => write!(f, "vdpa:{}", path.display()),
        }
    }
}

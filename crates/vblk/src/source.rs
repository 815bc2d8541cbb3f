// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a DISK on the command line is: a disk of our own, or a vDPA device.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use vhost_vdpa_frontend::{SlowOptions, SlowPath, VhostVdpa};
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::DiskSpec;
use virtio_blk_disks::spec::SpecError;

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

impl Source {
    /// Opens it. A vDPA device is reset and taken over; whether it can be written is its own affair.
    pub fn open(&self, read_only: bool) -> Result<Opened, Box<dyn Error>> {
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
            None => text.parse().map(Self::Disk),
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

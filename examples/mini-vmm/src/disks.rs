// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks by name, opened once: they outlive the machines of a process that its guest reboots.

use std::fmt::Display;
use std::sync::Arc;

use virtio_blk_core::disk::Disk;
use virtio_blk_disks::DiskSpec;

use crate::error::{Error, Result};

/// A disk to attach.
#[derive(Clone)]
pub struct OpenDisk {
    pub name: String,
    pub disk: Arc<dyn Disk>,
    pub queues: u16,
    pub serial: String,
}

impl OpenDisk {
    /// Opens what `name` says (see [`DiskSpec`]) as disk number `index`.
    pub fn open(name: &str, index: usize, queues: u16) -> Result<Self> {
        let fail = |why: &dyn Display| Error::Disk {
            disk: name.to_owned(),
            why: why.to_string(),
        };
        let spec: DiskSpec = name.parse().map_err(|error| fail(&error))?;
        let disk = spec.open(false).map_err(|error| fail(&error))?;
        Ok(Self {
            name: name.to_owned(),
            queues: queues.min(disk.caps().max_queues),
            disk,
            serial: format!("mini-vmm-{index}"),
        })
    }

    /// Why it can't be used.
    pub fn error(&self, why: &dyn Display) -> Error {
        Error::Disk {
            disk: self.name.clone(),
            why: why.to_string(),
        }
    }
}

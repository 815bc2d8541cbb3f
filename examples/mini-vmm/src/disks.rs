// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks by name, opened once: they outlive the machines of a process that its guest reboots.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use sim_backend::{BlkSim, Options};
use vhost_vdpa_frontend::{SlowOptions, SlowPath, VhostVdpa};
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::{DiskSpec, MemoryDisk};

use crate::error::{Error, Result};
use crate::machine::Transport;

/// A disk to attach.
#[derive(Clone)]
pub struct OpenDisk {
    /// Its number, for `mini-vmm ctl`; also in its serial number.
    pub number: usize,
    name: String,
    pub disk: Arc<dyn Disk>,
    size: Size,
    pub queues: u16,
    pub transport: Transport,
    /// The PCI slot it must have, to be found where a snapshot left it.
    pub slot: Option<usize>,
}

/// How its size is changed.
#[derive(Clone)]
enum Size {
    Memory(Arc<MemoryDisk>),
    File(PathBuf),
    Fixed,
}

impl OpenDisk {
    /// Opens what `name` says with `queues` queues or as many as it has: `sim:SIZE`, a simulated vDPA device over
    /// memory; `vdpa:/dev/vhost-vdpa-N`, one of the kernel's; or a disk of our own (see [`DiskSpec`]).
    pub fn open(number: usize, name: &str, queues: u16, transport: Transport) -> Result<Self> {
        let fail = |why: &dyn Display| disk_error(name, why);
        let (disk, size): (Arc<dyn Disk>, _) = match name.split_once(':') {
            Some(("sim", size)) => {
                let spec = format!("memory:{size}").parse();
                let Ok(DiskSpec::Memory { bytes }) = spec else {
                    return Err(fail(&"give its size: sim:64M"));
                };
                let memory = Arc::new(MemoryDisk::new(bytes).map_err(|error| fail(&error))?);
                let sim = BlkSim::new(memory.clone(), Options::strict_queues(queues));
                let sim = sim.map_err(|error| fail(&error))?;
                let disk = SlowPath::new(Arc::new(sim), SlowOptions::default());
                (
                    Arc::new(disk.map_err(|error| fail(&error))?),
                    Size::Memory(memory),
                )
            }
            Some(("vdpa", path)) => {
                let device = VhostVdpa::open(path).map_err(|error| fail(&error))?;
                let disk = SlowPath::new(Arc::new(device), SlowOptions::default());
                (Arc::new(disk.map_err(|error| fail(&error))?), Size::Fixed)
            }
            _ => own(name)?,
        };
        Ok(Self {
            number,
            name: name.to_owned(),
            queues: queues.clamp(1, disk.caps().max_queues.min(MAX_QUEUES)),
            disk,
            size,
            transport,
            slot: None,
        })
    }

    /// Changes its size. The device tells the guest.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let fail = |why: &dyn Display| self.error(why);
        match &self.size {
            Size::Memory(disk) => disk.resize(bytes / 512).map_err(|error| fail(&error)),
            Size::File(path) => {
                let file = OpenOptions::new().write(true).open(path);
                file.and_then(|file| file.set_len(bytes))
                    .map_err(|error| fail(&error))?;
                self.disk.refresh().map_err(|error| fail(&error))
            }
            Size::Fixed => Err(fail(&"its size can't be changed")),
        }
    }

    /// Why it can't be used.
    pub fn error(&self, why: &dyn Display) -> Error {
        disk_error(&self.name, why)
    }
}

/// A disk of `virtio-blk-disks`.
fn own(name: &str) -> Result<(Arc<dyn Disk>, Size)> {
    let fail = |why: &dyn Display| disk_error(name, why);
    let spec: DiskSpec = name.parse().map_err(|error| fail(&error))?;
    let size = match &spec {
        DiskSpec::Memory { bytes } => {
            let disk = MemoryDisk::new(*bytes).map_err(|error| fail(&error))?;
            let disk = Arc::new(disk);
            return Ok((disk.clone(), Size::Memory(disk)));
        }
        DiskSpec::Raw(raw) => Size::File(raw.path().to_owned()),
        _ => Size::Fixed,
    };
    Ok((spec.open(false).map_err(|error| fail(&error))?, size))
}

/// One page of notification addresses, interrupt vectors and so on is enough for this many.
const MAX_QUEUES: u16 = 64;

fn disk_error(name: &str, why: &dyn Display) -> Error {
    Error::Disk {
        disk: name.to_owned(),
        why: why.to_string(),
    }
}

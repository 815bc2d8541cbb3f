// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks by name, opened once: they outlive the machines of a process that its guest reboots.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use sim_backend::{BlkSim, Options, Profile, StrictOptions};
use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::VhostVdpa;
use virtio_blk_core::device;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::stack::LayerSpec;
use virtio_blk_disks::{DiskSpec, MemoryDisk, SpecError};

use crate::error::{Error, Result};
use crate::machine::Transport;
use crate::paths::Wanted;

/// A disk to attach.
#[derive(Clone)]
pub struct OpenDisk {
    /// Its number, for `mini-vmm ctl`; also in its serial number.
    pub number: usize,
    name: String,
    pub medium: Medium,
    size: Size,
    /// Request queues to give a device of our own.
    pub queues: u16,
    pub transport: Transport,
    /// The PCI slot it must have, to be found where a snapshot left it.
    pub slot: Option<usize>,
}

/// What is attached.
#[derive(Clone)]
pub enum Medium {
    /// A disk, behind a device of our own.
    Own(Arc<dyn Disk>),
    Vdpa(VdpaDisk),
}

/// A vDPA device, which may have requests of its own to see.
#[derive(Clone)]
pub struct VdpaDisk {
    pub device: Arc<dyn VdpaDevice>,
    /// On the slow path.
    pub layers: Vec<LayerSpec>,
    pub wanted: Wanted,
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
    /// memory; `vdpa:/dev/vhost-vdpa-N`, one of the kernel's; or a disk of our own (see [`DiskSpec`]). vDPA devices may
    /// be followed by `,path=fast|slow|auto` and layers for the slow path.
    pub fn open(number: usize, name: &str, queues: u16, transport: Transport) -> Result<Self> {
        let fail = |why: &dyn Display| disk_error(name, why);
        let (kind, rest) = name.split_once(':').unwrap_or((name, ""));
        let (medium, size, most) = match kind {
            "sim" => {
                let (size, layers, wanted) = vdpa_words(name, rest)?;
                let spec = format!("memory:{size}").parse();
                let Ok(DiskSpec::Memory { bytes }) = spec else {
                    return Err(fail(&"give its size: sim:64M"));
                };
                let memory = Arc::new(MemoryDisk::new(bytes).map_err(|error| fail(&error))?);
                let options = StrictOptions {
                    device: device::Options {
                        queues: queues.clamp(1, MAX_QUEUES),
                        serial: serial(number),
                        ..device::Options::default()
                    },
                    ..StrictOptions::default()
                };
                let options = Options {
                    profile: Profile::Strict(options),
                    ..Options::strict()
                };
                let sim = BlkSim::new(memory.clone(), options).map_err(|error| fail(&error))?;
                let vdpa = VdpaDisk {
                    device: Arc::new(sim),
                    layers,
                    wanted,
                };
                (Medium::Vdpa(vdpa), Size::Memory(memory), MAX_QUEUES)
            }
            "vdpa" => {
                let (path, layers, wanted) = vdpa_words(name, rest)?;
                let device = VhostVdpa::open(path).map_err(|error| fail(&error))?;
                if device.nvqs() > MAX_QUEUES {
                    return Err(fail(&format!("it has more than {MAX_QUEUES} queues")));
                }
                let vdpa = VdpaDisk {
                    device: Arc::new(device),
                    layers,
                    wanted,
                };
                (Medium::Vdpa(vdpa), Size::Fixed, MAX_QUEUES)
            }
            _ => {
                let (disk, size) = own(name)?;
                let most = disk.caps().max_queues.min(MAX_QUEUES);
                (Medium::Own(disk), size, most)
            }
        };
        Ok(Self {
            number,
            name: name.to_owned(),
            queues: queues.clamp(1, most),
            medium,
            size,
            transport,
            slot: None,
        })
    }

    /// Its serial number, where it is ours to choose.
    pub fn serial(&self) -> String {
        serial(self.number)
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
                match &self.medium {
                    Medium::Own(disk) => disk.refresh().map_err(|error| fail(&error)),
                    // It looks by itself.
                    Medium::Vdpa(_) => Ok(()),
                }
            }
            Size::Fixed => Err(fail(&"its size can't be changed")),
        }
    }

    /// Why it can't be used.
    pub fn error(&self, why: &dyn Display) -> Error {
        disk_error(&self.name, why)
    }
}

fn serial(number: usize) -> String {
    format!("mini-vmm-{number}")
}

/// The first of the comma-separated `words`, and what the others say of paths.
fn vdpa_words<'a>(name: &str, words: &'a str) -> Result<(&'a str, Vec<LayerSpec>, Wanted)> {
    let (first, more) = words.split_once(',').unwrap_or((words, ""));
    let (mut layers, mut wanted) = (Vec::new(), Wanted::default());
    for word in more.split(',').filter(|word| !word.is_empty()) {
        if let Some(path) = word.strip_prefix("path=") {
            wanted = Wanted::from_str(path, false).map_err(|why| disk_error(name, &why))?;
        } else {
            let layer = word.parse();
            layers.push(layer.map_err(|error: SpecError| disk_error(name, &error))?);
        }
    }
    Ok((first, layers, wanted))
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

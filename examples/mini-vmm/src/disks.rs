// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks by name, opened once: they outlive the machines of a process that its guest reboots.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use sim_backend::{BlkSim, SimProfile, StrictOptions};
use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::VhostVdpa;
use virtio_blk_core::device;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::disk_arg::{
    DiskKind, DiskKinds, FromTree, MemoryOptions, NullOptions, Tree, TreeError,
};
use virtio_blk_disks::stack::{Groups, LayerArg, Stack, StackArg};
use virtio_blk_disks::{MemoryDisk, RawOptions};
use virtio_blk_qcow2::Qcow2File;

use crate::config::Transport;
use crate::error::{Error, Result};
use crate::virtio::vdpa::VdpaSource;

/// The kinds of disks of our own.
const KINDS: DiskKinds<'static> = DiskKinds::new(&[
    DiskKind::of::<RawOptions>(),
    DiskKind::of::<Qcow2File>(),
    DiskKind::of::<MemoryOptions>(),
    DiskKind::of::<NullOptions>(),
]);

/// A disk to attach.
#[derive(Clone)]
pub struct OpenDisk {
    /// Its number, for `mini-vmm ctl`; also in its serial number.
    pub number: usize,
    name: String,
    pub source: Source,
    size: Size,
    pub queues: u16,
    pub transport: Transport,
    /// The PCI slot it must have, to be found where a snapshot left it.
    pub slot: Option<usize>,
}

/// Where its data is.
#[derive(Clone)]
pub enum Source {
    Own(Arc<dyn Disk>),
    Vdpa(Arc<VdpaSource>),
}

/// How its size is changed.
#[derive(Clone)]
enum Size {
    Memory(Arc<MemoryDisk>),
    File(PathBuf, Arc<dyn Disk>),
    Image(Arc<dyn Disk>),
    Fixed,
}

/// The part of a disk's name before its layers.
struct Name(String);

impl FromTree for Name {
    fn from_tree(tree: &Tree) -> std::result::Result<Self, TreeError> {
        Ok(Self(tree.to_string()))
    }
}

/// Which path a vDPA device starts on (`path=`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Fast,
    Slow,
    /// Fast, as long as no layer needs to see requests.
    Auto,
}

impl OpenDisk {
    /// Opens what `name` says with `queues` queues or as many as it has: `sim:SIZE` or `sim:DISK`, a simulated
    /// vDPA device; `vdpa:/dev/vhost-vdpa-N`, one of the kernel's; or a disk of our own (see [`KINDS`]). Layers may
    /// follow.
    pub fn open(number: usize, name: &str, queues: u16, transport: Transport) -> Result<Self> {
        let fail = |why: &dyn Display| disk_error(name, why);
        let arg: StackArg<Name> = name.parse().map_err(|error| fail(&error))?;
        let (source, size, most) = match arg.disk.0.split_once(':') {
            Some((kind @ ("sim" | "vdpa"), rest)) => {
                let (what, choice) = choice(rest).map_err(|why| fail(&why))?;
                let (device, size) = if kind == "sim" {
                    // Layers that can be changed halve them.
                    let halves = if choice == Choice::Auto { 2 } else { 1 };
                    simulated(what, queues.saturating_mul(halves), serial(number))?
                } else {
                    let device = VhostVdpa::open(what).map_err(|error| fail(&error))?;
                    let device: Arc<dyn VdpaDevice> = Arc::new(device);
                    (device, Size::Fixed)
                };
                let source = vdpa(device, choice, arg.layers).map_err(|why| fail(&why))?;
                (Source::Vdpa(Arc::new(source)), size, MAX_QUEUES)
            }
            _ => {
                let (disk, size) = own(&arg.disk.0)?;
                let stack = Stack::fixed(disk, &arg.layers, Groups::default());
                let disk = stack.map_err(|error| fail(&error))?.disk();
                let most = disk.caps().max_queues;
                (Source::Own(disk), size, most)
            }
        };
        Ok(Self {
            number,
            name: name.to_owned(),
            queues: queues.clamp(1, most.min(MAX_QUEUES)),
            source,
            size,
            transport,
            slot: None,
        })
    }

    /// The first disk of a machine, on MMIO: a vDPA device, on the fast path, without layers.
    pub fn over(device: Arc<dyn VdpaDevice>) -> Self {
        let source = VdpaSource {
            device,
            slow: AtomicBool::new(false),
            layers: None,
        };
        Self {
            number: 0,
            name: "vDPA device".to_owned(),
            queues: 1,
            source: Source::Vdpa(Arc::new(source)),
            size: Size::Fixed,
            transport: Transport::Mmio,
            slot: None,
        }
    }

    /// The serial number that the guest reads.
    pub fn serial(&self) -> String {
        serial(self.number)
    }

    /// Changes its size. The device tells the guest.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let fail = |why: &dyn Display| self.error(why);
        match &self.size {
            Size::Memory(disk) => disk.resize(bytes / 512).map_err(|error| fail(&error)),
            Size::File(path, disk) => {
                let file = OpenOptions::new().write(true).open(path);
                file.and_then(|file| file.set_len(bytes))
                    .map_err(|error| fail(&error))?;
                disk.refresh().map_err(|error| fail(&error))
            }
            Size::Image(disk) => disk.resize(bytes).map_err(|error| fail(&error)),
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

/// Splits `WHAT[,path=fast|slow|auto]`.
fn choice(text: &str) -> std::result::Result<(&str, Choice), String> {
    let Some((what, option)) = text.split_once(',') else {
        return Ok((text, Choice::Auto));
    };
    match option {
        "path=fast" => Ok((what, Choice::Fast)),
        "path=slow" => Ok((what, Choice::Slow)),
        "path=auto" => Ok((what, Choice::Auto)),
        _ => Err(format!("`{option}`: use path=fast, path=slow or path=auto")),
    }
}

fn vdpa(
    device: Arc<dyn VdpaDevice>,
    choice: Choice,
    layers: Vec<LayerArg>,
) -> std::result::Result<VdpaSource, String> {
    if choice != Choice::Auto && !layers.is_empty() {
        return Err("layers decide on the path: give path=auto with them".to_owned());
    }
    Ok(VdpaSource {
        device,
        slow: AtomicBool::new(choice == Choice::Slow),
        layers: (choice == Choice::Auto).then(|| Mutex::new(layers)),
    })
}

/// A simulated device over memory of that size, or over another disk.
fn simulated(what: &str, queues: u16, serial: String) -> Result<(Arc<dyn VdpaDevice>, Size)> {
    let memory = format!("memory:{what}");
    let (disk, size) = own(if what.contains(':') { what } else { &memory })?;
    let device = device::DeviceOptions {
        queues: queues.clamp(1, disk.caps().max_queues),
        serial,
        ..device::DeviceOptions::default()
    };
    let mut options = sim_backend::SimOptions::strict();
    options.profile = SimProfile::Strict(StrictOptions {
        device,
        ..StrictOptions::default()
    });
    let sim = BlkSim::new(disk, options).map_err(|error| disk_error(what, &error))?;
    Ok((Arc::new(sim), size))
}

/// A disk of one of [`KINDS`].
fn own(name: &str) -> Result<(Arc<dyn Disk>, Size)> {
    let fail = |why: &dyn Display| disk_error(name, why);
    let arg = KINDS.parse(name).map_err(|error| fail(&error))?;
    if let Some(memory) = arg.options::<MemoryOptions>() {
        let disk = MemoryDisk::new(memory.bytes).map_err(|error| fail(&error))?;
        let disk = Arc::new(disk);
        return Ok((disk.clone(), Size::Memory(disk)));
    }
    let opened = arg.open(false).map_err(|error| fail(&error))?;
    let size = match arg.options::<RawOptions>() {
        Some(raw) => Size::File(raw.path().to_owned(), opened.clone()),
        None if arg.options::<Qcow2File>().is_some() => Size::Image(opened.clone()),
        None => Size::Fixed,
    };
    Ok((opened, size))
}

/// One page of notification addresses, interrupt vectors and so on is enough for this many.
const MAX_QUEUES: u16 = 64;

fn disk_error(name: &str, why: &dyn Display) -> Error {
    Error::Disk {
        disk: name.to_owned(),
        why: why.to_string(),
    }
}

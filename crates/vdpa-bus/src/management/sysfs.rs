// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vDPA bus in sysfs: which driver a device is bound to, and its node.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::ManagementError;
use super::name::DeviceName;

/// What a device can be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Driver {
    /// `virtio_vdpa`: the host's own virtio drivers use the device; a block device becomes `/dev/vdX`.
    Virtio,
    /// `vhost_vdpa`: a process uses it, for a virtual machine for instance, by `/dev/vhost-vdpa-N`.
    Vhost,
}

impl Driver {
    /// The driver's name, and its module's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio_vdpa",
            Self::Vhost => "vhost_vdpa",
        }
    }
}

/// How a device is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Node {
    /// The character device of `vhost_vdpa`: `/dev/vhost-vdpa-N`.
    Vhost(PathBuf),
    /// The block device over `virtio_vdpa`: `/dev/vdX`.
    Block(PathBuf),
}

impl Node {
    /// The path below `/dev`.
    pub fn path(&self) -> &Path {
        match self {
            Self::Vhost(path) | Self::Block(path) => path,
        }
    }

    /// The numbers of the processes that have the node open, as far as this process may look (root sees
    /// all). Before a device is unbound or deleted: those whom the kernel will wait for. Another may still
    /// open it afterwards.
    pub fn users(&self) -> Vec<u32> {
        users(Path::new("/proc"), self.path())
    }
}

/// The vDPA bus in sysfs.
#[derive(Clone)]
pub struct Sysfs {
    bus: PathBuf,
    write: fn(&Path, &str) -> io::Result<()>,
}

impl fmt::Debug for Sysfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sysfs").field("bus", &self.bus).finish()
    }
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Sysfs {
    /// The host's, at `/sys`.
    pub fn new() -> Self {
        Self::at("/sys")
    }

    /// One that is mounted elsewhere.
    pub fn at(root: impl AsRef<Path>) -> Self {
        Self::with_writer(root, write)
    }

    /// With a kernel of the caller's behind the files that are written to.
    pub(super) fn with_writer(
        root: impl AsRef<Path>,
        write: fn(&Path, &str) -> io::Result<()>,
    ) -> Self {
        Self {
            bus: root.as_ref().join("bus/vdpa"),
            write,
        }
    }

    /// The driver that a device is bound to, which may be none that [`Driver`] knows.
    ///
    /// # Errors
    /// [`ManagementError::NoBus`], [`ManagementError::NoDevice`], or the file can't be read.
    pub fn driver(&self, name: &DeviceName) -> Result<Option<String>, ManagementError> {
        let link = self.device(name)?.join("driver");
        match fs::read_link(&link) {
            Ok(target) => Ok(target
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("reading", &link, source)),
        }
    }

    /// Binds a device to a driver, or to none, and leaves it so: also drivers that are loaded later don't
    /// take it. The device is unbound from the one it has, which waits until nobody has its
    /// `/dev/vhost-vdpa-N` open, and the new driver's probe runs before this returns: **never call this
    /// from the thread that replies to the device's VDUSE messages or serves its queues**.
    ///
    /// Nothing is changed if the driver isn't loaded.
    ///
    /// # Errors
    /// [`ManagementError::NoBus`], [`ManagementError::NoDevice`], [`ManagementError::NoDriver`],
    /// [`ManagementError::NotBound`]; or a file of sysfs can't be written, as by others than root.
    pub fn bind(&self, name: &DeviceName, driver: Option<Driver>) -> Result<(), ManagementError> {
        let device = self.device(name)?;
        if let Some(driver) = driver
            && !self.bus.join("drivers").join(driver.name()).is_dir()
        {
            return Err(ManagementError::NoDriver(driver));
        }
        let bound = self.driver(name)?;
        let wanted = driver.map(Driver::name);
        // No driver is called "none".
        self.put(&device.join("driver_override"), wanted.unwrap_or("none"))?;
        if bound.as_deref() == wanted {
            return Ok(());
        }
        if bound.is_some() {
            // By the device's own link: the driver's name comes from the kernel.
            self.put(&device.join("driver/unbind"), name.as_str())?;
        }
        let Some(driver) = driver else { return Ok(()) };
        self.put(&self.bus.join("drivers_probe"), name.as_str())?;
        if self.driver(name)?.as_deref() == wanted {
            Ok(())
        } else {
            Err(ManagementError::NotBound {
                device: name.to_string(),
                driver,
            })
        }
    }

    /// The node by which a device is reached. None if it is bound to no driver, or its virtio device to
    /// none (the module `virtio_blk` is missing), or it is no block device.
    ///
    /// # Errors
    /// [`ManagementError::NoBus`], [`ManagementError::NoDevice`], or a directory can't be read.
    pub fn node(&self, name: &DeviceName) -> Result<Option<Node>, ManagementError> {
        let device = self.device(name)?;
        for entry in names(&device)? {
            if numbered(&entry, "vhost-vdpa-") {
                return Ok(Some(Node::Vhost(Path::new("/dev").join(entry))));
            }
            if numbered(&entry, "virtio") {
                let disks = device.join(entry).join("block");
                if let Some(disk) = names(&disks)?.into_iter().next() {
                    return Ok(Some(Node::Block(Path::new("/dev").join(disk))));
                }
            }
        }
        Ok(None)
    }

    fn device(&self, name: &DeviceName) -> Result<PathBuf, ManagementError> {
        if !self.bus.is_dir() {
            return Err(ManagementError::NoBus(self.bus.clone()));
        }
        let device = self.bus.join("devices").join(name.as_str());
        if !device.is_dir() {
            return Err(ManagementError::NoDevice(name.to_string()));
        }
        Ok(device)
    }

    fn put(&self, file: &Path, value: &str) -> Result<(), ManagementError> {
        (self.write)(file, value).map_err(|source| failed("writing to", file, source))
    }
}

/// Writes an attribute: one call, of a file that exists.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.write_all(value.as_bytes())
}

/// The names in a directory, sorted. None if it doesn't exist.
fn names(directory: &Path) -> Result<Vec<String>, ManagementError> {
    let failed = |source| failed("reading", directory, source);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn failed(doing: &str, file: &Path, source: io::Error) -> ManagementError {
    ManagementError::System {
        what: format!("{doing} {}", file.display()),
        source,
    }
}

/// The processes below `proc` that have `node` open.
pub(super) fn users(proc: &Path, node: &Path) -> Vec<u32> {
    // A process may end at any moment, or be somebody else's: what can't be read has no say.
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut users: Vec<u32> = processes
        .filter_map(|process| {
            let id = process.file_name().to_str()?.parse().ok()?;
            let mut open = fs::read_dir(process.path().join("fd")).ok()?.flatten();
            let uses = open.any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == node));
            uses.then_some(id)
        })
        .collect();
    users.sort_unstable();
    users
}

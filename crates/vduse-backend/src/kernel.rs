// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The seam between this crate and the kernel: the operations of the control file, of a device's file, and
//! of its attributes in sysfs. `linux` has the real ones, `fake` a model.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::CpuSet;
use virtio_blk_core::memory::Permissions;
use vmm_sys_util::eventfd::EventFd;

use crate::message::{RawMessage, RawResponse};

/// What a device is created with (`struct vduse_dev_config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Its name.
    pub name: String,
    /// Device features offered.
    pub features: u64,
    /// Number of queues.
    pub queues: u16,
    /// The version of the interface that was set: groups and address spaces exist from 1 on.
    pub api_version: u64,
    /// The configuration space.
    pub config: Vec<u8>,
}

/// A queue as the driver has set it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VqInfo {
    /// Descriptors.
    pub num: u32,
    /// I/O virtual address of the descriptor table.
    pub descriptor: u64,
    /// I/O virtual address of the available ring.
    pub driver: u64,
    /// I/O virtual address of the used ring.
    pub device: u64,
    /// The available index that the driver set to start from; not where the queue is now.
    pub avail_index: u16,
    /// Enabled.
    pub ready: bool,
}

/// A mapped range of a device's address space.
#[derive(Debug)]
pub struct Region {
    /// The file with the memory.
    pub file: OwnedFd,
    /// Where `first` lies in it.
    pub offset: u64,
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// What the device may do there.
    pub permissions: Permissions,
    /// The file is the one that the kernel makes for virtio-vdpa, with the bounce buffer and the rings. `offset` is
    /// the I/O virtual address then.
    pub domain: bool,
}

/// What the kernel tells of a mapped range without a descriptor of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// It is virtio-vdpa's bounce buffer, for which a server could register memory of its own (`VDUSE_IOVA_CAP_UMEM`).
    pub bounce: bool,
}

/// An attribute of a device in sysfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Bytes of the bounce buffer (Linux 6.12; before it is attached).
    BounceSize,
    /// Seconds until an unanswered message breaks the device; 0: for ever.
    MsgTimeout,
}

impl Attribute {
    /// Its name in sysfs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BounceSize => "bounce_size",
            Self::MsgTimeout => "msg_timeout",
        }
    }
}

/// What [`DeviceFile::wait`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A message can be read.
    pub message: bool,
    /// The device is broken: a message was not answered in time. Only destroying it helps.
    pub broken: bool,
}

/// The kernel's side of VDUSE.
pub trait Kernel: Send + Sync + 'static {
    /// Opens the control file.
    ///
    /// # Errors
    /// `NotFound`: the module is not loaded. `PermissionDenied`.
    fn control(&self) -> io::Result<Box<dyn Control>>;

    /// Opens the file of a device.
    ///
    /// # Errors
    /// `ResourceBusy`: somebody serves it. `NotFound`.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DeviceFile>>;

    /// Reads an attribute of a device.
    ///
    /// # Errors
    /// The kernel has no such attribute.
    fn attribute(&self, name: &str, attribute: Attribute) -> io::Result<u64>;

    /// Writes an attribute of a device.
    ///
    /// # Errors
    /// The kernel has no such attribute, or refuses the value.
    fn set_attribute(&self, name: &str, attribute: Attribute, value: u64) -> io::Result<()>;

    /// The CPUs on which the driver of a device takes the interrupts of a queue.
    ///
    /// # Errors
    /// The kernel does not tell (before Linux 6.4).
    fn vq_cpus(&self, name: &str, index: u16) -> io::Result<CpuSet>;

    /// What tells this boot of the system from every other.
    ///
    /// # Errors
    /// It can't be read.
    fn boot_id(&self) -> io::Result<String>;
}

/// The control file, `/dev/vduse/control`.
pub trait Control {
    /// Returns the newest version of the interface that the kernel has. Linux 7.0 also chooses it for this file.
    ///
    /// # Errors
    /// The kernel's.
    fn api_version(&self) -> io::Result<u64>;

    /// Chooses the version of the interface.
    ///
    /// # Errors
    /// `InvalidInput`: the kernel does not know it.
    fn set_api_version(&self, version: u64) -> io::Result<()>;

    /// The features of the interface that the kernel has (Linux 7.3).
    ///
    /// # Errors
    /// The kernel is older.
    fn features(&self) -> io::Result<u64>;

    /// Chooses features for the devices that this file creates.
    ///
    /// # Errors
    /// A feature is unknown.
    fn set_features(&self, features: u64) -> io::Result<()>;

    /// Creates a device.
    ///
    /// # Errors
    /// `AlreadyExists`, or the configuration is refused.
    fn create(&self, device: &NewDevice) -> io::Result<()>;

    /// Destroys a device.
    ///
    /// # Errors
    /// `ResourceBusy`: it is attached to the vDPA bus, or its file is open.
    fn destroy(&self, name: &str) -> io::Result<()>;
}

/// The file of a device, `/dev/vduse/NAME`. Every operation fails with `PermissionDenied` once the device is
/// broken.
pub trait DeviceFile: Send + Sync {
    /// Waits until there is a message, the device is broken, one of `also` is readable, or the time is over.
    ///
    /// # Errors
    /// The system's.
    fn wait(&self, also: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Events>;

    /// Reads a message, without waiting. `None`: there is none.
    ///
    /// # Errors
    /// The kernel's; also `InvalidData` for a message of another size.
    fn read(&self) -> io::Result<Option<RawMessage>>;

    /// Writes a response.
    ///
    /// # Errors
    /// `NotFound`: the sender of the request does not wait any more.
    fn respond(&self, response: &RawResponse) -> io::Result<()>;

    /// The first region that has an address from `first` on. `None`: there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn region(&self, first: u64) -> io::Result<Option<Region>>;

    /// What is known of the first region that has an address from `first` on. `None`: there is none.
    ///
    /// # Errors
    /// The kernel's; it is older than Linux 6.1.
    fn region_info(&self, first: u64) -> io::Result<Option<RegionInfo>>;

    /// The features that the driver acknowledged; valid from FEATURES_OK on.
    ///
    /// # Errors
    /// The kernel's.
    fn driver_features(&self) -> io::Result<u64>;

    /// Writes the configuration space, from its beginning.
    ///
    /// # Errors
    /// The kernel's.
    fn set_config(&self, config: &[u8]) -> io::Result<()>;

    /// Tells the driver that the configuration space changed.
    ///
    /// # Errors
    /// `InvalidInput`: there is no driver.
    fn inject_config_irq(&self) -> io::Result<()>;

    /// Sets the largest size of a queue.
    ///
    /// # Errors
    /// The kernel's.
    fn set_up_vq(&self, index: u16, max_size: u16) -> io::Result<()>;

    /// How the driver has set a queue up.
    ///
    /// # Errors
    /// `InvalidInput`: there is no such queue.
    fn vq_info(&self, index: u16) -> io::Result<VqInfo>;

    /// Gives the eventfd that the driver's kicks go to, or takes it away.
    ///
    /// # Errors
    /// The kernel's.
    fn set_kick(&self, index: u16, kick: Option<&EventFd>) -> io::Result<()>;

    /// Interrupts the driver.
    ///
    /// # Errors
    /// `InvalidInput`: there is no driver.
    fn inject_irq(&self, index: u16) -> io::Result<()>;
}

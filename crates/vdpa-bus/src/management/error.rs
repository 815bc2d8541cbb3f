// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why management failed.

use std::io;
use std::path::PathBuf;

use super::device::MacAddress;
use super::name::NameError;
use super::sysfs::Driver;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagementError {
    /// The kernel has no generic netlink family `vdpa`: its module is missing, or this process is in a
    /// network namespace other than the first, where the family doesn't exist.
    #[error(
        "the kernel has no netlink family \"vdpa\": load its module (modprobe vdpa; for devices served by \
         a process: modprobe vduse), in the host's network namespace"
    )]
    NoFamily,
    /// The kernel has no vDPA bus: its module is missing.
    #[error("{} does not exist: the module vdpa isn't loaded (modprobe vdpa)", .0.display())]
    NoBus(PathBuf),
    /// The kernel said no.
    #[error("{what}: {}{}", reason.as_ref().map(|r| format!("{r}: ")).unwrap_or_default(), io::Error::from_raw_os_error(*errno))]
    Refused {
        /// What was asked for.
        what: String,
        /// The error number, positive.
        errno: i32,
        /// The kernel's own words, where it has any.
        reason: Option<String>,
    },
    /// A reply that isn't what the kernel's interface promises.
    #[error("{what}: the kernel's reply makes no sense: {why}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong with the reply.
        why: String,
    },
    /// No reply, or none that ends.
    #[error("{what}: no complete reply of the kernel in time")]
    TimedOut {
        /// What was asked for.
        what: String,
    },
    /// The system refused to carry the request or the reply, or a file of sysfs.
    #[error("{what}: {source}")]
    System {
        /// What was done, with the name of the file or device.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// No such device.
    #[error("there is no vDPA device {0:?}")]
    NoDevice(String),
    /// Something of a network device was asked of another.
    #[error("{0:?} is no network device, and has no address")]
    NotNetwork(String),
    /// The kernel reported success, and the device has another address all the same.
    #[error("the kernel took the address {wanted} of {device:?}, but the device has {found}")]
    AddressNotTaken {
        /// The device.
        device: String,
        /// What was asked for.
        wanted: MacAddress,
        /// What it says.
        found: MacAddress,
    },
    /// The driver isn't there: its module is missing.
    #[error("the driver {} isn't loaded (modprobe {})", .0.name(), .0.name())]
    NoDriver(Driver),
    /// The driver was asked to take a device, and did not. The device is bound to nothing; why is in the
    /// kernel's log.
    #[error("the driver {} did not take {device:?}, now bound to nothing; see the kernel's log (dmesg)", driver.name())]
    NotBound {
        /// The device.
        device: String,
        /// The driver.
        driver: Driver,
    },
    /// A name that can't be one.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl ManagementError {
    /// The kernel's error number, positive, where the kernel said no.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

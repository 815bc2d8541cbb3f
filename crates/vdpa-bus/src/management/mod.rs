// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Management of the kernel's vDPA devices (feature `management`).
//!
//! - [`Management`] talks to the kernel's generic netlink family `vdpa`: which parents can make devices
//!   ([`ManagementDevice`]), which devices there are ([`Device`]), what their configuration space says
//!   ([`DeviceConfig`]), add ([`AddDevice`]), change
//!   and delete them. What the kernel refuses comes back as
//!   [`ManagementError::Refused`] with its error number and, where it gives one, its own reason.
//! - [`Sysfs`] shows and changes which driver a device is bound to ([`Driver`]) and finds its [`Node`]:
//!   `/dev/vhost-vdpa-N` or `/dev/vdX`.
//!
//! The source of the wire format is `include/uapi/linux/vdpa.h`, of its meaning `drivers/vdpa/vdpa.c`.
//!
//! # Calls that block
//! Adding a device, deleting one and binding it to a driver run the driver's probe or removal **inside the
//! call**, and the kernel waits there without a limit of ours:
//! - a probe sends messages to a VDUSE device's daemon and does I/O on it (the partition scan), so **never
//!   call from the thread that replies to the device's VDUSE messages or serves its queues**;
//! - deletion and unbinding wait until `/dev/vhost-vdpa-N` is closed. Deletion holds the
//!   kernel's global vDPA lock meanwhile, so every other call of this module, by any process, waits too.
//!
//! The time limit of a [`Link`] is for replies that don't come, not for these.
//!
//! # Events
//! The family has no multicast group, so there is nothing to subscribe to: poll
//! [`Management::devices`], or listen to udev, whose events for added, removed, bound and unbound devices
//! carry `SUBSYSTEM=vdpa`. A change of a device's capacity shows at its driver only.

mod attribute;
mod client;
mod config;
mod device;
mod error;
mod link;
mod name;
mod sysfs;
#[cfg(test)]
mod tests;
mod wire;

pub use client::Management;
pub use config::{BlkConfig, DeviceConfig, NetConfig};
pub use device::{AddDevice, Device, MacAddress, MacAddressError, ManagementDevice, VendorStats};
pub use error::ManagementError;
pub use link::{KernelLink, Link};
pub use name::{DeviceName, ManagementName, NameError};
pub use sysfs::{Driver, Node, Sysfs};

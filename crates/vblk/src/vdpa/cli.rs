// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of `vblk vdpa`.

use clap::{Args, Subcommand, ValueEnum};
use vdpa_bus::management::{DeviceName, Driver, MacAddress, ManagementName};

pub const HELP: &str = "\
A vDPA device is made by a management device (VDUSE, a simulator, a network
card) and used through a driver:
  virtio  virtio_vdpa: a disk of this host, /dev/vdX
  vhost   vhost_vdpa: a disk for a virtual machine, /dev/vhost-vdpa-N
Needs the modules vdpa, vduse for devices served by a process, virtio_vdpa and
virtio_blk, or vhost_vdpa.

Examples:
  vblk vdpa add disk0        # /dev/vduse/disk0 is served by now
  vblk vdpa list
  vblk vdpa bind disk0 vhost
  vblk vdpa del disk0
  vblk vdpa add net0 --mgmtdev pci/0000:01:00.2 --mac 02:00:00:00:00:01
  vblk vdpa stats net0 --queue 0

Adding and binding a device wait for its driver; deleting and binding it wait
until nobody has its /dev/vhost-vdpa-N open.";

/// What to do with vDPA devices.
#[derive(Debug, Subcommand)]
pub enum VdpaCommand {
    /// List what can make devices.
    Mgmt,
    /// List the devices, their drivers and nodes.
    List,
    /// Show a device: features, configuration, driver, node.
    Show(NameArgs),
    /// Add a device to the bus.
    Add(AddArgs),
    /// Delete a device from the bus.
    Del(NameArgs),
    /// Bind a device to a driver, and keep others from taking it.
    Bind(BindArgs),
    /// Change a network device.
    Set(SetArgs),
    /// Show what a network device's vendor counts.
    Stats(StatsArgs),
}

/// Options of `vdpa set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The device.
    #[arg(value_name = "DEV")]
    pub name: DeviceName,
    /// Its address.
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub mac: MacAddress,
}

/// Options of `vdpa stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The device.
    #[arg(value_name = "DEV")]
    pub name: DeviceName,
    /// Of this virtqueue; of all if none is given.
    #[arg(long, value_name = "INDEX")]
    pub queue: Option<u32>,
}

/// A device.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The device.
    #[arg(value_name = "DEV")]
    pub name: DeviceName,
}

/// Options of `vdpa add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Its name; with VDUSE that of the device in /dev/vduse.
    #[arg(value_name = "NAME")]
    pub name: DeviceName,
    /// What is to make it, as `vblk vdpa mgmt` names it.
    #[arg(long, value_name = "MGMTDEV", default_value = "vduse")]
    pub mgmtdev: ManagementName,
    /// Offer only these virtio features, a bit mask; VDUSE can't.
    #[arg(long, value_name = "MASK", value_parser = mask)]
    pub features: Option<u64>,
    /// The address of a network device.
    #[arg(long, value_name = "ADDRESS")]
    pub mac: Option<MacAddress>,
    /// The MTU of a network device, in bytes.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,
    /// Queue pairs of a network device, at most.
    #[arg(long, value_name = "PAIRS", value_parser = clap::value_parser!(u16).range(1..=0x8000))]
    pub max_vqp: Option<u16>,
}

impl AddArgs {
    /// The options that a management device may refuse, as they were given.
    pub fn attributes(&self) -> Vec<&'static str> {
        let given = [
            ("--features", self.features.is_some()),
            ("--mac", self.mac.is_some()),
            ("--mtu", self.mtu.is_some()),
            ("--max-vqp", self.max_vqp.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(name, _)| name).collect()
    }
}

/// Options of `vdpa bind`.
#[derive(Debug, Args)]
pub struct BindArgs {
    /// The device.
    #[arg(value_name = "DEV")]
    pub name: DeviceName,
    /// The driver.
    #[arg(value_name = "DRIVER")]
    pub driver: DriverArg,
}

/// A driver, or none.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DriverArg {
    /// virtio_vdpa
    Virtio,
    /// vhost_vdpa
    Vhost,
    /// No driver
    None,
}

impl DriverArg {
    /// As the library names it.
    pub fn driver(self) -> Option<Driver> {
        match self {
            Self::Virtio => Some(Driver::Virtio),
            Self::Vhost => Some(Driver::Vhost),
            Self::None => None,
        }
    }
}

fn mask(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("not a number, as 12 or 0x1f: {error}"))
}

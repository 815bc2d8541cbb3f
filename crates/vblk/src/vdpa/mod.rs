// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk vdpa`: the kernel's vDPA devices.

mod cli;
mod hint;
mod show;
mod stats;
mod table;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fs;

use serde::Serialize;
use vdpa_bus::management::{
    AddDevice, Device, DeviceName, Driver, Management, ManagementDevice, ManagementError, Node,
    Sysfs,
};

use cli::AddArgs;
pub use cli::{HELP, VdpaCommand};

use crate::output::{self, OutputError};
use show::Shown;

/// Does it.
pub fn run(command: &VdpaCommand, json: bool) -> Result<(), Box<dyn Error>> {
    let outcome = match command {
        VdpaCommand::Mgmt => mgmt(json),
        VdpaCommand::List => list(json),
        VdpaCommand::Show(args) => show(&args.name, json),
        VdpaCommand::Add(args) => Management::open()
            .and_then(|mut client| client.add(&asked_for(args)))
            .map_err(Failure::Management)
            .and_then(|()| changed("added", &args.name, json)),
        VdpaCommand::Del(args) => Management::open()
            .and_then(|mut client| {
                say_who_is_waited_for(&args.name);
                client.delete(&args.name)
            })
            .map_err(Failure::Management)
            .and_then(|()| Ok(print(&Change::of("deleted", &args.name), json)?)),
        VdpaCommand::Bind(args) => {
            let driver = args.driver.driver();
            if driver != Some(Driver::Vhost) {
                say_who_is_waited_for(&args.name);
            }
            Sysfs::new()
                .bind(&args.name, driver)
                .map_err(Failure::Management)
                .and_then(|()| {
                    let event = driver.map_or("unbound", |_| "bound");
                    changed(event, &args.name, json)
                })
        }
        VdpaCommand::Set(args) => Management::open()
            .and_then(|mut client| client.set_mac_address(&args.name, args.mac))
            .map_err(Failure::Management)
            .and_then(|()| changed("changed", &args.name, json)),
        VdpaCommand::Stats(args) => stats::run(args, json),
    };
    outcome.map_err(|failure| match failure {
        Failure::Management(error) => hint::explain(&error, command).into(),
        Failure::Output(error) => error.into(),
    })
}

/// The device that is to be added.
fn asked_for(args: &AddArgs) -> AddDevice {
    let mut device = AddDevice::new(args.name.clone(), args.mgmtdev.clone());
    if let Some(features) = args.features {
        device = device.device_features(features);
    }
    if let Some(address) = args.mac {
        device = device.mac_address(address);
    }
    if let Some(bytes) = args.mtu {
        device = device.mtu(bytes);
    }
    if let Some(pairs) = args.max_vqp {
        device = device.max_queue_pairs(pairs);
    }
    device
}

/// The kernel releases a device only when its `/dev/vhost-vdpa-N` is closed, and waits without a word.
fn say_who_is_waited_for(name: &DeviceName) {
    // What is wrong with the device is said by what is done to it.
    let Ok(Some(node @ Node::Vhost(_))) = Sysfs::new().node(name) else {
        return;
    };
    let users: Vec<String> = node
        .users()
        .into_iter()
        .map(|id| match fs::read_to_string(format!("/proc/{id}/comm")) {
            // A process may call itself anything.
            Ok(comm) => format!("{} ({id})", comm.trim_end().escape_debug()),
            Err(_) => id.to_string(),
        })
        .collect();
    if !users.is_empty() {
        let node = node.path().display();
        log::warn!("waiting until {node} is closed by {}", users.join(", "));
    }
}

/// Why a subcommand ended early.
enum Failure {
    Management(ManagementError),
    Output(OutputError),
}

impl From<ManagementError> for Failure {
    fn from(error: ManagementError) -> Self {
        Self::Management(error)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::Output(error)
    }
}

fn print(value: &impl Serialize, json: bool) -> Result<(), OutputError> {
    output::print(value, json)
}

/// What became of a device. Field names are the JSON's.
#[derive(Serialize)]
struct Change<'a> {
    event: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl<'a> Change<'a> {
    fn of(event: &'static str, name: &'a DeviceName) -> Self {
        Self {
            event,
            name: name.as_str(),
            driver: None,
            node: None,
        }
    }
}

fn changed(event: &'static str, name: &DeviceName, json: bool) -> Result<(), Failure> {
    let (driver, node) = place(&Sysfs::new(), name.as_str())?;
    let change = Change {
        driver,
        node,
        ..Change::of(event, name)
    };
    Ok(print(&change, json)?)
}

/// A device's driver and node. Neither where it has gone meanwhile, or has a name that can't be in a path.
fn place(sysfs: &Sysfs, name: &str) -> Result<(Option<String>, Option<String>), ManagementError> {
    let Ok(name) = DeviceName::new(name) else {
        return Ok((None, None));
    };
    let node = |node: Node| node.path().display().to_string();
    match (sysfs.driver(&name), sysfs.node(&name)) {
        (Err(ManagementError::NoDevice(_)), _) | (_, Err(ManagementError::NoDevice(_))) => {
            Ok((None, None))
        }
        (driver, found) => Ok((driver?, found?.map(node))),
    }
}

/// A management device. Field names are the JSON's.
#[derive(Serialize)]
struct Parent {
    name: String,
    classes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_vqs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supported_features: Option<u64>,
}

impl Parent {
    fn new(device: &ManagementDevice) -> Self {
        let classes = (0..u64::BITS).filter(|class| device.supports(*class));
        Self {
            name: device.name.to_string(),
            classes: classes.map(class).collect(),
            // VDUSE says 0: it has no limit of its own, each device has.
            max_vqs: device.max_vqs.filter(|max| *max > 0),
            supported_features: device.supported_features.filter(|features| *features > 0),
        }
    }
}

/// The usual name of a virtio device ID.
fn class(id: u32) -> String {
    match id {
        1 => "net".to_owned(),
        2 => "block".to_owned(),
        26 => "fs".to_owned(),
        id => format!("virtio-{id}"),
    }
}

fn mgmt(json: bool) -> Result<(), Failure> {
    let parents = Management::open()?.management_devices()?;
    let parents: Vec<Parent> = parents.iter().map(Parent::new).collect();
    if parents.is_empty() {
        log::warn!(
            "nothing here can make vDPA devices; for those served by a process: modprobe vduse"
        );
    }
    let rows = parents.iter().map(|parent| {
        let number = parent.max_vqs.map(|number| number.to_string());
        let features = parent.supported_features.map(|bits| format!("{bits:#x}"));
        [
            Some(parent.name.clone()),
            Some(parent.classes.join(",")),
            number,
            features,
        ]
    });
    let text = table::render(["MGMTDEV", "CLASSES", "QUEUES", "FEATURES"], rows);
    Ok(lines(&parents, &text, json)?)
}

/// A device in a list. Field names are the JSON's.
#[derive(Serialize)]
struct Listed {
    name: String,
    mgmtdev: String,
    class: String,
    queues: u32,
    driver: Option<String>,
    node: Option<String>,
}

impl Listed {
    fn new(device: &Device, sysfs: &Sysfs) -> Result<Self, ManagementError> {
        let (driver, node) = place(sysfs, &device.name)?;
        Ok(Self {
            name: device.name.clone(),
            mgmtdev: device.management.to_string(),
            class: class(device.device_id),
            queues: device.max_vqs,
            driver,
            node,
        })
    }
}

fn list(json: bool) -> Result<(), Failure> {
    let devices = Management::open()?.devices()?;
    let sysfs = Sysfs::new();
    let devices = devices
        .iter()
        .map(|device| Listed::new(device, &sysfs))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = devices.iter().map(|device| {
        [
            Some(device.name.clone()),
            Some(device.mgmtdev.clone()),
            Some(device.class.clone()),
            Some(device.queues.to_string()),
            device.driver.clone(),
            device.node.clone(),
        ]
    });
    let header = ["NAME", "MGMTDEV", "CLASS", "QUEUES", "DRIVER", "NODE"];
    let text = table::render(header, rows);
    Ok(lines(&devices, &text, json)?)
}

/// One JSON object a line, or the table.
fn lines(values: &[impl Serialize], table: &str, json: bool) -> Result<(), OutputError> {
    if json {
        return values.iter().try_for_each(|value| print(value, true));
    }
    output::write(table)
}

fn show(name: &DeviceName, json: bool) -> Result<(), Failure> {
    let mut client = Management::open()?;
    let device = client.device(name)?;
    let config = client.config(name)?;
    let (driver, node) = place(&Sysfs::new(), name.as_str())?;
    Ok(print(&Shown::new(&device, &config, driver, node), json)?)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Putting a VDUSE device on the vDPA bus and taking it off, beside the thread that serves it: the driver's
//! probe runs inside these calls.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use vdpa_bus::management::{
    AddDevice, DeviceName, Driver, Management, ManagementError, ManagementName, Sysfs,
};

/// How long a node may take to appear once the driver has the device.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether an error says that the device is on the bus already.
fn exists(error: &ManagementError) -> bool {
    // EEXIST, on every architecture that Linux runs on.
    error.errno() == Some(17)
}

/// Adds the device to the bus, if it is not there, and binds it. Answers where it can be found; `None` if
/// no node appears.
///
/// # Errors
/// The kernel refuses, or has no such driver.
pub fn attach(name: &DeviceName, driver: Driver) -> Result<Option<PathBuf>, ManagementError> {
    let parent = ManagementName::new(None, "vduse")?;
    match Management::open()?.add(&AddDevice::new(name.clone(), parent)) {
        Err(error) if !exists(&error) => return Err(error),
        _ => {}
    }
    let sysfs = Sysfs::new();
    sysfs.bind(name, Some(driver))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(node) = sysfs.node(name)? {
            return Ok(Some(node.path().to_owned()));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Takes the device off the bus. Waits until nobody has its `/dev/vhost-vdpa-N` open.
///
/// # Errors
/// The kernel refuses.
pub fn detach(name: &DeviceName) -> Result<(), ManagementError> {
    match Management::open()?.delete(name) {
        // ENODEV: somebody else was faster.
        Err(error) if error.errno() == Some(19) => Ok(()),
        other => other,
    }
}

/// Takes the device off the bus, and gives up after `limit`: it stays attached then, and what its driver asks for waits
/// for the next server. Says what went wrong.
pub fn detach_within(name: &DeviceName, limit: Duration) {
    let (done, wait) = channel();
    let device = name.clone();
    // It may wait in the kernel for as long as a process has the node open.
    thread::spawn(move || done.send(detach(&device)));
    match wait.recv_timeout(limit) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("device {name} can't be taken off the bus: {error}"),
        Err(_) => log::error!(
            "device {name} is still in use after {limit:?} and stays on the bus; what its driver asks for waits for \
             the next server"
        ),
    }
}

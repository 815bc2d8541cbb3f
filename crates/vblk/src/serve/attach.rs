// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Putting a VDUSE device on the vDPA bus and taking it off, beside the thread that serves it: the driver's
//! probe runs inside these calls.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vdpa_bus::management::{
    AddDevice, DeviceName, Driver, Management, ManagementError, ManagementName, Sysfs,
};

/// How long a node may take to appear once the driver has the device.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long taking a device off the bus may take: its driver writes what it has in memory, and a process may have its
/// node open.
pub(super) const DETACH: Duration = Duration::from_secs(60);

/// Whether an error says that the device is on the bus already.
fn exists(error: &ManagementError) -> bool {
    // EEXIST, on every architecture that Linux runs on.
    error.errno() == Some(17)
}

/// A device, and whether it may be on the bus.
pub(super) struct Attachment {
    name: DeviceName,
    /// It was taken off the bus, and comes no more. Held while it is put there.
    ended: Mutex<bool>,
}

impl Attachment {
    pub(super) fn new(name: DeviceName) -> Arc<Self> {
        Arc::new(Self {
            name,
            ended: Mutex::new(false),
        })
    }

    /// The device's name.
    pub(super) fn name(&self) -> &DeviceName {
        &self.name
    }

    fn ended(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was taken off the bus, or is about to be.
    pub(super) fn is_ended(&self) -> bool {
        *self.ended()
    }

    /// Adds the device to the bus, if it is not there, and binds it. Returns where it can be found; `None` if no node
    /// appears, or it was taken off the bus before.
    ///
    /// # Errors
    /// The kernel refuses, or has no such driver.
    pub(super) fn attach(&self, driver: Driver) -> Result<Option<PathBuf>, ManagementError> {
        let ended = self.ended();
        if *ended {
            return Ok(None);
        }
        let parent = ManagementName::new(None, "vduse")?;
        match Management::open()?.add(&AddDevice::new(self.name.clone(), parent)) {
            Err(error) if !exists(&error) => return Err(error),
            _ => {}
        }
        let sysfs = Sysfs::new();
        sysfs.bind(&self.name, Some(driver))?;
        drop(ended);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(node) = sysfs.node(&self.name)? {
                return Ok(Some(node.path().to_owned()));
            }
            if Instant::now() > deadline || self.is_ended() {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes the device off the bus. Waits until nobody has its `/dev/vhost-vdpa-N` open.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn detach(&self) -> Result<(), ManagementError> {
        *self.ended() = true;
        match Management::open()?.delete(&self.name) {
            // ENODEV: somebody else was faster.
            Err(error) if error.errno() == Some(19) => Ok(()),
            other => other,
        }
    }

    /// Takes the device off the bus, and gives up after [`DETACH`]: it stays attached then, and what its driver asks for
    /// waits for the next server. Says what went wrong.
    pub(super) fn detach_in_time(self: &Arc<Self>) {
        let (done, wait) = channel();
        let this = self.clone();
        let device = &self.name;
        // It may wait in the kernel for as long as a process has the node open.
        let thread = thread::Builder::new().name("vblk-detach".into());
        if let Err(error) = thread.spawn(move || done.send(this.detach())) {
            return log::error!(
                "device {device} stays on the bus: no thread to take it off: {error}"
            );
        }
        match wait.recv_timeout(DETACH) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("device {device} can't be taken off the bus: {error}"),
            Err(_) => log::error!(
                "device {device} is still in use after {DETACH:?} and stays on the bus; what its driver asks for waits \
                 for the next server"
            ),
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Creating a device, or taking one over.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_blk_core::device::{Device, GuestAbi};
use virtio_blk_core::spec::feature;

use crate::kernel::{Attribute, Control, DeviceFile, Kernel, NewDevice};
use crate::server::{ServerError, ServerOptions};
use crate::state::{Shape, State};
use crate::uapi::{F_QUEUE_READY, F_SUSPEND};

/// The newest version of the interface that is understood here.
const API_VERSION: u64 = 1;

/// A device that is ready to be served.
pub(crate) struct Established {
    pub(crate) file: Arc<dyn DeviceFile>,
    pub(crate) state: State,
    /// It was served before, by a server that died.
    pub(crate) taken_over: bool,
}

/// What the kernel needs to agree to, over what the device offers.
fn check(device: &Device) -> Result<(), ServerError> {
    let offered = device.offered();
    if offered & feature::ACCESS_PLATFORM == 0 {
        return Err(ServerError::Features(
            "Options::transport_features must have ACCESS_PLATFORM",
        ));
    }
    if offered & feature::CONFIG_WCE != 0 {
        return Err(ServerError::Features(
            "Options::config_wce must be off: the driver can't write the configuration space",
        ));
    }
    Ok(())
}

/// A name that is a file's name in the kernel's directories and in ours.
fn check_name(name: &str) -> Result<(), ServerError> {
    let usual = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let good = !name.is_empty() && name.len() <= 64 && name.chars().all(usual);
    // The control file has this name.
    if !good || name.starts_with('.') || name == "control" {
        return Err(ServerError::Name(name.to_owned()));
    }
    Ok(())
}

fn control_error(source: io::Error) -> ServerError {
    match source.kind() {
        io::ErrorKind::NotFound => ServerError::NoModule,
        io::ErrorKind::PermissionDenied => ServerError::Permission,
        _ => ServerError::Control(source),
    }
}

/// Chooses version and features. Returns the version.
fn negotiate(control: &dyn Control) -> Result<u64, ServerError> {
    let version = control.api_version().map_err(ServerError::Control)?;
    let version = version.min(API_VERSION);
    control
        .set_api_version(version)
        .map_err(ServerError::Control)?;
    // Kernels before 7.3 have none.
    let features = control.features().unwrap_or(0) & (F_QUEUE_READY | F_SUSPEND);
    if features != 0 {
        control
            .set_features(features)
            .map_err(ServerError::Control)?;
    }
    log::debug!("VDUSE version {version}, features {features:#x}");
    Ok(version)
}

/// Whether a driver would see another device, apart from what may change while it runs.
fn differs(told: &GuestAbi, now: &GuestAbi) -> bool {
    let mut told = *told;
    told.capacity = now.capacity;
    told.writeback = now.writeback;
    told != *now
}

struct Setup<'a> {
    kernel: &'a dyn Kernel,
    device: &'a Device,
    options: &'a ServerOptions,
    shape: Shape,
    version: u64,
}

/// Creates the device, or takes over one that a server left.
pub(crate) fn establish(
    kernel: &dyn Kernel,
    device: &Device,
    options: &ServerOptions,
) -> Result<Established, ServerError> {
    check(device)?;
    check_name(&options.name)?;
    let control = kernel.control().map_err(control_error)?;
    let version = negotiate(control.as_ref())?;
    let setup = Setup {
        kernel,
        device,
        options,
        shape: Shape {
            name: options.name.clone(),
            boot: kernel.boot_id().map_err(ServerError::Control)?,
            abi: device.guest_abi(),
        },
        version,
    };
    match setup.create(control.as_ref()) {
        Err(ServerError::Create { source, .. })
            if source.kind() == io::ErrorKind::AlreadyExists =>
        {
            setup.take_over(control.as_ref())
        }
        other => other,
    }
}

impl Setup<'_> {
    fn name(&self) -> String {
        self.shape.name.clone()
    }

    fn open(&self) -> Result<Arc<dyn DeviceFile>, ServerError> {
        self.kernel
            .open(&self.shape.name)
            .map_err(|source| match source.kind() {
                io::ErrorKind::ResourceBusy => ServerError::InUse(self.name()),
                _ => ServerError::Device(source),
            })
    }

    fn state_error(&self, source: io::Error) -> ServerError {
        ServerError::State {
            directory: self.options.state_dir.clone(),
            source,
        }
    }

    fn create(&self, control: &dyn Control) -> Result<Established, ServerError> {
        let new = NewDevice {
            name: self.name(),
            features: self.shape.abi.features,
            queues: self.shape.abi.queues,
            api_version: self.version,
            config: self.device.config().to_bytes().to_vec(),
        };
        control.create(&new).map_err(|source| ServerError::Create {
            name: self.name(),
            source,
        })?;
        let made = self.set_up();
        if made.is_err() {
            // The file is closed by now.
            let _ = control.destroy(&self.shape.name);
        }
        made
    }

    fn set_up(&self) -> Result<Established, ServerError> {
        let file = self.open()?;
        for index in 0..self.shape.abi.queues {
            file.set_up_vq(index, self.shape.abi.queue_size)
                .map_err(ServerError::Device)?;
        }
        let wanted = [
            (Attribute::BounceSize, self.options.bounce_size),
            (
                Attribute::MsgTimeout,
                self.options.msg_timeout.map(u64::from),
            ),
        ];
        for (attribute, value) in wanted {
            if let Some(value) = value {
                let set = self
                    .kernel
                    .set_attribute(&self.shape.name, attribute, value);
                set.map_err(|source| ServerError::Attribute {
                    attribute: attribute.name(),
                    value,
                    source,
                })?;
            }
        }
        let state = State::create(&self.options.state_dir, self.shape.clone())
            .map_err(|source| self.state_error(source))?;
        Ok(Established {
            file,
            state,
            taken_over: false,
        })
    }

    /// Destroys what exists and creates it anew.
    fn recreate(&self, control: &dyn Control, why: &str) -> Result<Established, ServerError> {
        match control.destroy(&self.shape.name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(ServerError::Attached {
                    name: self.name(),
                    why: why.to_owned(),
                });
            }
            Err(error) => return Err(ServerError::Device(error)),
        }
        log::warn!("device {} {why}: made anew", self.shape.name);
        self.create(control)
    }

    fn take_over(&self, control: &dyn Control) -> Result<Established, ServerError> {
        let file = self.open()?;
        if let Err(error) = file.driver_features() {
            drop(file);
            if error.kind() == io::ErrorKind::PermissionDenied {
                return self.recreate(
                    control,
                    "is broken, as a message of the kernel was not answered in time",
                );
            }
            return Err(ServerError::Device(error));
        }
        let found = State::open(&self.options.state_dir, &self.shape.name, &self.shape.boot)
            .map_err(|source| self.state_error(source))?;
        let Some(state) = found else {
            drop(file);
            return self.recreate(control, "was left by a server that kept no record");
        };
        let mut file = file;
        let mut told = state.abi();
        if state.status() == 0 {
            // There is no driver that knows it.
            told.capacity = self.shape.abi.capacity;
        }
        if differs(&told, &self.shape.abi) {
            drop(file);
            match control.destroy(&self.shape.name) {
                Ok(()) => {
                    log::warn!(
                        "device {} is made anew: nobody uses it, and it would be another",
                        self.shape.name
                    );
                    return self.create(control);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => file = self.open()?,
                Err(error) => return Err(ServerError::Device(error)),
            }
        }
        self.device
            .adopt(&told)
            .map_err(|source| ServerError::Promised {
                name: self.name(),
                source,
            })?;
        if let Some(seconds) = self.options.msg_timeout {
            let (name, timeout) = (&self.shape.name, Attribute::MsgTimeout);
            if let Err(error) = self.kernel.set_attribute(name, timeout, seconds.into()) {
                log::warn!("msg_timeout can't be set: {error}");
            }
        }
        Ok(Established {
            file,
            state,
            taken_over: true,
        })
    }
}

impl ServerOptions {
    /// Options for a device of this name: the kernel's own settings, records in `/run/vblk`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            poll: std::time::Duration::ZERO,
            pin: true,
            state_dir: PathBuf::from("/run/vblk"),
            bounce_size: None,
            msg_timeout: None,
        }
    }
}

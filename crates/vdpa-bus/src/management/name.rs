// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Names that are safe in paths and messages.

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes: what VDUSE (256 with the NUL) and a directory of sysfs take.
const MAX_LEN: usize = 255;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty.
    #[error("a name can't be empty")]
    Empty,
    /// More than 255 bytes.
    #[error("a name has at most 255 bytes, not {0}")]
    TooLong(usize),
    /// `.` or `..`, which mean other directories.
    #[error("a name can't be {0:?}")]
    Dots(String),
    /// `/`, NUL or another control character.
    #[error("a name can't have {0:?} in it")]
    Character(char),
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_LEN {
        return Err(NameError::TooLong(name.len()));
    }
    if name == "." || name == ".." {
        return Err(NameError::Dots(name.to_owned()));
    }
    // A line break would end a sysfs attribute early; the other control characters have no place in
    // terminals.
    match name.chars().find(|c| *c == '/' || c.is_control()) {
        Some(c) => Err(NameError::Character(c)),
        None => Ok(()),
    }
}

/// The name of a vDPA device, such as `vdpa0`: not empty, at most 255 bytes, not `.` or `..`, without `/`,
/// NUL and other control characters. So it can be part of a path below sysfs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check(&name)?;
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What makes devices, as `vduse` or `pci/0000:01:00.2`: a device name, behind that of its bus if it is on
/// one. VDUSE and the simulators are on none, and the kernel finds them only if none is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManagementName {
    bus: Option<String>,
    device: String,
}

impl ManagementName {
    /// Checks the names. `device` may be any that a [`DeviceName`] may be, `bus` too.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn new(bus: Option<&str>, device: &str) -> Result<Self, NameError> {
        check(device)?;
        bus.map(check).transpose()?;
        Ok(Self::of_kernel(bus.map(str::to_owned), device.to_owned()))
    }

    /// As the kernel says, which may have names that we would not accept.
    pub(super) fn of_kernel(bus: Option<String>, device: String) -> Self {
        Self { bus, device }
    }

    /// The bus it is on.
    pub fn bus(&self) -> Option<&str> {
        self.bus.as_deref()
    }

    /// Its name on that bus.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl FromStr for ManagementName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        match name.split_once('/') {
            Some((bus, device)) => Self::new(Some(bus), device),
            None => Self::new(None, name),
        }
    }
}

impl fmt::Display for ManagementName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bus) = &self.bus {
            write!(f, "{bus}/")?;
        }
        f.write_str(&self.device)
    }
}

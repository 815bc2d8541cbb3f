// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why an operation was refused.

use std::io;

use virtio_blk_core::memory::IotlbError;

/// Why a device refused an operation. Each has the kernel's error number as [`VdpaError::errno`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VdpaError {
    /// This device does not have the operation (`EOPNOTSUPP`).
    #[error("the device can't do that: {0}")]
    NotSupported(&'static str),
    /// An argument is out of range (`EINVAL`).
    #[error("{0}")]
    Invalid(String),
    /// Not at this moment of the device's life, or somebody else has it (`EBUSY`).
    #[error("not now: {0}")]
    Busy(&'static str),
    /// A map was refused (`EEXIST` for an overlap, else `EINVAL`).
    #[error(transparent)]
    Iotlb(#[from] IotlbError),
    /// The device has no room for more mappings (`ENOSPC`).
    #[error("no room for more than {0} mappings")]
    NoSpace(usize),
    /// The device is gone (`ENODEV`).
    #[error("the device is gone")]
    Gone,
    /// The device failed (`EIO`).
    #[error("the device failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it, with the name of the file or device.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl VdpaError {
    /// Returns the error number that the kernel would return, positive.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotSupported(_) => EOPNOTSUPP,
            Self::Invalid(_) => EINVAL,
            Self::Busy(_) => EBUSY,
            Self::Iotlb(IotlbError::Overlaps { .. }) => EEXIST,
            Self::Iotlb(_) => EINVAL,
            Self::NoSpace(_) => ENOSPC,
            Self::Gone => ENODEV,
            Self::Failed(_) => EIO,
            Self::System { source, .. } => source.raw_os_error().unwrap_or(EIO),
        }
    }
}

// The same on every architecture that Linux runs KVM on.
const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

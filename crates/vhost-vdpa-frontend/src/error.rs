// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a path could not be set up.

use vdpa_bus::VdpaError;
use virtio_blk_core::memory::IotlbError;

/// Why a device could not be driven the way it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The device refused an operation.
    #[error("{step}: {source}")]
    Device {
        /// What was being done.
        step: &'static str,
        /// What the device said.
        source: VdpaError,
    },
    /// The device did not accept the features it offered (FEATURES_OK did not stay).
    #[error("the device does not accept the features {0:#x}")]
    Features(u64),
    /// Not a block device.
    #[error("virtio device number {0}: the slow path drives block devices (2) only")]
    DeviceClass(u32),
    /// The device can't be used without this feature.
    #[error("the device does not offer {0}")]
    Missing(&'static str),
    /// The device's configuration makes no sense.
    #[error("the device's configuration is not usable: {0}")]
    Config(String),
    /// There is no room for the shadow window in the device's I/O addresses.
    #[error("no {len:#x} bytes for the shadow window at {at:#x}: {why}")]
    Window {
        /// Where it was to lie.
        at: u64,
        /// Its bytes.
        len: u64,
        /// What is in the way.
        why: &'static str,
    },
    /// The memory map was refused.
    #[error(transparent)]
    Memory(#[from] IotlbError),
    /// A queue that the device does not have, or of a size that it does not take.
    #[error("queue {index}: {why}")]
    Queue {
        /// Its index.
        index: u16,
        /// What is wrong.
        why: String,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// It can't be done at this moment.
    #[error("not now: {0}")]
    Busy(&'static str),
}

impl PathError {
    /// Whether the device does not take the features that were to be negotiated.
    pub(crate) fn is_about_features(&self) -> bool {
        matches!(
            self,
            Self::Features(_)
                | Self::Device {
                    step: "features",
                    ..
                }
        )
    }
}

/// Notes what was being done when a device refused.
pub(crate) trait Step<T> {
    /// The error of `step`.
    fn step(self, step: &'static str) -> Result<T, PathError>;
}

impl<T> Step<T> for Result<T, VdpaError> {
    fn step(self, step: &'static str) -> Result<T, PathError> {
        self.map_err(|source| PathError::Device { step, source })
    }
}

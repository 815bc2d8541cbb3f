// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a path could not be set up.

use vdpa_bus::VdpaError;
use virtio_blk_core::memory::IotlbError;
use virtio_blk_core::runner::Refused;

/// What was asked of a device when it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceStep {
    /// Resetting the device.
    Reset,
    /// Setting ACKNOWLEDGE in the status byte.
    SetAcknowledge,
    /// Setting DRIVER in the status byte.
    SetDriver,
    /// Acknowledging features.
    SetFeatures,
    /// Setting FEATURES_OK in the status byte.
    SetFeaturesOk,
    /// Setting the size of a queue.
    SetQueueSize,
    /// Setting the index at which a queue starts.
    SetQueueState,
    /// Reading the index at which a queue stands.
    ReadQueueState,
    /// Setting the addresses of a queue's rings.
    SetQueueAddress,
    /// Giving a queue its kick eventfd.
    SetQueueKick,
    /// Taking the kick eventfds of a running device away, or giving them back.
    BindKicks,
    /// Giving a queue its interrupt.
    SetQueueCallback,
    /// Giving the configuration space its interrupt.
    SetConfigCallback,
    /// Enabling a queue.
    EnableQueue,
    /// Setting DRIVER_OK in the status byte.
    SetDriverOk,
    /// Suspending the device.
    Suspend,
    /// Resuming the device.
    Resume,
    /// Replacing the memory map.
    SetMap,
    /// Adding a mapping.
    MapMemory,
    /// Removing a mapping.
    UnmapMemory,
    /// Reading the configuration space.
    ReadConfig,
    /// Writing the configuration space.
    WriteConfig,
    /// Writing the configuration space again after a reset that the guest does not know of.
    ReplayConfig,
}

impl std::fmt::Display for DeviceStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reset => "reset",
            Self::SetAcknowledge => "status ACKNOWLEDGE",
            Self::SetDriver => "status DRIVER",
            Self::SetFeatures => "features",
            Self::SetFeaturesOk => "status FEATURES_OK",
            Self::SetQueueSize => "queue size",
            Self::SetQueueState | Self::ReadQueueState => "queue state",
            Self::SetQueueAddress => "queue address",
            Self::SetQueueKick => "queue kick",
            Self::BindKicks => "binding kicks",
            Self::SetQueueCallback => "queue callback",
            Self::SetConfigCallback => "configuration callback",
            Self::EnableQueue => "queue ready",
            Self::SetDriverOk => "status DRIVER_OK",
            Self::Suspend => "SUSPEND",
            Self::Resume => "RESUME",
            Self::SetMap => "memory map",
            Self::MapMemory => "mapping memory",
            Self::UnmapMemory => "unmapping memory",
            Self::ReadConfig => "reading the configuration",
            Self::WriteConfig => "writing the configuration",
            Self::ReplayConfig => "writing the configuration again",
        })
    }
}

/// Why a device could not be driven the way it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The device refused an operation.
    #[error("{step}: {source}")]
    Device {
        /// What was being done.
        step: DeviceStep,
        /// What the device said.
        source: VdpaError,
    },
    /// The device did not accept the features it offered (FEATURES_OK did not stay).
    #[error("the device does not accept the features {0:#x}")]
    Features(u64),
    /// DRIVER_OK did not stay: the device could not be started, whatever it returned.
    #[error("the device did not start: its status reads {0:#04x} after DRIVER_OK was set")]
    NotStarted(u8),
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
    /// The slow path's disk can't be taken into use.
    #[error("the slow path: {0}")]
    Refused(#[from] Refused),
    /// Releasing the slow path's disk failed.
    #[error("what the slow path's disk kept in memory may be lost: {0}")]
    Lost(String),
    /// It can't be done with this device at any moment; nothing was changed.
    #[error("not with this device: {0}")]
    Unsupported(&'static str),
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
                    step: DeviceStep::SetFeatures,
                    ..
                }
        )
    }
}

/// Adds to a device's error what was asked of it.
pub(crate) trait Step<T> {
    /// The result, with an error of `step`.
    fn step(self, step: DeviceStep) -> Result<T, PathError>;
}

impl<T> Step<T> for Result<T, VdpaError> {
    fn step(self, step: DeviceStep) -> Result<T, PathError> {
        self.map_err(|source| PathError::Device { step, source })
    }
}

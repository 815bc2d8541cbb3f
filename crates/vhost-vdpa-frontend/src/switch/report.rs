// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a switch did.

use std::time::Duration;

use crate::PathError;

/// A way for the guest's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// From the guest's rings straight into the device.
    Fast,
    /// Through the VMM.
    Slow,
}

impl DataPath {
    /// The path that is not this one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Fast => Self::Slow,
            Self::Slow => Self::Fast,
        }
    }
}

/// Where the guest's requests go, if they go anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// Nowhere: the guest's driver does not run.
    Idle,
    /// From the guest's rings straight into the device.
    Fast,
    /// Through the VMM.
    Slow,
    /// Nowhere, by order of the VMM ([`super::PathSwitch::pause`]).
    Paused,
    /// Nowhere, or into errors ([`super::OnFailure`]): neither path could be set up. [`super::PathSwitch::retry`] tries
    /// again, a reset by the guest starts anew.
    Failed,
}

impl From<DataPath> for PathState {
    fn from(path: DataPath) -> Self {
        match path {
            DataPath::Fast => Self::Fast,
            DataPath::Slow => Self::Slow,
        }
    }
}

impl PartialEq<DataPath> for PathState {
    fn eq(&self, path: &DataPath) -> bool {
        *self == Self::from(*path)
    }
}

/// How the device was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuiesceMethod {
    /// By SUSPEND, under a running guest.
    Suspend,
    /// Idle under stopped vCPUs, then reset.
    PausedVcpus,
    /// The slow path finished what it had.
    Drain,
}

/// How long each part of a switch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchPhases {
    /// From the moment at which kicks went nowhere until nothing was in flight.
    pub quiesce: Duration,
    /// Of that the time for which vCPUs stood still.
    pub vcpus_paused: Duration,
    /// Resetting the device.
    pub reset: Duration,
    /// Negotiating, mapping, starting the other rings.
    pub start: Duration,
    /// Taking the guest's rings over, and telling the guest.
    pub take_over: Duration,
}

impl SwitchPhases {
    /// How long nobody served the guest.
    pub fn pause(&self) -> Duration {
        self.quiesce + self.reset + self.start + self.take_over
    }
}

/// A switch that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchReport {
    /// The path that the requests took before.
    pub from: DataPath,
    /// The path that they take now.
    pub to: DataPath,
    /// How the device was stopped; none where it did nothing.
    pub method: Option<QuiesceMethod>,
    /// Durations.
    pub phases: SwitchPhases,
    /// Requests that the guest had made available and not got back, when the switch began. Both sides were working
    /// while they were counted, so it may be a few too many.
    pub in_flight: u32,
    /// Times that the device was suspended before it was found drained.
    pub attempts: u32,
}

/// What a switch was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchStep {
    /// Looking whether it may be done at all.
    Prepare,
    /// Stopping who served the guest.
    Quiesce,
    /// Resetting the device.
    Reset,
    /// Setting the other path up.
    Start,
    /// Handing the guest's rings over.
    TakeOver,
}

impl std::fmt::Display for SwitchStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepare => "preparing",
            Self::Quiesce => "stopping the old path",
            Self::Reset => "resetting the device",
            Self::Start => "starting the new path",
            Self::TakeOver => "handing the rings over",
        })
    }
}

/// A switch that failed. The guest is served all the same, unless [`SwitchError::path`] says `Failed`.
#[derive(Debug, thiserror::Error)]
#[error("the path is {path:?}: {step} failed: {source}")]
pub struct SwitchError {
    /// What was being done.
    pub step: SwitchStep,
    /// Where requests go now.
    pub path: PathState,
    /// The cause.
    pub source: PathError,
    /// Why going back failed, too.
    pub back: Option<PathError>,
}

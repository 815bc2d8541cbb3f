// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The states of a switch, each with what is known in it.

use super::{DataPath, PathState};
use crate::guest::QueuePositions;

/// Who has the guest's rings.
#[derive(Debug)]
pub(super) enum State {
    /// Nobody: the guest's driver does not run.
    Idle,
    /// The device.
    Fast,
    /// The executor, which serves them over the slow path's disk.
    Slow,
    /// Nobody, by order of the VMM, with nothing in flight. The device was reset.
    Paused {
        /// Where the queues stand.
        positions: QueuePositions,
        /// The path to continue on.
        next: DataPath,
    },
    /// Nobody who works: neither path could be set up.
    Failed(Failure),
}

/// How the rings are left when neither path works.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody has them, and nothing is in flight. They stand at these positions.
    Held(QueuePositions),
    /// The executor completes each request with an error.
    Answering,
    /// The device has them, with requests in flight, and is suspended or receives no kicks. It must not be reset; it may
    /// be brought to continue.
    Stalled,
    /// Where they stand is not known, and DEVICE_NEEDS_RESET is set: only the guest's reset helps.
    NeedsReset,
}

impl State {
    /// What users of a switch are told.
    pub(super) const fn path(&self) -> PathState {
        match self {
            Self::Idle => PathState::Idle,
            Self::Fast => PathState::Fast,
            Self::Slow => PathState::Slow,
            Self::Paused { .. } => PathState::Paused,
            Self::Failed(_) => PathState::Failed,
        }
    }
}

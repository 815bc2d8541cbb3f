// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a profile implements beyond the table of operations.

use std::sync::Arc;
use std::time::Instant;

use vdpa_bus::VdpaDevice;

use crate::faults::FaultState;
use crate::notifier::Notifier;

/// What is left to do for a queue after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing until it is notified.
    Idle,
    /// As `Idle`, with requests in flight.
    InFlight,
    /// More, at once.
    More,
    /// Nothing until then.
    Until(Instant),
}

/// One profile of the simulator.
pub(crate) trait Model: VdpaDevice {
    /// Serves queue `vq`: at most `budget` new requests.
    fn work(&self, vq: u16, budget: usize) -> Work;

    /// Whether queue `vq` has requests in flight that only further passes end.
    fn is_busy(&self, vq: u16) -> bool;

    /// The notifier of its queues.
    fn notifier(&self) -> &Arc<Notifier>;

    /// Its faults.
    fn faults(&self) -> &FaultState;
}

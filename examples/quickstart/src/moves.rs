// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moving a guest to and fro while it works.

use std::time::{Duration, Instant};

use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::{PathState, PathSwitch};
use virtio_blk_core::memory::DeviceMemory;

use crate::Outcome;

/// The interception that holds the guest on the slow path.
const INTERCEPTION: &str = "quickstart";
/// How long the guest is moved.
const TIME: Duration = Duration::from_secs(2);
/// How often at least.
const LEAST: usize = 10;
/// How long it stays on a path, and after each of its looks longer, until a request was executed there.
const STAY: Duration = Duration::from_millis(25);
/// The longest that a guest may take for one request.
const STUCK: Duration = Duration::from_secs(10);

/// What the moves took, and where requests went.
#[derive(Debug, Default)]
pub struct Moves {
    /// How long nobody served the guest, by move.
    pub pauses: Vec<Duration>,
    /// Moves that began with requests in flight.
    pub with_in_flight: usize,
    /// The most requests in flight when a move began.
    pub most_in_flight: u32,
    /// Reads and writes that the device executed from the guest's own rings.
    pub fast_requests: u64,
    /// Reads and writes that passed through the VMM.
    pub slow_requests: u64,
}

impl Moves {
    /// The median pause.
    pub fn median_pause(&self) -> Duration {
        let mut sorted = self.pauses.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// The longest pause.
    pub fn longest_pause(&self) -> Duration {
        self.pauses.iter().max().copied().unwrap_or_default()
    }

    /// Moves a guest to the slow path and back, again and again. `look` waits for that long, unless the guest has ended too
    /// early, which is an error. The guest is on the fast path before and after.
    ///
    /// # Errors
    /// A path can't be set up, or the guest does nothing on it.
    pub fn make<M: DeviceMemory + Clone>(
        paths: &PathSwitch<M>,
        mut look: impl FnMut(Duration) -> Outcome<()>,
    ) -> Outcome<Self> {
        let (start, mut moves) = (Instant::now(), Self::default());
        let mut seen = 0;
        while start.elapsed() < TIME || moves.pauses.len() < LEAST {
            for slow in [true, false] {
                let arrived = Instant::now();
                let before = seen;
                while seen == before {
                    look(STAY)?;
                    seen = executed(&**paths.device())?;
                    if arrived.elapsed() > STUCK {
                        return Err(format!(
                            "no request in {STUCK:?} on the {:?} path",
                            paths.path()
                        )
                        .into());
                    }
                }
                paths.set_interception(INTERCEPTION, slow)?;
                // Nothing was in flight at that instant.
                seen = executed(&**paths.device())?;
                let (to, requests) = if slow {
                    (PathState::Slow, &mut moves.fast_requests)
                } else {
                    (PathState::Fast, &mut moves.slow_requests)
                };
                *requests += seen - before;
                let report = paths.last_report().filter(|_| paths.path() == to);
                let report =
                    report.ok_or_else(|| format!("the path is {:?}, not {to:?}", paths.path()))?;
                moves.pauses.push(report.phases.pause());
                moves.with_in_flight += usize::from(report.in_flight != 0);
                moves.most_in_flight = moves.most_in_flight.max(report.in_flight);
            }
        }
        Ok(moves)
    }

    /// Adds what was executed since the last move, and compares the sum with what the guest says: two for each chunk.
    ///
    /// # Errors
    /// A request was lost, or executed twice.
    pub fn finish(&mut self, device: &dyn VdpaDevice, compared: u64) -> Outcome<()> {
        let executed = executed(device)?;
        self.fast_requests = executed - self.slow_requests;
        if executed != compared * 2 {
            return Err(format!(
                "{compared} chunks were written and read, but {executed} requests executed"
            )
            .into());
        }
        Ok(())
    }
}

/// Reads and writes that a device has executed, by its own counters, which outlive a reset.
fn executed(device: &dyn VdpaDevice) -> Outcome<u64> {
    let mut sum = 0;
    for vq in 0..device.nvqs() {
        let stats = device.get_vendor_vq_stats(vq)?;
        let counted = stats
            .iter()
            .filter(|(name, _)| name == "reads" || name == "writes");
        sum += counted.map(|(_, value)| value).sum::<u64>();
    }
    Ok(sum)
}

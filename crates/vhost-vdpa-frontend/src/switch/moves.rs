// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The switch itself.

use std::time::Instant;

use vdpa_bus::{VdpaError, VqState};
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;

use super::start::Stumble;
use super::{
    Inner, Method, OnFailure, Path, PathSwitch, Phases, Policy, Report, SwitchError, SwitchStep,
};
use crate::error::{PathError, Step};
use crate::guest::{self, Drained};

/// Why a guest is not moved to the fast path.
const SEEN: &str = "somebody needs to see requests";

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// The guest's driver starts.
    pub(super) fn begin(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let slow = self.options.policy == Policy::Auto && !self.needs.reasons().is_empty();
        let states = inner
            .guest
            .enabled()
            .map(|(index, _)| (index, VqState::Split { avail_index: 0 }))
            .collect::<Drained>();
        let begun = if slow {
            guest::reset(self.device.as_ref())?;
            self.start_slow(inner, states)
        } else {
            self.start_fast(inner, states)
        };
        begun.map(drop).map_err(|stumble| {
            // The guest sees no DRIVER_OK, and may try again.
            self.stop_hosts(inner, Stop::HandOver);
            stumble.why
        })
    }

    /// Moves the guest.
    pub(super) fn go(
        &self,
        inner: &mut Inner<M>,
        path: Path,
    ) -> Result<Option<Report>, SwitchError> {
        let moved = match (inner.path, path) {
            (Path::Fast, Path::Slow) => self.to_slow(inner)?,
            (Path::Slow, Path::Fast) => self.to_fast(inner)?,
            (Path::Paused, Path::Fast) if !self.needs.reasons().is_empty() => {
                return Err(refuse(inner, SEEN));
            }
            (Path::Paused, Path::Fast | Path::Slow) => {
                inner.next = path;
                return Ok(None);
            }
            (Path::Failed, Path::Fast | Path::Slow) => {
                return Err(refuse(inner, "neither path could be set up: retry first"));
            }
            (_, Path::Fast | Path::Slow) => return Ok(None),
            _ => {
                return Err(refuse(
                    inner,
                    "a guest is moved to the fast or to the slow path",
                ));
            }
        };
        inner.last = Some(moved.clone());
        Ok(Some(moved))
    }

    fn to_slow(&self, inner: &mut Inner<M>) -> Result<Report, SwitchError> {
        let begun = Instant::now();
        let mut report = self
            .report(inner, Path::Slow)
            .map_err(|why| prepare(inner, why))?;
        let before = self.config();
        let (states, reset) = self.leave_fast(inner, &mut report)?;
        report.phases.quiesce = begun.elapsed() - report.phases.reset;
        if let Err(why) = reset {
            let step = SwitchStep::Reset;
            let stumble = Stumble { step, why, states };
            return Err(self.go_back(inner, stumble, Path::Fast));
        }
        let start = Instant::now();
        match self.start_slow(inner, states) {
            Ok(take_over) => {
                report.phases.take_over = take_over;
                report.phases.start = start.elapsed() - take_over;
            }
            Err(stumble) => return Err(self.go_back(inner, stumble, Path::Fast)),
        }
        self.tell_config(inner, &before);
        Ok(report)
    }

    fn to_fast(&self, inner: &mut Inner<M>) -> Result<Report, SwitchError> {
        if !self.needs.reasons().is_empty() {
            return Err(refuse(inner, SEEN));
        }
        if inner.one_way {
            return Err(refuse(
                inner,
                "this device can't go on in the middle of a ring",
            ));
        }
        let begun = Instant::now();
        let mut report = self
            .report(inner, Path::Fast)
            .map_err(|why| prepare(inner, why))?;
        let before = self.config();
        let states = self.leave_slow(inner)?;
        report.method = Some(Method::Drain);
        report.phases.quiesce = begun.elapsed();
        let start = Instant::now();
        match self.start_fast(inner, states) {
            Ok(reset) => {
                report.phases.reset = reset;
                report.phases.start = start.elapsed() - reset;
            }
            Err(stumble) => {
                let device = matches!(
                    stumble.why,
                    PathError::Device {
                        step: "queue state",
                        source: VdpaError::NotSupported(_),
                    }
                );
                inner.one_way |= device;
                return Err(self.go_back(inner, stumble, Path::Slow));
            }
        }
        self.tell_config(inner, &before);
        Ok(report)
    }

    /// Tries again to serve a guest that nobody serves.
    pub(super) fn try_again(&self, inner: &mut Inner<M>) -> Result<(), SwitchError> {
        if inner.path != Path::Failed {
            return Ok(());
        }
        if inner.stalled {
            return self.unstall(inner).map_err(|why| prepare(inner, why));
        }
        if self.options.on_failure == OnFailure::Fail && inner.held.is_some() {
            self.close_intakes(inner);
            inner.held = self.stop_hosts(inner, Stop::Drain);
        }
        let Some(states) = inner.held.take() else {
            return Err(refuse(
                inner,
                "where the queues stand is not known: the guest must reset its device",
            ));
        };
        let step = SwitchStep::Start;
        let first = if self.needs.reasons().is_empty() {
            self.start_fast(inner, states)
        } else {
            self.start_slow_anew(inner, states)
        };
        let stumble = match first {
            Ok(_) => return Ok(()),
            Err(stumble) => stumble,
        };
        match self.start_slow_anew(inner, stumble.states) {
            Ok(_) => Ok(()),
            Err(again) => Err(self.fail(inner, step, stumble.why, again.why, again.states)),
        }
    }

    /// Sets the path up again that was left.
    pub(super) fn go_back(
        &self,
        inner: &mut Inner<M>,
        stumble: Stumble,
        path: Path,
    ) -> SwitchError {
        let Stumble { step, why, states } = stumble;
        let back = match path {
            Path::Fast => self.start_fast(inner, states),
            _ => self.start_slow_anew(inner, states),
        };
        match back {
            Ok(_) => SwitchError {
                step,
                path: inner.path,
                source: why,
                back: None,
            },
            Err(second) => self.fail(inner, step, why, second.why, second.states),
        }
    }

    /// Neither path works.
    pub(super) fn fail(
        &self,
        inner: &mut Inner<M>,
        step: SwitchStep,
        source: PathError,
        back: PathError,
        states: Drained,
    ) -> SwitchError {
        log::error!("neither path could be set up: {source}; then {back}");
        inner.path = Path::Failed;
        inner.held = Some(states.clone());
        if self.options.on_failure == OnFailure::Fail
            && let Err(error) = self.serve_dead(inner, states)
        {
            log::error!("requests can't even be failed: {error}");
        }
        SwitchError {
            step,
            path: Path::Failed,
            source,
            back: Some(back),
        }
    }

    /// The beginning of a report.
    pub(super) fn report(&self, inner: &Inner<M>, to: Path) -> Result<Report, PathError> {
        let in_flight = inner
            .guest
            .rings()?
            .iter()
            .map(|(_, view)| u32::from(view.avail_idx().wrapping_sub(view.used_idx())))
            .sum();
        Ok(Report {
            from: inner.path,
            to,
            method: None,
            phases: Phases::default(),
            in_flight,
            attempts: 0,
        })
    }

    /// The configuration space as it is now.
    fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.device.get_config_size()];
        match self
            .device
            .get_config(0, &mut bytes)
            .step("reading the configuration")
        {
            Ok(()) => bytes,
            // Compared only.
            Err(_) => Vec::new(),
        }
    }

    /// Tells the guest if the configuration is another one than before: the notification may have been lost.
    fn tell_config(&self, inner: &Inner<M>, before: &[u8]) {
        if self.config() != before
            && let Some(config) = &inner.guest.config
        {
            config.notify();
        }
    }
}

pub(super) fn refuse<M: DeviceMemory>(inner: &Inner<M>, why: &'static str) -> SwitchError {
    prepare(inner, PathError::Busy(why))
}

pub(super) fn prepare<M: DeviceMemory>(inner: &Inner<M>, source: PathError) -> SwitchError {
    SwitchError {
        step: SwitchStep::Prepare,
        path: inner.path,
        source,
        back: None,
    }
}

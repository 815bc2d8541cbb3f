// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The switch itself: a guest that runs is moved from one path to the other.

use std::time::Instant;

use vdpa_bus::{VqState, backend_feature};
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;

use super::setup::StepError;
use super::state::State;
use super::{
    DataPath, Inner, PathSwitch, QuiesceMethod, SwitchError, SwitchPhases, SwitchPolicy,
    SwitchReport, SwitchStep,
};
use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, Guest, QueuePositions, QuiesceError};

/// Why a guest is not moved to the fast path.
const INTERCEPTED: &str = "somebody needs to see requests";

/// What is measured while a path is left.
#[derive(Default)]
pub(super) struct Measured {
    method: Option<QuiesceMethod>,
    phases: SwitchPhases,
    in_flight: u32,
    attempts: u32,
}

impl Measured {
    fn report(self, from: DataPath) -> SwitchReport {
        SwitchReport {
            from,
            to: from.other(),
            method: self.method,
            phases: self.phases,
            in_flight: self.in_flight,
            attempts: self.attempts,
        }
    }
}

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// The guest's driver starts.
    pub(super) fn begin(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let slow = self.options.policy == SwitchPolicy::Auto && self.interceptions.any();
        let positions = inner
            .guest
            .enabled()
            .map(|(index, _)| (index, VqState::Split { avail_index: 0 }))
            .collect::<QueuePositions>();
        let begun = if slow {
            self.start_slow_after_reset(inner, positions)
        } else {
            self.start_fast(inner, positions)
        };
        begun.map(drop).map_err(|error| {
            // The guest sees no DRIVER_OK, and may try again.
            self.stop_queues(inner, Stop::HandOver);
            error.source
        })
    }

    /// Moves the guest to `path`.
    pub(super) fn move_to(
        &self,
        inner: &mut Inner<M>,
        path: DataPath,
    ) -> Result<Option<SwitchReport>, SwitchError> {
        let report = match (&mut inner.state, path) {
            (State::Fast, DataPath::Slow) => self.to_slow(inner)?,
            (State::Slow, DataPath::Fast) => self.to_fast(inner)?,
            (State::Paused { .. }, DataPath::Fast) if self.interceptions.any() => {
                return Err(refuse(inner, INTERCEPTED));
            }
            (State::Paused { next, .. }, path) => {
                *next = path;
                return Ok(None);
            }
            (State::Failed(_), _) => {
                return Err(refuse(inner, "neither path could be set up: retry first"));
            }
            (State::Idle, _) | (State::Fast, DataPath::Fast) | (State::Slow, DataPath::Slow) => {
                return Ok(None);
            }
        };
        inner.last_report = Some(report.clone());
        Ok(Some(report))
    }

    fn to_slow(&self, inner: &mut Inner<M>) -> Result<SwitchReport, SwitchError> {
        let begun = Instant::now();
        let mut measured = self.measure(inner)?;
        let config = self.config();
        let (positions, reset) = self.leave_fast(inner, &mut measured)?;
        measured.phases.quiesce = begun.elapsed() - measured.phases.reset;
        if let Err(source) = reset {
            let error = StepError {
                step: SwitchStep::Reset,
                source,
                positions,
            };
            return Err(self.go_back(inner, error, DataPath::Fast));
        }
        let start = Instant::now();
        match self.start_slow(inner, positions) {
            Ok(take_over) => {
                measured.phases.take_over = take_over;
                measured.phases.start = start.elapsed() - take_over;
            }
            Err(error) => return Err(self.go_back(inner, error, DataPath::Fast)),
        }
        self.notify_if_config_changed(inner, &config);
        Ok(measured.report(DataPath::Fast))
    }

    fn to_fast(&self, inner: &mut Inner<M>) -> Result<SwitchReport, SwitchError> {
        if self.interceptions.any() {
            return Err(refuse(inner, INTERCEPTED));
        }
        if self.frontend.starts_at_zero_only() {
            return Err(refuse(
                inner,
                "this device can't continue in the middle of a ring",
            ));
        }
        let begun = Instant::now();
        let mut measured = self.measure(inner)?;
        let config = self.config();
        let positions = self.leave_slow(inner)?;
        measured.method = Some(QuiesceMethod::Drain);
        measured.phases.quiesce = begun.elapsed();
        let start = Instant::now();
        match self.start_fast(inner, positions) {
            Ok(reset) => {
                measured.phases.reset = reset;
                measured.phases.start = start.elapsed() - reset;
            }
            Err(error) => return Err(self.go_back(inner, error, DataPath::Slow)),
        }
        self.notify_if_config_changed(inner, &config);
        Ok(measured.report(DataPath::Slow))
    }

    /// Stops the device on the guest's rings and resets it. The reset's own error is given apart: nothing is in flight
    /// all the same.
    pub(super) fn leave_fast(
        &self,
        inner: &mut Inner<M>,
        measured: &mut Measured,
    ) -> Result<(QueuePositions, Result<(), PathError>), SwitchError> {
        self.vmm.unmap_doorbells();
        let quiesced = self.quiesce(&inner.guest, measured);
        quiesced.map_err(|error| self.not_quiesced(inner, error))
    }

    /// Stops the slow path, with nothing in flight.
    pub(super) fn leave_slow(&self, inner: &mut Inner<M>) -> Result<QueuePositions, SwitchError> {
        if !self.close_intakes(inner) {
            self.open_intakes(inner);
            return Err(inner.error(
                SwitchStep::Quiesce,
                PathError::Busy("requests in flight on the slow path don't end"),
            ));
        }
        let Some(positions) = self.stop_queues(inner, Stop::Drain) else {
            self.need_guest_reset(inner);
            return Err(inner.error(
                SwitchStep::Quiesce,
                PathError::Busy("the guest broke a ring"),
            ));
        };
        if let Err(source) = self.leave_disk().and_then(|()| self.slow.stop()) {
            // A layer holds a queue, or what it can't make stable: the guest is served as before.
            let step = SwitchStep::Quiesce;
            return Err(match self.serve(inner, positions) {
                Ok(()) => inner.error(step, source),
                Err(back) => self.fail(inner, step, source, back),
            });
        }
        Ok(positions)
    }

    /// Stops the device on the guest's rings (see [`crate::guest`] for the methods) and resets it. Where the latter
    /// failed, nothing is in flight all the same.
    fn quiesce(
        &self,
        guest: &Guest,
        measured: &mut Measured,
    ) -> Result<(QueuePositions, Result<(), PathError>), QuiesceError> {
        let device = self.device().as_ref();
        if device.get_backend_features() & backend_feature::SUSPEND == 0 {
            return self.pause_and_drain(guest, measured);
        }
        let deadline = Instant::now() + self.options.quiesce_timeout;
        match guest::suspend(device, guest, deadline, &mut measured.attempts) {
            Ok(positions) => {
                measured.method = Some(QuiesceMethod::Suspend);
                Ok((positions, self.timed_reset(measured)))
            }
            Err(QuiesceError::Stuck(source)) => Err(QuiesceError::Stuck(source)),
            Err(QuiesceError::Running(source)) => {
                log::debug!("SUSPEND did not do: {source}");
                self.pause_and_drain(guest, measured)
                    .map_err(|_| QuiesceError::Running(source))
            }
        }
    }

    fn timed_reset(&self, measured: &mut Measured) -> Result<(), PathError> {
        let begun = Instant::now();
        let reset = guest::reset(self.device().as_ref());
        measured.phases.reset = begun.elapsed();
        reset
    }

    /// Method B: the device is reset before the vCPUs continue.
    fn pause_and_drain(
        &self,
        guest: &Guest,
        measured: &mut Measured,
    ) -> Result<(QueuePositions, Result<(), PathError>), QuiesceError> {
        let device = self.device().as_ref();
        guest::bind_kicks(device, guest, false)?;
        guest::wait_while_completing(guest, Instant::now() + self.options.settle_time)?;
        let paused = Instant::now();
        if !self.vmm.pause_vcpus() {
            return Err(
                PathError::Busy("it has no SUSPEND, and this VMM does not stop vCPUs").into(),
            );
        }
        let deadline = Instant::now() + self.options.quiesce_timeout;
        let drained = guest::drain(device, guest, deadline).map(|positions| {
            measured.method = Some(QuiesceMethod::PausedVcpus);
            let reset = self.timed_reset(measured);
            // The device gets no kicks now. An error here shows again when it is set up.
            let _ = guest::bind_kicks(device, guest, false);
            (positions, reset)
        });
        self.vmm.resume_vcpus();
        measured.phases.vcpus_paused = paused.elapsed();
        drained
    }

    /// Begins to measure. Counts the requests in flight.
    ///
    /// # Errors
    /// The guest's rings can't be looked at.
    pub(super) fn measure(&self, inner: &Inner<M>) -> Result<Measured, SwitchError> {
        let rings = inner.guest.rings();
        let rings = rings.map_err(|source| inner.error(SwitchStep::Prepare, source))?;
        let in_flight = rings.iter().map(|(_, view)| {
            // In this order: the used index never overtakes the available one that is read after it.
            let used = view.used_idx();
            let pending = view.avail_idx().wrapping_sub(used);
            u32::from(pending.min(view.layout().size()))
        });
        Ok(Measured {
            in_flight: in_flight.sum(),
            ..Measured::default()
        })
    }

    /// The configuration space as it is now. Empty where it can't be read: it is only compared.
    fn config(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.device().get_config_size()];
        let read = self.device().get_config(0, &mut bytes);
        match read.step(DeviceStep::ReadConfig) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    /// Interrupts the guest if the configuration is another one than `before`: the notification may have been lost.
    fn notify_if_config_changed(&self, inner: &Inner<M>, before: &[u8]) {
        if self.config() != before {
            inner.guest.status.notify_config();
        }
    }
}

impl<M: DeviceMemory> Inner<M> {
    /// The error of a switch that failed at `step`, with the path as it is now.
    pub(super) const fn error(&self, step: SwitchStep, source: PathError) -> SwitchError {
        SwitchError {
            step,
            path: self.state.path(),
            source,
            back: None,
        }
    }
}

/// A switch that is not begun.
pub(super) const fn refuse<M: DeviceMemory>(inner: &Inner<M>, why: &'static str) -> SwitchError {
    inner.error(SwitchStep::Prepare, PathError::Busy(why))
}

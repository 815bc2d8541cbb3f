// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The switch itself.

use std::time::Instant;

use vdpa_bus::{VdpaError, VqState, backend_feature};
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;

use super::setup::StepError;
use super::{
    Inner, Path, PathSwitch, QuiesceMethod, SwitchError, SwitchPhases, SwitchPolicy, SwitchReport,
    SwitchStep,
};
use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, Guest, QueuePositions, QuiesceError};

/// Why a guest is not moved to the fast path.
const SEEN: &str = "somebody needs to see requests";

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// The guest's driver starts.
    pub(super) fn begin(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let slow =
            self.options.policy == SwitchPolicy::Auto && !self.interceptions.reasons().is_empty();
        let states = inner
            .guest
            .enabled()
            .map(|(index, _)| (index, VqState::Split { avail_index: 0 }))
            .collect::<QueuePositions>();
        let begun = if slow {
            guest::reset(self.device.as_ref())?;
            self.start_slow(inner, states)
        } else {
            self.start_fast(inner, states)
        };
        begun.map(drop).map_err(|error| {
            // The guest sees no DRIVER_OK, and may try again.
            self.stop_queues(inner, Stop::HandOver);
            error.why
        })
    }

    /// Moves the guest.
    pub(super) fn go(
        &self,
        inner: &mut Inner<M>,
        path: Path,
    ) -> Result<Option<SwitchReport>, SwitchError> {
        let moved = match (inner.path, path) {
            (Path::Fast, Path::Slow) => self.to_slow(inner)?,
            (Path::Slow, Path::Fast) => self.to_fast(inner)?,
            (Path::Paused, Path::Fast) if !self.interceptions.reasons().is_empty() => {
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

    fn to_slow(&self, inner: &mut Inner<M>) -> Result<SwitchReport, SwitchError> {
        let begun = Instant::now();
        let mut report = self
            .report(inner, Path::Slow)
            .map_err(|why| prepare(inner, why))?;
        let before = self.config();
        let (states, reset) = self.leave_fast(inner, &mut report)?;
        report.phases.quiesce = begun.elapsed() - report.phases.reset;
        if let Err(why) = reset {
            let step = SwitchStep::Reset;
            let error = StepError { step, why, states };
            return Err(self.go_back(inner, error, Path::Fast));
        }
        let start = Instant::now();
        match self.start_slow(inner, states) {
            Ok(take_over) => {
                report.phases.take_over = take_over;
                report.phases.start = start.elapsed() - take_over;
            }
            Err(error) => return Err(self.go_back(inner, error, Path::Fast)),
        }
        self.tell_config(inner, &before);
        Ok(report)
    }

    fn to_fast(&self, inner: &mut Inner<M>) -> Result<SwitchReport, SwitchError> {
        if !self.interceptions.reasons().is_empty() {
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
        report.method = Some(QuiesceMethod::Drain);
        report.phases.quiesce = begun.elapsed();
        let start = Instant::now();
        match self.start_fast(inner, states) {
            Ok(reset) => {
                report.phases.reset = reset;
                report.phases.start = start.elapsed() - reset;
            }
            Err(error) => {
                let device = matches!(
                    error.why,
                    PathError::Device {
                        step: DeviceStep::SetQueueState,
                        source: VdpaError::NotSupported(_),
                    }
                );
                inner.one_way |= device;
                return Err(self.go_back(inner, error, Path::Slow));
            }
        }
        self.tell_config(inner, &before);
        Ok(report)
    }

    /// Stops the device on the guest's rings and resets it, for which the error is given apart: nothing is in flight
    /// all the same.
    pub(super) fn leave_fast(
        &self,
        inner: &mut Inner<M>,
        report: &mut SwitchReport,
    ) -> Result<(QueuePositions, Result<(), PathError>), SwitchError> {
        self.vmm.unmap_doorbells();
        let quiesced = self.quiesce(&inner.guest, report);
        quiesced.map_err(|error| self.not_quiesced(inner, error))
    }

    /// Stops the slow path, with nothing in flight.
    pub(super) fn leave_slow(&self, inner: &mut Inner<M>) -> Result<QueuePositions, SwitchError> {
        if !self.close_intakes(inner) {
            self.open_intakes(inner);
            return Err(SwitchError {
                step: SwitchStep::Quiesce,
                path: inner.path,
                source: PathError::Busy("requests in flight on the slow path don't end"),
                back: None,
            });
        }
        let Some(states) = self.stop_queues(inner, Stop::Drain) else {
            return Err(self.broken(inner));
        };
        if let Err(why) = self.slow.stop() {
            // A layer holds a queue: the guest is served on as it was.
            let step = SwitchStep::Quiesce;
            return Err(match self.serve_slow(inner, states) {
                Ok(()) => SwitchError {
                    step,
                    path: inner.path,
                    source: why,
                    back: None,
                },
                Err(error) => self.fail(inner, step, why, error.why, error.states),
            });
        }
        Ok(states)
    }

    /// Stops the device on the guest's rings (see [`crate::guest`] for the methods) and resets it. Where the latter
    /// failed, nothing is in flight all the same.
    fn quiesce(
        &self,
        guest: &Guest,
        report: &mut SwitchReport,
    ) -> Result<(QueuePositions, Result<(), PathError>), QuiesceError> {
        let device = self.device.as_ref();
        let suspends = device.get_backend_features() & backend_feature::SUSPEND != 0;
        if !suspends {
            return self.pause_and_drain(guest, report);
        }
        let deadline = Instant::now() + self.options.quiesce_timeout;
        match guest::suspend(device, guest, deadline, &mut report.attempts) {
            Ok(states) => {
                report.method = Some(QuiesceMethod::Suspend);
                Ok((states, self.timed_reset(report)))
            }
            Err(error) if error.stuck => Err(error),
            Err(error) => {
                log::debug!("SUSPEND did not do: {}", error.why);
                self.pause_and_drain(guest, report).map_err(|_| error)
            }
        }
    }

    fn timed_reset(&self, report: &mut SwitchReport) -> Result<(), PathError> {
        let begun = Instant::now();
        let reset = guest::reset(self.device.as_ref());
        report.phases.reset = begun.elapsed();
        reset
    }

    /// QuiesceMethod B: the device is reset before the vCPUs go on.
    fn pause_and_drain(
        &self,
        guest: &Guest,
        report: &mut SwitchReport,
    ) -> Result<(QueuePositions, Result<(), PathError>), QuiesceError> {
        let device = self.device.as_ref();
        guest::bind_kicks(device, guest, false)?;
        guest::wait_while_completing(guest, Instant::now() + self.options.settle_time)?;
        let paused = Instant::now();
        if !self.vmm.pause_vcpus() {
            return Err(
                PathError::Busy("it has no SUSPEND, and this VMM does not stop vCPUs").into(),
            );
        }
        let drained = guest::drain(device, guest, Instant::now() + self.options.quiesce_timeout);
        let drained = drained.map(|states| {
            report.method = Some(QuiesceMethod::PausedVcpus);
            let reset = self.timed_reset(report);
            // The device hears nothing now. An error here shows again when it is set up.
            let _ = guest::bind_kicks(device, guest, false);
            (states, reset)
        });
        self.vmm.resume_vcpus();
        report.phases.vcpus_paused = paused.elapsed();
        drained
    }

    /// The beginning of a report.
    pub(super) fn report(&self, inner: &Inner<M>, to: Path) -> Result<SwitchReport, PathError> {
        let in_flight = inner
            .guest
            .rings()?
            .iter()
            .map(|(_, view)| {
                // In this order: the used index never overtakes the available one that is read after it.
                let used = view.used_idx();
                let pending = view.avail_idx().wrapping_sub(used);
                u32::from(pending.min(view.layout().size()))
            })
            .sum();
        Ok(SwitchReport {
            from: inner.path,
            to,
            method: None,
            phases: SwitchPhases::default(),
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
            .step(DeviceStep::ReadConfig)
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

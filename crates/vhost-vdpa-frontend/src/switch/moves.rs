// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The switch itself.

use std::time::Instant;

use vdpa_bus::{VdpaError, VqState, backend_feature};
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;

use super::start::Stumble;
use super::{Inner, Method, Path, PathSwitch, Phases, Policy, Report, SwitchError, SwitchStep};
use crate::error::{PathError, Step};
use crate::guest::{self, Drained, Guest, Halt};

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

    /// Stops the device on the guest's rings and resets it, for which the error is given apart: nothing is in flight
    /// all the same.
    pub(super) fn leave_fast(
        &self,
        inner: &mut Inner<M>,
        report: &mut Report,
    ) -> Result<(Drained, Result<(), PathError>), SwitchError> {
        self.vmm.unmap_doorbells();
        let quiesced = self.quiesce(&inner.guest, report);
        quiesced.map_err(|halt| self.not_quiesced(inner, halt))
    }

    /// Stops the slow path, with nothing in flight.
    pub(super) fn leave_slow(&self, inner: &mut Inner<M>) -> Result<Drained, SwitchError> {
        if !self.close_intakes(inner) {
            self.open_intakes(inner);
            return Err(SwitchError {
                step: SwitchStep::Quiesce,
                path: inner.path,
                source: PathError::Busy("requests in flight on the slow path don't end"),
                back: None,
            });
        }
        let Some(states) = self.stop_hosts(inner, Stop::Drain) else {
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
                Err(stumble) => self.fail(inner, step, why, stumble.why, stumble.states),
            });
        }
        Ok(states)
    }

    /// Stops the device on the guest's rings (see [`crate::guest`] for the methods) and resets it. Where the latter
    /// failed, nothing is in flight all the same.
    fn quiesce(
        &self,
        guest: &Guest,
        report: &mut Report,
    ) -> Result<(Drained, Result<(), PathError>), Halt> {
        let device = self.device.as_ref();
        let suspends = device.get_backend_features() & backend_feature::SUSPEND != 0;
        if !suspends {
            return self.pause_and_drain(guest, report);
        }
        let deadline = Instant::now() + self.options.quiesce;
        match guest::suspend(device, guest, deadline, &mut report.attempts) {
            Ok(states) => {
                report.method = Some(Method::Suspend);
                Ok((states, self.timed_reset(report)))
            }
            Err(halt) if halt.stuck => Err(halt),
            Err(halt) => {
                log::debug!("SUSPEND did not do: {}", halt.why);
                self.pause_and_drain(guest, report).map_err(|_| halt)
            }
        }
    }

    fn timed_reset(&self, report: &mut Report) -> Result<(), PathError> {
        let begun = Instant::now();
        let reset = guest::reset(self.device.as_ref());
        report.phases.reset = begun.elapsed();
        reset
    }

    /// Method B: the device is reset before the vCPUs go on.
    fn pause_and_drain(
        &self,
        guest: &Guest,
        report: &mut Report,
    ) -> Result<(Drained, Result<(), PathError>), Halt> {
        let device = self.device.as_ref();
        guest::bind_kicks(device, guest, false)?;
        guest::calm(guest, Instant::now() + self.options.calm)?;
        let paused = Instant::now();
        if !self.vmm.pause_vcpus() {
            return Err(
                PathError::Busy("it has no SUSPEND, and this VMM does not stop vCPUs").into(),
            );
        }
        let drained = guest::drain(device, guest, Instant::now() + self.options.quiesce);
        let drained = drained.map(|states| {
            report.method = Some(Method::PausedVcpus);
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
    pub(super) fn report(&self, inner: &Inner<M>, to: Path) -> Result<Report, PathError> {
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

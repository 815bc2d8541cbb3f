// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stopping who serves the guest, at an instant at which nothing is in flight.

use std::time::{Duration, Instant};

use vdpa_bus::{VqState, backend_feature};
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;
use virtio_blk_core::spec::status;

use super::{Inner, Method, Path, PathSwitch, Report, SwitchError, SwitchStep};
use crate::error::{PathError, Step};
use crate::guest::{self, Drained, Guest, Halt};

/// How long to wait between two looks at queues that drain.
const LOOK: Duration = Duration::from_micros(20);

impl<M: DeviceMemory + Clone> PathSwitch<M> {
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

    /// The device was not stopped: it goes on as it was, if it can.
    fn not_quiesced(&self, inner: &mut Inner<M>, halt: Halt) -> SwitchError {
        if halt.stuck {
            return self.lost(inner, halt.why, None);
        }
        match guest::go_on(self.device.as_ref(), &inner.guest) {
            Ok(()) => {
                self.vmm.map_doorbells();
                SwitchError {
                    step: SwitchStep::Quiesce,
                    path: inner.path,
                    source: halt.why,
                    back: None,
                }
            }
            Err(back) => {
                inner.stalled = true;
                self.lost(inner, halt.why, Some(back))
            }
        }
    }

    /// The device has the guest's rings and does not work on them, with requests in flight: it must not be reset. If it
    /// can't be brought to go on either, only the guest can help.
    fn lost(
        &self,
        inner: &mut Inner<M>,
        source: PathError,
        back: Option<PathError>,
    ) -> SwitchError {
        inner.path = Path::Failed;
        inner.held = None;
        inner.stalled |= self.can_resume();
        if !inner.stalled {
            ask_for_reset(&mut inner.guest);
        }
        SwitchError {
            step: SwitchStep::Quiesce,
            path: inner.path,
            source,
            back,
        }
    }

    /// The guest broke a ring: nobody knows where it stands, and only the guest can help.
    fn broken(&self, inner: &mut Inner<M>) -> SwitchError {
        self.stop_hosts(inner, Stop::HandOver);
        inner.path = Path::Failed;
        inner.held = None;
        ask_for_reset(&mut inner.guest);
        SwitchError {
            step: SwitchStep::Quiesce,
            path: inner.path,
            source: PathError::Busy("the guest broke a ring"),
            back: None,
        }
    }

    fn can_resume(&self) -> bool {
        self.device.get_backend_features() & backend_feature::RESUME != 0
    }

    /// Has a device that has the guest's rings work on them again.
    pub(super) fn unstall(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let device = self.device.as_ref();
        if self.can_resume() {
            // Of no effect on a device that is not suspended.
            device.resume().step("RESUME")?;
        }
        guest::go_on(device, &inner.guest)?;
        inner.stalled = false;
        inner.path = Path::Fast;
        self.vmm.map_doorbells();
        Ok(())
    }

    /// Has the slow path take nothing new, and waits for what it has. `false`: that did not end in time.
    pub(super) fn close_intakes(&self, inner: &mut Inner<M>) -> bool {
        let Inner { guest, host, .. } = inner;
        for (index, _) in guest.enabled() {
            host.set_intake(index, false);
        }
        let deadline = Instant::now() + self.options.drain;
        for (index, _) in guest.enabled() {
            while host.in_flight(index) != 0 {
                if Instant::now() >= deadline {
                    return false;
                }
                std::thread::sleep(LOOK);
            }
        }
        true
    }

    fn open_intakes(&self, inner: &mut Inner<M>) {
        let Inner { guest, host, .. } = inner;
        for (index, _) in guest.enabled() {
            host.set_intake(index, true);
        }
    }

    /// Stops all queues that the host serves. `None`: a ring is broken, or a queue was not drained.
    pub(super) fn stop_hosts(&self, inner: &mut Inner<M>, mode: Stop) -> Option<Drained> {
        let Inner { guest, host, .. } = inner;
        let mut sound = true;
        let mut states = Vec::new();
        for (index, _) in guest.enabled() {
            host.begin_stop(index, mode);
        }
        for (index, _) in guest.enabled() {
            let Some(stopped) = host.stop(index, mode) else {
                continue;
            };
            sound &= stopped.error.is_none() && stopped.in_flight.is_empty();
            let avail_index = stopped.state.next_avail;
            states.push((index, VqState::Split { avail_index }));
        }
        sound.then_some(states)
    }
}

/// Tells the guest that only its reset helps.
fn ask_for_reset(guest: &mut Guest) {
    guest.status |= status::DEVICE_NEEDS_RESET;
    if let Some(config) = &guest.config {
        config.notify();
    }
}

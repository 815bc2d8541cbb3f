// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What becomes of a guest when a step of a switch fails.

use std::sync::Arc;

use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;
use virtio_blk_core::spec::status;

use vdpa_bus::backend_feature;

use super::failed_disk::FailedDisk;
use super::setup::StepError;
use super::transition::{prepare, refuse};
use super::{Inner, OnFailure, Path, PathSwitch, SwitchError, SwitchStep};
use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, Guest, QueuePositions, QuiesceError};

impl<M: DeviceMemory + Clone> PathSwitch<M> {
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
            inner.held = self.stop_queues(inner, Stop::Drain);
        }
        let Some(states) = inner.held.take() else {
            return Err(refuse(
                inner,
                "where the queues stand is not known: the guest must reset its device",
            ));
        };
        let step = SwitchStep::Start;
        let first = if self.interceptions.reasons().is_empty() {
            self.start_fast(inner, states)
        } else {
            self.start_slow_anew(inner, states)
        };
        let error = match first {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match self.start_slow_anew(inner, error.states) {
            Ok(_) => Ok(()),
            Err(again) => Err(self.fail(inner, step, error.why, again.why, again.states)),
        }
    }

    /// The device was not stopped: it goes on as it was, if it can.
    pub(super) fn not_quiesced(&self, inner: &mut Inner<M>, error: QuiesceError) -> SwitchError {
        if error.stuck {
            return self.lost(inner, error.why, None);
        }
        match guest::rebind_and_kick(self.device.as_ref(), &inner.guest) {
            Ok(()) => {
                self.vmm.map_doorbells();
                SwitchError {
                    step: SwitchStep::Quiesce,
                    path: inner.path,
                    source: error.why,
                    back: None,
                }
            }
            Err(back) => {
                inner.stalled = true;
                self.lost(inner, error.why, Some(back))
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
    pub(super) fn broken(&self, inner: &mut Inner<M>) -> SwitchError {
        self.stop_queues(inner, Stop::HandOver);
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
    fn unstall(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let device = self.device.as_ref();
        if self.can_resume() {
            // Of no effect on a device that is not suspended.
            device.resume().step(DeviceStep::Resume)?;
        }
        guest::rebind_and_kick(device, &inner.guest)?;
        inner.stalled = false;
        inner.path = Path::Fast;
        self.vmm.map_doorbells();
        Ok(())
    }

    /// Sets the path up again that was left.
    pub(super) fn go_back(
        &self,
        inner: &mut Inner<M>,
        error: StepError,
        path: Path,
    ) -> SwitchError {
        let StepError { step, why, states } = error;
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
        states: QueuePositions,
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

    fn serve_dead(&self, inner: &mut Inner<M>, states: QueuePositions) -> Result<(), PathError> {
        let device = self.model(Arc::new(FailedDisk(self.caps)), String::new())?;
        self.serve(inner, &device, states).map_err(|error| {
            inner.held = Some(error.states);
            error.why
        })
    }
}

/// Tells the guest that only its reset helps.
fn ask_for_reset(guest: &mut Guest) {
    guest.status |= status::DEVICE_NEEDS_RESET;
    if let Some(config) = &guest.config {
        config.notify();
    }
}

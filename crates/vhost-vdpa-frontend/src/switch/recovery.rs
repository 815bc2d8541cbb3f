// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What becomes of a guest when a step of a switch fails.

use std::sync::Arc;

use vdpa_bus::backend_feature;
use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::Stop;

use super::failed_disk::FailedDisk;
use super::setup::{StepError, new_model};
use super::state::{Failure, State};
use super::transition::refuse;
use super::{DataPath, Inner, OnFailure, PathSwitch, SwitchError, SwitchStep};
use crate::error::{DeviceStep, PathError, Step};
use crate::guest::{self, QueuePositions, QuiesceError};

/// Why only the guest can help.
const UNKNOWN: &str = "where the queues stand is not known: the guest must reset its device";

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Tries again to serve a guest that nobody serves.
    pub(super) fn try_again(&self, inner: &mut Inner<M>) -> Result<(), SwitchError> {
        let positions = match &mut inner.state {
            State::Failed(Failure::Held(positions)) => positions.clone(),
            State::Failed(Failure::Answering) => self.stop_answering(inner)?,
            State::Failed(Failure::Stalled) => {
                let working = self.unstall(inner);
                return working.map_err(|source| inner.error(SwitchStep::Prepare, source));
            }
            State::Failed(Failure::NeedsReset) => return Err(refuse(inner, UNKNOWN)),
            State::Idle | State::Fast | State::Slow | State::Paused { .. } => return Ok(()),
        };
        let step = SwitchStep::Start;
        let first = if self.interceptions.any() {
            self.start_slow_after_reset(inner, positions)
        } else {
            self.start_fast(inner, positions)
        };
        let Err(error) = first else {
            return Ok(());
        };
        match self.start_slow_after_reset(inner, error.positions) {
            Ok(_) => Ok(()),
            Err(again) => Err(self.fail(inner, step, error.source, again)),
        }
    }

    /// Stops completing requests with errors, and returns where the queues stand then.
    fn stop_answering(&self, inner: &mut Inner<M>) -> Result<QueuePositions, SwitchError> {
        self.close_intakes(inner);
        match self.stop_queues(inner, Stop::Drain) {
            Some(positions) => {
                inner.state = State::Failed(Failure::Held(positions.clone()));
                Ok(positions)
            }
            None => {
                self.need_guest_reset(inner);
                Err(refuse(inner, UNKNOWN))
            }
        }
    }

    /// The device was not stopped: it continues as it was, if it can.
    pub(super) fn not_quiesced(&self, inner: &mut Inner<M>, error: QuiesceError) -> SwitchError {
        let (source, back) = match error {
            QuiesceError::Stuck(source) if self.can_resume() => (source, None),
            QuiesceError::Stuck(source) => {
                self.need_guest_reset(inner);
                return inner.error(SwitchStep::Quiesce, source);
            }
            QuiesceError::Running(source) => {
                match guest::rebind_and_kick(self.device().as_ref(), &inner.guest) {
                    Ok(()) => {
                        self.vmm.map_doorbells();
                        return inner.error(SwitchStep::Quiesce, source);
                    }
                    Err(back) => (source, Some(back)),
                }
            }
        };
        // The device has the guest's rings and does not work on them, with requests in flight.
        inner.state = State::Failed(Failure::Stalled);
        SwitchError {
            back,
            ..inner.error(SwitchStep::Quiesce, source)
        }
    }

    /// Nobody can tell where the rings stand: tells the guest that only its reset helps.
    pub(super) fn need_guest_reset(&self, inner: &mut Inner<M>) {
        inner.state = State::Failed(Failure::NeedsReset);
        inner.guest.status.need_reset();
    }

    fn can_resume(&self) -> bool {
        self.device().get_backend_features() & backend_feature::RESUME != 0
    }

    /// Makes a device that has the guest's rings work on them again.
    fn unstall(&self, inner: &mut Inner<M>) -> Result<(), PathError> {
        let device = self.device().as_ref();
        if self.can_resume() {
            // Of no effect on a device that is not suspended.
            device.resume().step(DeviceStep::Resume)?;
        }
        guest::rebind_and_kick(device, &inner.guest)?;
        inner.state = State::Fast;
        self.vmm.map_doorbells();
        Ok(())
    }

    /// Sets `path` up, which was left, after the other one failed with `error`.
    pub(super) fn go_back(
        &self,
        inner: &mut Inner<M>,
        error: StepError,
        path: DataPath,
    ) -> SwitchError {
        let StepError {
            step,
            source,
            positions,
        } = error;
        let back = match path {
            DataPath::Fast => self.start_fast(inner, positions),
            DataPath::Slow => self.start_slow_after_reset(inner, positions),
        };
        match back {
            Ok(_) => inner.error(step, source),
            Err(back) => self.fail(inner, step, source, back),
        }
    }

    /// Neither path works: `step` failed with `source`, and then the way back.
    pub(super) fn fail(
        &self,
        inner: &mut Inner<M>,
        step: SwitchStep,
        source: PathError,
        back: StepError,
    ) -> SwitchError {
        log::error!(
            "neither path could be set up: {source}; then {}",
            back.source
        );
        let failure = match self.options.on_failure {
            OnFailure::Hold => Failure::Held(back.positions),
            OnFailure::Fail => self.answer_with_errors(inner, back.positions),
        };
        inner.state = State::Failed(failure);
        SwitchError {
            back: Some(back.source),
            ..inner.error(step, source)
        }
    }

    /// Makes the executor fail the guest's requests, if it can.
    pub(super) fn answer_with_errors(
        &self,
        inner: &mut Inner<M>,
        positions: QueuePositions,
    ) -> Failure {
        let disk = Arc::new(FailedDisk(self.caps));
        let served = match new_model(&self.frontend, disk, self.queues, String::new()) {
            Ok(model) => self.serve_with(inner, &model, positions),
            Err(source) => Err(StepError {
                step: SwitchStep::TakeOver,
                source,
                positions,
            }),
        };
        match served {
            Ok(()) => Failure::Answering,
            Err(error) => {
                log::error!("requests can't even be failed: {}", error.source);
                Failure::Held(error.positions)
            }
        }
    }
}

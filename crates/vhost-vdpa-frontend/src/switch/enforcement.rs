// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interception that a guest can't evade.
//!
//! A guest can make its device one that can't be stopped in order: a ring that lies nowhere, an index too far ahead,
//! requests that never end. It must not stay on the fast path by that.

use virtio_blk_core::memory::DeviceMemory;

use super::setup::StepError;
use super::state::{Failure, State};
use super::{DataPath, Inner, OnFailure, PathSwitch, SwitchError, SwitchPolicy, SwitchReport};
use crate::guest;

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Whether the guest must not be on the fast path, whatever fails.
    pub(super) fn must_intercept(&self) -> bool {
        self.options.enforce
            && self.options.policy == SwitchPolicy::Auto
            && self.interceptions.any()
    }

    /// Brings a guest that runs to the slow path. Where that must be and can't be, no request goes by unseen either: the
    /// device is stopped.
    ///
    /// # Errors
    /// It could not be brought there, and interception is not enforced.
    pub(super) fn intercept_now(
        &self,
        inner: &mut Inner<M>,
    ) -> Result<Option<SwitchReport>, SwitchError> {
        let mut moved = self.move_to(inner, DataPath::Slow);
        if !self.must_intercept() {
            return moved;
        }
        if moved.is_err() && matches!(inner.state, State::Fast) {
            // It may have been a moment's failure.
            moved = self.move_to(inner, DataPath::Slow);
        }
        let error = match moved {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        if matches!(inner.state, State::Fast | State::Failed(Failure::Stalled)) {
            self.stop_device(inner, &error);
        }
        Ok(None)
    }

    /// Ends whatever the device does with the guest's rings. Only the guest's reset helps then.
    fn stop_device(&self, inner: &mut Inner<M>, why: &SwitchError) {
        log::error!("the device is stopped, as the guest's requests can't be intercepted: {why}");
        self.vmm.unmap_doorbells();
        if guest::reset(self.device().as_ref()).is_err() {
            // It promises the same, for good.
            self.device().free();
        }
        self.need_guest_reset(inner);
    }

    /// The slow path could not be set up, and the fast path must not be: leaves the rings as they are.
    pub(super) fn hold(&self, inner: &mut Inner<M>, error: StepError) -> SwitchError {
        let failure = match self.options.on_failure {
            OnFailure::Hold => Failure::Held(error.positions),
            OnFailure::Fail => self.answer_with_errors(inner, error.positions),
        };
        inner.state = State::Failed(failure);
        inner.error(error.step, error.source)
    }
}

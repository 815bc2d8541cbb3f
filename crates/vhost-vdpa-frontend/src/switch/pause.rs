// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pausing a guest's device, for snapshots and migration, and its saved state.

use std::sync::Arc;

use vdpa_bus::{Callback, VdpaDevice};
use virtio_blk_core::memory::DeviceMemory;
use vmm_sys_util::eventfd::EventFd;

use super::state::State;
use super::transition::refuse;
use super::{DataPath, PathSwitch, SwitchError, SwitchPolicy};
use crate::error::PathError;
use crate::guest::SavedGuest;
use crate::lock;

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Stops serving the guest at an instant at which nothing is in flight, and resets the device. Requests that the guest
    /// makes available from then on wait. Has no effect while the guest's driver does not run.
    ///
    /// For a device that can't be suspended the vCPUs are paused through the [`super::Vmm`], as for a move; a VMM that has
    /// paused them already returns `true` from [`super::Vmm::pause_vcpus`].
    ///
    /// # Errors
    /// Requests did not complete in time, or the guest is not served ([`Failed`](super::PathState::Failed)). [`SwitchError::path`] says how it is
    /// now.
    pub fn pause(&self) -> Result<(), SwitchError> {
        let inner = &mut *lock(&self.inner);
        let (positions, next) = match inner.state {
            State::Idle | State::Paused { .. } => return Ok(()),
            State::Failed(_) => return Err(refuse(inner, "nobody serves the guest: retry first")),
            State::Slow => (self.leave_slow(inner)?, DataPath::Slow),
            State::Fast => {
                let mut measured = self.measure(inner)?;
                let (positions, reset) = self.leave_fast(inner, &mut measured)?;
                if let Err(error) = reset {
                    // It is reset again before it is used.
                    log::debug!("the paused device was not reset: {error}");
                }
                (positions, DataPath::Fast)
            }
        };
        inner.state = State::Paused { positions, next };
        Ok(())
    }

    /// Serves the guest again after [`PathSwitch::pause`] or [`PathSwitch::restore`]: on the path that it was on, or that
    /// was chosen meanwhile. Has no effect if it is not paused.
    ///
    /// # Errors
    /// That path could not be set up; [`SwitchError::path`] says whether the other one could.
    pub fn resume(&self) -> Result<(), SwitchError> {
        let inner = &mut *lock(&self.inner);
        let State::Paused { positions, next } = &mut inner.state else {
            return Ok(());
        };
        let path = match self.options.policy {
            SwitchPolicy::Auto
                if self.interceptions.any() || self.frontend.starts_at_zero_only() =>
            {
                DataPath::Slow
            }
            SwitchPolicy::Auto => DataPath::Fast,
            SwitchPolicy::Manual => *next,
        };
        let positions = std::mem::take(positions);
        let started = match path {
            DataPath::Fast => self.start_fast(inner, positions),
            DataPath::Slow => self.start_slow_after_reset(inner, positions),
        };
        match started {
            Ok(_) => Ok(()),
            Err(error) if self.must_intercept() => Err(self.hold(inner, error)),
            Err(error) => Err(self.go_back(inner, error, path.other())),
        }
    }

    /// Returns the state of a guest that is paused, or whose driver does not run.
    ///
    /// # Errors
    /// The guest is served, or the position of its queues is not known.
    pub fn save(&self) -> Result<SavedGuest, PathError> {
        let inner = lock(&self.inner);
        match &inner.state {
            State::Paused { positions, .. } => Ok(inner.guest.save(positions)),
            State::Idle => Ok(inner.guest.save(&[])),
            State::Fast | State::Slow | State::Failed(_) => Err(PathError::Busy("pause it first")),
        }
    }

    /// Restores what [`PathSwitch::save`] returned, possibly of another device. `events` returns the kick eventfd and the
    /// callback of a queue, `None` if there is no such queue. If the guest's driver ran, the guest is paused afterwards and
    /// is served after [`PathSwitch::resume`]: on the fast path, unless another is wanted. `saved` may come from a hostile
    /// source.
    ///
    /// # Errors
    /// It does not fit this device, or a guest's driver runs already; nothing was changed.
    pub fn restore(
        &self,
        saved: &SavedGuest,
        events: impl FnMut(u16) -> Option<(Arc<EventFd>, Callback)>,
    ) -> Result<(), PathError> {
        let offered = self.offered();
        let inner = &mut *lock(&self.inner);
        if !matches!(inner.state, State::Idle) {
            return Err(PathError::Busy("the driver runs already"));
        }
        let device: &dyn VdpaDevice = self.device().as_ref();
        let positions = inner.guest.restore(device, saved, offered, events)?;
        if inner.guest.runs() {
            inner.state = State::Paused {
                positions,
                next: DataPath::Fast,
            };
        }
        Ok(())
    }
}

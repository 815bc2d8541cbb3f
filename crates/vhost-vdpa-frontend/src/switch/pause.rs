// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest whose device stands still: pauses of a VM, and its snapshots.

use std::sync::Arc;
use std::time::Instant;

use vdpa_bus::Callback;
use virtio_blk_core::memory::DeviceMemory;
use vmm_sys_util::eventfd::EventFd;

use super::moves::{Stumble, prepare, refuse};
use super::{Path, PathSwitch, Policy, SwitchError, SwitchStep};
use crate::error::PathError;
use crate::guest::{self, Guest, SavedFast};
use crate::lock;

impl<M: DeviceMemory + Clone> PathSwitch<M> {
    /// Stops the device at an instant at which nothing is in flight, on whatever path, and resets it behind the guest's
    /// back. Kicks collect in their eventfds. For a VMM that has stopped its vCPUs, or does in [`super::Vmm`]. A guest
    /// whose driver does not run has nothing to stop.
    ///
    /// # Errors
    /// It stays where it was ([`SwitchError::path`]), or nobody serves it any more.
    pub fn pause(&self) -> Result<(), SwitchError> {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        let (begun, from) = (Instant::now(), inner.path);
        let mut report = match from {
            Path::Idle | Path::Paused => return Ok(()),
            Path::Failed => return Err(refuse(inner, "nobody serves it: retry first")),
            Path::Fast | Path::Slow => self.report(inner, Path::Paused),
        }
        .map_err(|why| prepare(inner, why))?;
        let states = if from == Path::Fast {
            self.leave_fast(inner, &mut report, begun)?
        } else {
            let states = self.leave_slow(inner, &mut report, begun)?;
            // The guest may aim at whatever is mapped when the device goes on.
            let reset = guest::reset(self.device.as_ref());
            if let Err(why) = reset.and_then(|()| self.map.set(inner.guest.memory.clone())) {
                let step = SwitchStep::Reset;
                return Err(self.go_back(inner, Stumble { step, why, states }, from));
            }
            states
        };
        inner.held = Some(states);
        inner.resume_to = from;
        inner.path = Path::Paused;
        Ok(())
    }

    /// Goes on after [`PathSwitch::pause`] or [`PathSwitch::restore`]: where the guest was, or where it was sent
    /// meanwhile.
    ///
    /// # Errors
    /// It is on the other path, or nobody serves it.
    pub fn resume(&self) -> Result<(), SwitchError> {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        if inner.path != Path::Paused {
            return Ok(());
        }
        let states = inner.held.take().unwrap_or_default();
        let (done, other) = match inner.resume_to {
            Path::Slow => (self.start_slow_anew(inner, states), Path::Fast),
            _ => (self.start_fast(inner, states), Path::Slow),
        };
        done.map(drop)
            .map_err(|stumble| self.go_back(inner, stumble, other))
    }

    /// The state of a guest that is paused, or whose driver does not run.
    ///
    /// # Errors
    /// It is neither.
    pub fn save(&self) -> Result<SavedFast, PathError> {
        let inner = lock(&self.inner);
        match (inner.path, &inner.held) {
            (Path::Paused, Some(states)) => Ok(inner.guest.save(states)),
            (Path::Idle, _) => Ok(inner.guest.save(&[])),
            _ => Err(PathError::Busy("pause it first")),
        }
    }

    /// Takes over what [`PathSwitch::save`] gave, on another device perhaps; its memory must be here already. `events`
    /// answers the kick eventfd and the callback of a queue, if there is such a queue. It is paused then. The data may be hostile.
    ///
    /// # Errors
    /// It does not fit this device, or a guest is here already; nothing was changed.
    pub fn restore(
        &self,
        saved: &SavedFast,
        events: impl FnMut(u16) -> Option<(Arc<EventFd>, Callback)>,
    ) -> Result<(), PathError> {
        let mut inner = lock(&self.inner);
        if inner.path != Path::Idle {
            return Err(PathError::Busy("a guest is here already"));
        }
        let max = self.device.get_vq_num_max();
        let (mut guest, states) = Guest::restored(saved, self.offered(), self.queues, max, events)?;
        guest.memory = inner.guest.memory.clone();
        guest.config = inner.guest.config.clone();
        if guest.runs() {
            let slow = self.options.policy == Policy::Auto && !self.needs.reasons().is_empty();
            inner.resume_to = if slow { Path::Slow } else { Path::Fast };
            inner.held = Some(states);
            inner.path = Path::Paused;
        }
        inner.guest = guest;
        Ok(())
    }
}

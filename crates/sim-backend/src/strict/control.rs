// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control side of a strict device: what was set, and starting and stopping of queues.

use std::sync::Arc;

use vdpa_bus::{VdpaError, VqAddress};
use virtio_blk_core::device::StartError;
use virtio_blk_core::disk::Wait;
use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::ring::QueueState;
use virtio_blk_core::runner::{QueueRunner, QueueSetup, Stop};

use super::Strict;
use super::queue::{Engine, Queue, Running};
use crate::address_space::{AddressSpaces, MissTable};
use crate::in_use::InUse;
use crate::lock;

/// What was set of the device.
pub(super) struct Control {
    pub(super) features: u64,
    pub(super) suspended: bool,
    /// Freed.
    pub(super) gone: bool,
    pub(super) mm: Mm,
    disk: InUse,
    vqs: Vec<Vq>,
    /// By group.
    asids: Vec<u32>,
}

/// The process's address space.
pub(super) enum Mm {
    /// None was ever given: maps keep their memory by themselves.
    Any,
    /// One was given.
    Bound { _mm: Arc<dyn KeepAlive> },
    /// It was taken away: nothing can be reached until another is given.
    Unbound,
}

/// What was set of a queue.
#[derive(Clone, Copy, Default)]
pub(super) struct Vq {
    pub(super) address: VqAddress,
    pub(super) num: u16,
    /// Address and size at the moment when it became ready.
    pub(super) active: Option<(VqAddress, u16)>,
    /// The index at which it continues.
    pub(super) avail: u16,
}

impl Vq {
    fn new(num: u16) -> Self {
        Self {
            num,
            ..Self::default()
        }
    }
}

impl Control {
    pub(super) fn new(disk: InUse, queues: u16, queue_size: u16, groups: u32) -> Self {
        Self {
            features: 0,
            suspended: false,
            gone: false,
            mm: Mm::Any,
            disk,
            vqs: vec![Vq::new(queue_size); usize::from(queues)],
            asids: vec![0; groups as usize],
        }
    }

    pub(super) fn vq(&mut self, vq: u16) -> Result<&mut Vq, VdpaError> {
        let queues = self.vqs.len();
        self.vqs
            .get_mut(usize::from(vq))
            .ok_or_else(|| VdpaError::Invalid(format!("queue {vq} of a device with {queues}")))
    }

    pub(super) fn asid(&self, group: u32) -> Result<u32, VdpaError> {
        self.asids.get(group as usize).copied().ok_or_else(|| {
            VdpaError::Invalid(format!(
                "group {group} of a device with {}",
                self.asids.len()
            ))
        })
    }

    pub(super) fn set_asid(&mut self, group: u32, asid: u32) {
        if let Some(now) = self.asids.get_mut(group as usize) {
            *now = asid;
        }
    }
}

impl Strict {
    pub(super) fn group_of(&self, vq: u16) -> u32 {
        u32::from(vq) % self.groups
    }

    /// Starts every queue that should run and does not.
    pub(super) fn start_all(&self, control: &mut Control) {
        for vq in 0..self.device.options().queues {
            self.start(control, vq);
        }
    }

    /// Starts queue `vq` if it should run and does not. One whose ring can't be used stays as it is and is
    /// tried again whenever the map changes.
    pub(super) fn start(&self, control: &mut Control, vq: u16) {
        let index = usize::from(vq);
        let (Some(queue), Some(&state)) = (self.queues.get(index), control.vqs.get(index)) else {
            return;
        };
        let Some((address, size)) = state.active else {
            return;
        };
        if control.suspended
            || control.gone
            || matches!(control.mm, Mm::Unbound)
            || !lock(&self.status).is_live()
        {
            return;
        }
        let mut slot = queue.control();
        if slot.is_some() {
            return;
        }
        let ring = QueueState {
            max_size: self.device.options().queue_size,
            next_avail: state.avail,
            next_used: state.avail,
            size,
            ready: true,
            desc_table: address.desc,
            avail_ring: address.driver,
            used_ring: address.device,
            ..QueueState::default()
        };
        let started = match control.disk.take() {
            Ok(()) => self.engine(control, vq, &ring),
            Err(error) => Err(StartError::Disk(error)),
        };
        let error = match started {
            Ok(running) => {
                *slot = Some(running);
                return self.notifier.signal(vq);
            }
            Err(error) => error,
        };
        drop(slot);
        // Nothing was written that could be lost.
        let _ = self.release(control);
        // All else is the driver's fault: nothing happens until it is right.
        if matches!(error, StartError::Disk(_)) {
            self.need_reset();
        }
    }

    /// Releases the disk if no queue runs.
    ///
    /// # Errors
    /// What the disk kept in memory may be lost.
    pub(super) fn release(&self, control: &mut Control) -> Result<(), VdpaError> {
        let runs = |queue: &Queue| queue.control().is_some();
        if self.queues.iter().any(runs) {
            return Ok(());
        }
        control.disk.leave()
    }

    /// Resumes the queues of a suspended device.
    pub(super) fn go_on(&self, control: &mut Control) {
        control.suspended = false;
        for (vq, queue) in (0..).zip(&self.queues) {
            if let Some(running) = &mut *queue.control() {
                running.paused = false;
                self.notifier.signal(vq);
            }
        }
        // Each looks at its ring at once, whatever was kicked meanwhile.
        self.start_all(control);
        self.config.hold(false);
    }

    fn engine(&self, control: &Control, vq: u16, ring: &QueueState) -> Result<Running, StartError> {
        let outside = StartError::Index {
            index: vq,
            queues: self.device.options().queues,
        };
        let (Some(queue), Ok(table)) = (
            self.queues.get(usize::from(vq)),
            control
                .asid(self.group_of(vq))
                .and_then(|asid| self.spaces.get(asid)),
        ) else {
            return Err(outside);
        };
        let callback = queue.callback.clone();
        let notify = move || callback.notify();
        if self.faults.iotlb.is_loaded() {
            let table = Arc::new(MissTable::new(table, self.faults.clone(), false));
            let setup = QueueSetup::new(table.clone(), notify);
            let runner = self.device.start_queue(vq, setup, ring)?;
            table.arm();
            let watch = self.watch(vq, &runner)?;
            return Ok(Running::new(Engine::Missing(runner), watch));
        }
        let setup = QueueSetup::new(table, notify);
        let runner = self.device.start_queue(vq, setup, ring)?;
        let watch = self.watch(vq, &runner)?;
        Ok(Running::new(Engine::Direct(runner), watch))
    }

    fn watch<M: virtio_blk_core::memory::DeviceMemory>(
        &self,
        vq: u16,
        runner: &QueueRunner<M>,
    ) -> Result<Option<crate::notifier::Watch>, StartError> {
        match runner.wait() {
            Wait::Fd(fd) if self.threaded => {
                let watch = self.notifier.watch(vq, fd);
                watch.map(Some).map_err(|e| StartError::Disk(e.into()))
            }
            _ => Ok(None),
        }
    }

    /// Stops queue `vq` once its requests in flight have ended, if it runs.
    pub(super) fn drain(&self, control: &mut Control, vq: u16) {
        if self.stop(control, vq, Stop::Drain) {
            self.need_reset();
        }
    }

    /// Stops queue `vq` if it runs, and records where it stands. Returns whether it was broken.
    fn stop(&self, control: &mut Control, vq: u16, mode: Stop) -> bool {
        let index = usize::from(vq);
        let Some(queue) = self.queues.get(index) else {
            return false;
        };
        // The lock stays until it has stopped: nobody serves it, and nobody starts it.
        let mut slot = queue.control();
        let Some(running) = slot.take() else {
            return false;
        };
        let stopped = running.stop(mode);
        if let Some(state) = control.vqs.get_mut(index) {
            state.avail = stopped.state.next_avail;
        }
        stopped.error.is_some()
    }

    /// Changes something while the queues for which `which` holds do nothing.
    pub(super) fn while_stopped<R>(
        &self,
        control: &mut Control,
        which: impl Fn(&Control, u16) -> bool,
        change: impl FnOnce(&mut Control) -> R,
    ) -> R {
        for vq in 0..self.device.options().queues {
            if which(control, vq) {
                self.drain(control, vq);
            }
        }
        let answer = change(control);
        self.start_all(control);
        // If no queue could start. What is lost is said when the device is suspended.
        let _ = self.release(control);
        answer
    }

    /// Changes the map of an address space. Nothing uses the old one any more when it returns.
    pub(super) fn change_map<R>(&self, asid: u32, change: impl FnOnce(&AddressSpaces) -> R) -> R {
        self.while_stopped(
            &mut lock(&self.control),
            |control, vq| {
                control
                    .asid(self.group_of(vq))
                    .is_ok_and(|used| used == asid)
            },
            |_| change(&self.spaces),
        )
    }

    /// Back to the state after the making, apart from the maps.
    pub(super) fn reset_with(&self, control: &mut Control) {
        for vq in 0..self.device.options().queues {
            self.stop(control, vq, Stop::HandOver);
            self.notifier.clear(vq);
            if let Some(queue) = self.queues.get(usize::from(vq)) {
                queue.callback.set(None);
            }
        }
        control.disk.reset();
        control.vqs.fill(Vq::new(self.device.options().queue_size));
        control.asids.fill(0);
        control.features = 0;
        control.suspended = false;
        *lock(&self.status) = Default::default();
        self.config.clear();
        self.device.reset();
    }
}

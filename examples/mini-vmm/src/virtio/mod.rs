// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A block device behind a virtio transport: what PCI and MMIO have in common.

mod backend;
pub mod mmio;
pub mod pci;
mod saved;
pub mod vdpa;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vdpa_bus::VqAddress;
use vhost_vdpa_frontend::GuestQueue;
use virtio_blk_core::device::{StatusChange, StatusRegister};
use virtio_blk_core::runner::{QueueSetup, QueueThread, Stop, ThreadOptions};
use virtio_blk_core::spec::status;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::backend::Backend;
pub use self::saved::SavedBlock;
use self::vdpa::{Calls, VdpaDisk};
use crate::error::{Context, Error, Result};
use crate::memory::Memory;

/// How a transport interrupts the guest. Called from queue threads; must not block.
pub trait Interrupt: Send + Sync {
    /// Buffers of a queue were used.
    fn queue(&self, index: u16);
    /// The configuration or the status changed.
    fn config(&self);
}

/// A queue as the driver set it up.
pub struct Queue {
    pub state: QueueState,
    /// Written when the driver kicks, by KVM.
    kick: Arc<EventFd>,
    thread: Option<QueueThread<Memory>>,
}

/// A device with its queues: the registers of a transport are views of this.
pub struct Block {
    pub backend: Backend,
    /// Interrupts of a vDPA device.
    calls: Option<Calls>,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    status: StatusRegister,
    /// As the driver wrote them; they count from FEATURES_OK on.
    pub driver_features: u64,
    queues: Vec<Queue>,
    /// Set by a queue that broke, on its thread.
    broken: Arc<AtomicBool>,
    paused: bool,
}

impl Block {
    pub fn new(backend: Backend, memory: Memory, interrupt: Arc<dyn Interrupt>) -> Result<Self> {
        let calls = match &backend {
            Backend::Own(device) => {
                let listener = interrupt.clone();
                device.listen(Box::new(move || listener.config()));
                None
            }
            Backend::Vdpa(disk) => {
                let calls = Calls::new(backend.queues(), interrupt.clone())?;
                disk.switch
                    .set_config_call(calls.callback(backend.queues()));
                Some(calls)
            }
        };
        let max_size = backend.queue_size();
        let queues = (0..backend.queues()).map(|_| {
            let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("no eventfd")?;
            Ok(Queue {
                state: reset_state(max_size),
                kick: Arc::new(kick),
                thread: None,
            })
        });
        Ok(Self {
            queues: queues.collect::<Result<_>>()?,
            backend,
            calls,
            memory,
            interrupt,
            status: StatusRegister::default(),
            driver_features: 0,
            broken: Arc::default(),
            paused: false,
        })
    }

    /// The status register as the driver reads it.
    pub fn status(&mut self) -> u8 {
        if self.broken.load(Ordering::Acquire) {
            self.status.need_reset();
        }
        match &self.backend {
            Backend::Own(_) => self.status.get(),
            Backend::Vdpa(disk) => {
                disk.switch.status() | self.status.get() & status::DEVICE_NEEDS_RESET
            }
        }
    }

    // ANCHOR: status
    /// The driver writes the status register.
    pub fn set_status(&mut self, value: u8) {
        let change = match &self.backend {
            Backend::Own(device) => self.status.write(value, self.driver_features, device),
            Backend::Vdpa(_) => return self.set_vdpa_status(value),
        };
        match change {
            StatusChange::Reset => self.reset(),
            StatusChange::Start => self.start_all(),
            StatusChange::None | StatusChange::Refused => {}
        }
    }
    // ANCHOR_END: status

    // ANCHOR: start
    /// Starts a queue if it and the device are ready for it.
    fn start(&mut self, index: u16) {
        let (Backend::Own(device), Some(queue)) =
            (&self.backend, self.queues.get_mut(usize::from(index)))
        else {
            return;
        };
        let ready = queue.state.ready && self.status.is_live() && !self.paused;
        if !ready || queue.thread.is_some() {
            return;
        }
        let interrupt = self.interrupt.clone();
        let setup = QueueSetup::new(self.memory.clone(), move || interrupt.queue(index));
        let broken = on_broken(index, self.broken.clone(), self.interrupt.clone());
        let started = device
            .start_queue(index, setup, &queue.state)
            .map_err(|error| error.to_string())
            .and_then(|runner| {
                let options = ThreadOptions {
                    name: format!("queue{index}"),
                    poll: Duration::ZERO,
                    on_fatal: Box::new({
                        let broken = broken.clone();
                        move |error| broken(&error.to_string())
                    }),
                };
                let kick = queue.kick.try_clone();
                kick.and_then(|kick| QueueThread::spawn(runner, kick, options))
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(thread) => queue.thread = Some(thread),
            Err(why) => broken(&why),
        }
    }
    // ANCHOR_END: start

    // ANCHOR: stop
    /// Stops a queue; every request it took was answered when this returns.
    fn stop(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let stopped = queue.thread.take().and_then(|t| t.stop(Stop::Drain));
        if let Some(stopped) = stopped {
            queue.state.next_avail = stopped.state.next_avail;
            queue.state.next_used = stopped.state.next_used;
        }
    }
    // ANCHOR_END: stop

    fn start_all(&mut self) {
        (0..self.backend.queues()).for_each(|index| self.start(index));
    }

    fn reset(&mut self) {
        (0..self.backend.queues()).for_each(|index| self.reset_queue(index));
        self.driver_features = 0;
        self.broken.store(false, Ordering::Release);
        if let Backend::Own(device) = &self.backend {
            device.reset();
        }
    }

    /// The same where the device is elsewhere: it negotiates, and takes the queues at DRIVER_OK.
    fn set_vdpa_status(&mut self, value: u8) {
        if value == 0 {
            self.status = StatusRegister::default();
        }
        let done = match &self.backend {
            Backend::Vdpa(disk) => self.tell_vdpa(disk, value),
            Backend::Own(_) => return,
        };
        if value == 0 {
            self.reset();
        }
        if let Err(error) = done {
            on_broken(0, self.broken.clone(), self.interrupt.clone())(&error.to_string());
        }
    }

    fn tell_vdpa(
        &self,
        disk: &VdpaDisk,
        value: u8,
    ) -> std::result::Result<(), vhost_vdpa_frontend::PathError> {
        let (switch, old) = (&disk.switch, disk.switch.status());
        let (mut value, new) = (value, value & !old);
        if value == 0 {
            return switch.set_status(0);
        }
        if new & status::FEATURES_OK != 0 && switch.set_features(self.driver_features).is_err() {
            value &= !status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 {
            for (index, queue) in (0..).zip(&self.queues) {
                if queue.state.ready
                    && let Some(queue) = self.guest_queue(index)
                {
                    switch.set_queue(index, queue)?;
                }
            }
        }
        // Bits can only be added.
        switch.set_status(value | old & !status::DEVICE_NEEDS_RESET)
    }

    /// A queue as a vDPA device is told of it.
    fn guest_queue(&self, index: u16) -> Option<GuestQueue> {
        let queue = self.queues.get(usize::from(index))?;
        Some(GuestQueue {
            size: queue.state.size,
            address: address(&queue.state),
            kick: queue.kick.clone(),
            call: self.calls.as_ref()?.callback(index)?,
        })
    }

    /// A device that can't reset single queues keeps them as long as its driver runs.
    fn keeps_queues(&self) -> bool {
        match &self.backend {
            Backend::Own(_) => false,
            Backend::Vdpa(disk) => disk.switch.status() & status::DRIVER_OK != 0,
        }
    }

    /// Forgets a queue (RING_RESET, or `QueueReady` written to 0).
    pub fn reset_queue(&mut self, index: u16) {
        if self.keeps_queues() {
            return;
        }
        self.stop(index);
        let max_size = self.backend.queue_size();
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.state = reset_state(max_size);
        }
    }

    /// Enables a queue as set up. Starts it at once if the driver is ready.
    pub fn enable_queue(&mut self, index: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.state.ready = true;
        }
        self.start(index);
    }

    /// A queue to look at. `None` beyond the last.
    pub fn queue(&self, index: u16) -> Option<&QueueState> {
        self.queues
            .get(usize::from(index))
            .map(|queue| &queue.state)
    }

    /// A queue to set up: only as long as it is not enabled.
    pub fn queue_setup(&mut self, index: u16) -> Option<&mut QueueState> {
        let queue = self.queues.get_mut(usize::from(index))?;
        (!queue.state.ready).then_some(&mut queue.state)
    }

    /// The eventfd by which KVM tells of the driver's kicks. One per queue, by index.
    pub fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.queues.iter().map(|queue| &*queue.kick)
    }

    /// The eventfds that a vDPA device writes: by queue, then that of the configuration.
    pub fn calls(&self) -> impl Iterator<Item = &Arc<EventFd>> {
        self.calls.iter().flat_map(Calls::events)
    }

    /// Interrupts of a vDPA device that passed through the VMM.
    pub fn calls_passed(&self) -> u64 {
        self.calls.as_ref().map_or(0, Calls::passed)
    }

    /// A kick that did not go through the eventfd (an access of an unusual width).
    pub fn kick(&self, index: u64) {
        let queue = usize::try_from(index).ok().and_then(|i| self.queues.get(i));
        if let Some(queue) = queue {
            // Only a full counter could fail, and then the queue is awake.
            let _ = queue.kick.write(1);
        }
    }

    /// Stops all queues and leaves everything else as it is. Kicks wait in their eventfds.
    pub fn pause(&mut self) -> Result<()> {
        if let Backend::Vdpa(disk) = &self.backend {
            let done = disk.switch.pause();
            done.map_err(|error| Error::Control(error.to_string()))?;
        }
        self.paused = true;
        (0..self.backend.queues()).for_each(|index| self.stop(index));
        Ok(())
    }

    /// Goes on after [`Block::pause`] or [`Block::restore`].
    pub fn resume(&mut self) {
        self.paused = false;
        match &self.backend {
            Backend::Own(_) => self.start_all(),
            Backend::Vdpa(disk) => {
                if let Err(error) = disk.switch.resume() {
                    log::error!("a vDPA device does not go on as it was: {error}");
                }
            }
        }
    }
}

fn address(state: &QueueState) -> VqAddress {
    VqAddress {
        desc: state.desc_table,
        driver: state.avail_ring,
        device: state.used_ring,
    }
}

/// What is done when a queue can't go on: the driver learns that the device needs a reset.
fn on_broken(
    index: u16,
    flag: Arc<AtomicBool>,
    interrupt: Arc<dyn Interrupt>,
) -> Arc<dyn Fn(&str) + Send + Sync> {
    Arc::new(move |why| {
        log::info!("queue {index} stopped, the device needs a reset: {why}");
        flag.store(true, Ordering::Release);
        interrupt.config();
    })
}

fn reset_state(max_size: u16) -> QueueState {
    QueueState {
        max_size,
        size: max_size,
        ..QueueState::default()
    }
}

/// Puts 32 bits into the lower or upper half of a 64-bit register.
pub fn set_half(register: &mut u64, upper: bool, value: u32) {
    let shift = if upper { 32 } else { 0 };
    *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
}

/// One half of a 64-bit register; other windows read as 0.
pub fn half(register: u64, select: u32) -> u32 {
    match select {
        0 => register as u32,
        1 => (register >> 32) as u32,
        _ => 0,
    }
}

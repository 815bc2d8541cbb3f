// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A block device behind a virtio transport: what PCI and MMIO have in common.

mod disk;
mod gate;
pub mod mmio;
mod pause;
pub mod pci;
mod queue;
mod saved;
#[cfg(test)]
mod tests;
pub mod vdpa;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_blk_core::device::{self, QueueResources, StartedQueue, StatusChange, StatusRegister};
use virtio_blk_core::ring::QueueState;
use virtio_blk_core::runner::{Medium, MediumEvent, QueueSet, Stop, ThreadOptions};
use virtio_blk_core::spec::status;
use vmm_sys_util::eventfd::EventFd;

pub use self::disk::{MachineDisk, OwnDisk};
use self::gate::Gate;
use self::queue::Queue;
pub use self::saved::SavedBlock;
use self::vdpa::Calls;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// How a transport interrupts the guest. Called from queue threads; must not block.
pub trait Interrupt: Send + Sync {
    /// Buffers of a queue were used.
    fn queue(&self, index: u16);
    /// The configuration or the status changed.
    fn config(&self);
}

/// How long a start or a stop waits for the disk: a vCPU that starts its device, or resets it or a queue of it, is back
/// in the guest by then. A pause and a vCPU that takes Bus Master Enable away wait twice as long. What the disk still
/// has then keeps its memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// A device with its queues: the registers of a transport are views of this.
pub struct Block {
    pub disk: Box<dyn MachineDisk>,
    /// Interrupts of a vDPA device.
    calls: Option<Calls>,
    memory: Memory,
    interrupt: Arc<Gate>,
    status: StatusRegister,
    /// As the driver wrote them; they count from FEATURES_OK on.
    pub driver_features: u64,
    /// The driver acknowledged features beyond the first 64, which no device offers.
    unknown_features: bool,
    queues: Vec<Queue>,
    /// Set by a queue that broke, on its thread.
    broken: Arc<AtomicBool>,
    paused: bool,
    /// Whether the device may touch guest memory.
    dma: bool,
    /// A device that executes requests by itself was told of DRIVER_OK, and has its queues until a reset.
    offloaded: bool,
    /// A reset has begun, and the disk still has buffers of a queue.
    resetting: bool,
    /// The threads that serve the queues of the own device, and its disk, in use or not.
    threads: Option<QueueSet<Memory>>,
    /// [`PATIENCE`].
    patience: Duration,
}

impl Block {
    pub fn new(
        disk: Box<dyn MachineDisk>,
        memory: Memory,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self> {
        let interrupt = Arc::new(Gate::new(interrupt));
        let device = disk.device();
        let calls = if device.offloads() {
            Some(Calls::new(device.queues(), interrupt.clone())?)
        } else {
            None
        };
        let listener = interrupt.clone();
        device.set_config_interrupt(
            calls
                .as_ref()
                .and_then(|calls| calls.interrupt(device.queues()))
                .unwrap_or_else(|| {
                    device::DriverInterrupt::Call(Arc::new(move || listener.config()))
                }),
        );
        let count = device.queues();
        let medium = disk.medium().map(|disk| Medium::new(disk, log_medium));
        let threads = medium.map(|medium| QueueSet::new(medium, count, || {}));
        let max_size = device.queue_size();
        let queues = (0..count).map(|_| Queue::new(max_size));
        Ok(Self {
            queues: queues.collect::<Result<_>>()?,
            disk,
            calls,
            memory,
            interrupt,
            status: StatusRegister::default(),
            driver_features: 0,
            unknown_features: false,
            broken: Arc::default(),
            paused: false,
            dma: true,
            offloaded: false,
            resetting: false,
            threads,
            patience: PATIENCE,
        })
    }

    /// The status register as the driver reads it. While a reset waits for the disk it reads DEVICE_NEEDS_RESET:
    /// drivers may set the device up again once it reads 0 (4.1.4.3.2).
    pub fn status(&mut self) -> u8 {
        if self.is_resetting() {
            return status::DEVICE_NEEDS_RESET;
        }
        self.note_broken();
        self.status.get()
    }

    fn note_broken(&mut self) {
        let offloaded = self.offloaded && self.disk.device().needs_reset();
        if offloaded || self.broken.load(Ordering::Acquire) {
            self.status.need_reset();
        }
    }

    /// The driver acknowledges 32 features: the first, those after them, and so on.
    pub fn acknowledge(&mut self, select: u32, features: u32) {
        match select {
            0 | 1 => set_half(&mut self.driver_features, select == 1, features),
            _ => self.unknown_features |= features != 0,
        }
    }

    // ANCHOR: status
    /// The driver writes the status register.
    pub fn set_status(&mut self, value: u8) {
        if value != 0 && self.is_resetting() {
            return;
        }
        if value & status::FEATURES_OK != 0 && self.unknown_features {
            // Refused, as all that was not offered (2.2.2).
            return;
        }
        let (device, features) = (self.disk.device(), self.driver_features);
        let accept = || device.accept(features).is_ok();
        let change = self.status.write_with(value, accept);
        match change {
            StatusChange::Reset => self.reset(),
            StatusChange::Start => {
                self.interrupt.set(true);
                self.start_all();
            }
            StatusChange::None | StatusChange::Refused => {}
        }
    }
    // ANCHOR_END: status

    // ANCHOR: start
    /// Starts a queue if it and the device are ready for it.
    fn start(&mut self, index: u16) {
        self.note_broken();
        let ready = self.queue(index).is_some_and(|state| state.ready);
        if !self.may_run() || !ready || self.serves(index) {
            return;
        }
        let broken = on_broken(index, self.broken.clone(), self.interrupt.clone());
        if !self.note_stopped(|number| number == index, Instant::now()) {
            return broken("the disk has not let go of what it had");
        }
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        if let Some(threads) = &self.threads {
            match threads.medium().take(Instant::now() + self.patience) {
                Some(Ok(())) => {}
                Some(Err(refused)) => return broken(&refused.to_string()),
                None => return broken("the disk takes too long to be taken into use"),
            }
        }
        let calls = self.calls.as_ref();
        let call = calls.and_then(|calls| calls.interrupt(index));
        let interrupt = self.interrupt.clone();
        let resources = QueueResources {
            memory: self.memory.clone(),
            state: queue.state,
            replay: std::mem::take(&mut queue.in_flight),
            kick: queue.kick.clone(),
            interrupt: call.unwrap_or_else(|| {
                device::DriverInterrupt::Call(Arc::new(move || interrupt.queue(index)))
            }),
        };
        let started = self.disk.device().start_queue(index, resources);
        let runner = match started {
            Ok(StartedQueue::Runner(runner)) => runner,
            Ok(StartedQueue::Offloaded) => return,
            Err(error) => return broken(&error.to_string()),
        };
        let options = ThreadOptions {
            name: format!("queue{index}"),
            poll: Duration::ZERO,
            on_fatal: Box::new({
                let broken = broken.clone();
                move |error| broken(&error.to_string())
            }),
        };
        let served = queue.kick.try_clone().and_then(|kick| {
            let threads = self.threads.as_mut().ok_or(io::ErrorKind::Unsupported)?;
            threads.start(index, *runner, kick, options)
        });
        if let Err(error) = served {
            broken(&error.to_string());
        }
    }
    // ANCHOR_END: start

    /// Whether a thread takes requests of a queue.
    fn serves(&self, index: u16) -> bool {
        let threads = self.threads.as_ref();
        threads.is_some_and(|threads| threads.is_running(index) && !threads.is_stopping(index))
    }

    /// Whether queues may take requests. A device that has them keeps them.
    fn may_run(&self) -> bool {
        self.status.is_live() && self.dma && !self.paused && !self.offloaded
    }

    fn start_all(&mut self) {
        (0..self.disk.device().queues()).for_each(|index| self.start(index));
        self.note_broken();
        if !self.disk.device().offloads() || !self.may_run() {
            return;
        }
        self.offloaded = true;
        if let Err(error) = self.disk.device().driver_ok() {
            on_broken(0, self.broken.clone(), self.interrupt.clone())(&error.to_string());
        }
    }

    // ANCHOR: stop
    /// Stops all queues and leaves everything else as it is, to be started again. Requests that the disk does not
    /// finish in time are cancelled, and executed again then.
    ///
    /// # Errors
    /// The disk still has buffers, or what it keeps in memory is not stable.
    fn halt(&mut self) -> Result<()> {
        let stopped = self.stop_all(Stop::Drain, Instant::now() + self.patience);
        self.leave(stopped, Instant::now() + self.patience)
    }

    /// Stops all queues until `deadline`, if they have not `stopped`, and waits for the disk to be released.
    fn leave(&mut self, stopped: bool, deadline: Instant) -> Result<()> {
        if !stopped && !self.stop_all(Stop::HandOver, deadline) {
            let text = "the disk does not let go of the requests that it has";
            return Err(Error::Control(text.to_owned()));
        }
        match self.wait_left(deadline) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Error::Control(format!(
                "the disk can't be left in order, what it kept may be lost: {error}"
            ))),
            None => {
                let text = "the disk still makes stable what it kept in memory";
                Err(Error::Control(text.to_owned()))
            }
        }
    }

    fn stop_all(&mut self, mode: Stop, deadline: Instant) -> bool {
        if let Some(threads) = &mut self.threads {
            threads.begin_stop(|_| true, mode);
        }
        self.have_stopped(deadline)
    }

    /// Waits until `deadline` for the queues that were told to stop. When the last has stopped the disk is released,
    /// which is not waited for.
    fn have_stopped(&mut self, deadline: Instant) -> bool {
        let all = self.note_stopped(|_| true, deadline);
        let _ = self.wait_left(Instant::now());
        all
    }

    /// Waits until `deadline` for those queues of `which` that were told to stop, and notes where they stand.
    fn note_stopped(&mut self, which: impl Fn(u16) -> bool, deadline: Instant) -> bool {
        let queues = &mut self.queues;
        let late = self.threads.as_mut().map_or_else(Vec::new, |threads| {
            threads.wait_stopped(&which, deadline, |index, stopped| {
                // One whose thread panicked was told as broken.
                if let (Some(queue), Some(stopped)) = (queues.get_mut(usize::from(index)), stopped)
                {
                    queue.set_stopped(stopped);
                }
            })
        });
        let queues = (0..).zip(&mut self.queues);
        queues
            .filter(|(index, _)| which(*index) && !late.contains(index))
            .for_each(|(_, queue)| queue.finish_reset());
        late.is_empty()
    }

    /// Waits until `deadline` for the disk to be released, once all queues have stopped. `None`: it is not yet.
    fn wait_left(&self, deadline: Instant) -> Option<std::result::Result<(), String>> {
        match &self.threads {
            Some(threads) => threads.release(deadline),
            None => Some(Ok(())),
        }
    }
    // ANCHOR_END: stop

    fn reset(&mut self) {
        self.begin_reset(|_| true);
        self.resetting = true;
        let deadline = Instant::now() + self.patience;
        self.finish_reset(deadline);
        if self.resetting {
            log::warn!("a reset waits for the disk, which has not let go of the driver's buffers");
        }
        // Whatever comes of it: to the driver, what is not stable is what a power cut would have taken.
        let _ = self.wait_left(deadline);
        if let Some(threads) = &self.threads {
            threads.medium().reset();
        }
        self.interrupt.set(false);
    }

    /// Has those queues that `which` chooses stop and be forgotten. What they have in flight is cancelled.
    fn begin_reset(&mut self, which: impl Fn(u16) -> bool) {
        if let Some(threads) = &mut self.threads {
            threads.begin_stop(&which, Stop::HandOver);
        }
        let queues = (0..).zip(&mut self.queues);
        let chosen = queues.filter(|(index, _)| which(*index));
        chosen.for_each(|(_, queue)| queue.begin_reset());
    }

    /// Whether a reset has begun and is not over.
    fn is_resetting(&mut self) -> bool {
        self.finish_reset(Instant::now());
        self.resetting
    }

    fn finish_reset(&mut self, deadline: Instant) {
        if !self.resetting || !self.have_stopped(deadline) {
            return;
        }
        self.resetting = false;
        self.driver_features = 0;
        self.unknown_features = false;
        self.broken.store(false, Ordering::Release);
        self.offloaded = false;
        self.status = StatusRegister::default();
        if let Err(error) = self.disk.device().reset() {
            on_broken(0, self.broken.clone(), self.interrupt.clone())(&error.to_string());
        }
    }

    /// Forgets a queue (RING_RESET, or `QueueReady` written to 0). What it has in flight is cancelled.
    pub fn reset_queue(&mut self, index: u16) {
        if self.offloaded {
            return;
        }
        self.begin_reset(|number| number == index);
        let deadline = Instant::now() + self.patience;
        self.have_stopped(deadline);
        // A pause tells what came of it.
        let _ = self.wait_left(deadline);
    }

    /// Whether the disk still has buffers of a queue that is being reset.
    pub fn is_queue_resetting(&mut self, index: u16) -> bool {
        self.have_stopped(Instant::now());
        let queue = self.queues.get(usize::from(index));
        queue.is_some_and(Queue::is_resetting)
    }

    /// Enables a queue as set up. Starts it at once if the driver is ready.
    pub fn enable_queue(&mut self, index: u16) {
        if self.is_queue_resetting(index) {
            return;
        }
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
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Err(error) = self.leave(false, Instant::now() + self.patience) {
            log::error!("a machine ends without its disk: {error}");
        }
        // Their buffers stay in memory until the disk releases them.
        if let Some(threads) = &mut self.threads {
            threads.leave_behind(|_| true);
        }
    }
}

/// Tells of what nobody waits for.
fn log_medium(event: MediumEvent<'_>) {
    match event {
        MediumEvent::Lost(error) => log::error!("what the disk kept is not stable: {error}"),
        MediumEvent::Refused(error) => log::error!("the disk can't be taken into use: {error}"),
        MediumEvent::Settled => {}
    }
}

/// What is done when a queue can't continue: the driver learns that the device needs a reset.
fn on_broken(
    index: u16,
    flag: Arc<AtomicBool>,
    interrupt: Arc<Gate>,
) -> Arc<dyn Fn(&str) + Send + Sync> {
    Arc::new(move |why| {
        log::info!("queue {index} stopped, the device needs a reset: {why}");
        flag.store(true, Ordering::Release);
        interrupt.config();
    })
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

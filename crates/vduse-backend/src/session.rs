// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device does for each message of the kernel.
//!
//! Nothing here waits for the disk longer than [`Session::budget`] says. What can't stop by then:
//! - at a reset is cut off from the driver's memory, interrupts and record, and ends on its own; queues
//!   start again only after that, so that no late write overtakes a newer one;
//! - at GET_VQ_STATE and SUSPEND makes the message fail, and the queue goes on once it has stopped.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::device::{Device, StatusChange, StatusRegister};
use virtio_blk_core::runner::Stop;
use virtio_blk_core::spec::status::FEATURES_OK;
use vmm_sys_util::eventfd::EventFd;

use crate::kernel::{Attribute, DeviceFile, Kernel};
use crate::memory::AddressSpace;
use crate::message::{Answer, Request};
use crate::queue::{Context, From, Gate, Queue, Worker};
use crate::state::State;

/// A message gets this part of the kernel's time-out: others may be waiting behind it.
const SHARE: u32 = 5;
/// What the kernel's time-out is where it does not tell.
const USUAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The most a message gets, also where the kernel waits for ever.
const LONGEST: Duration = Duration::from_secs(6);
/// The size of the bounce buffer where the kernel does not tell (before Linux 6.12).
const USUAL_BOUNCE: u64 = 64 << 20;
/// Whoever asks for a queue's state and does not reset it next gets it back after this time.
const PAUSE: Duration = Duration::from_millis(500);

/// One device.
pub(crate) struct Session {
    kernel: Arc<dyn Kernel>,
    device: Arc<Device>,
    file: Arc<dyn DeviceFile>,
    state: State,
    poll: Duration,
    pin: bool,
    /// Rings when a queue has stopped.
    wake: Arc<EventFd>,
    memory: AddressSpace,
    status: StatusRegister,
    suspended: bool,
    queues: Vec<Queue>,
    gate: Gate,
    /// Queues that could not stop in time.
    abandoned: Vec<Worker>,
    /// The address space changed while there was nobody to take it over, or was never looked at.
    stale: bool,
}

impl Session {
    pub(crate) fn new(
        kernel: Arc<dyn Kernel>,
        device: Arc<Device>,
        file: Arc<dyn DeviceFile>,
        state: State,
        (poll, pin): (Duration, bool),
        wake: Arc<EventFd>,
    ) -> io::Result<Self> {
        Ok(Self {
            queues: (0..device.options().queues)
                .map(|_| Queue::default())
                .collect(),
            kernel,
            device,
            file,
            state,
            poll,
            pin,
            wake,
            memory: AddressSpace::new()?,
            status: StatusRegister::default(),
            suspended: false,
            gate: Gate::open(),
            abandoned: Vec::new(),
            stale: true,
        })
    }

    /// Goes on where a server that died has left off.
    pub(crate) fn resume(&mut self) {
        let progress = self.state.progress();
        if progress.status == 0 {
            return;
        }
        log::info!(
            "taking over: status {:#x}, {} resets so far",
            progress.status,
            progress.generation
        );
        match self
            .status
            .write(progress.status, progress.accepted, &self.device)
        {
            StatusChange::Start => self.start_all(From::Log),
            StatusChange::Refused => {
                log::error!("the driver uses features that this server does not offer");
            }
            StatusChange::None | StatusChange::Reset => {}
        }
    }

    /// Whether the driver uses the device.
    pub(crate) fn is_live(&self) -> bool {
        self.status.is_live()
    }

    /// What is readable when [`Session::alarmed`] must be called.
    pub(crate) fn memory(&self) -> &AddressSpace {
        &self.memory
    }

    pub(crate) fn into_parts(self) -> (Arc<dyn DeviceFile>, State) {
        (self.file, self.state)
    }

    /// How long a message may take.
    fn budget(&self) -> Duration {
        let name = &self.state.shape().name;
        let timeout = match self.kernel.attribute(name, Attribute::MsgTimeout) {
            Ok(0) => return LONGEST,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => USUAL_TIMEOUT,
        };
        (timeout / SHARE).min(LONGEST)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.budget()
    }

    fn bounce_size(&self) -> u64 {
        let name = &self.state.shape().name;
        let size = self.kernel.attribute(name, Attribute::BounceSize);
        size.unwrap_or(USUAL_BOUNCE)
    }

    /// Does what the kernel asks for.
    pub(crate) fn handle(&mut self, request: Request) -> Answer {
        log::debug!("{request:x?}");
        let answer = match request {
            Request::SetStatus(0) => self.reset(),
            Request::SetStatus(status) => self.set_status(status),
            Request::UpdateIotlb { .. } => self.update_iotlb(),
            Request::GetVqState { index } => self.get_vq_state(index),
            Request::SetVqReady { index, ready } => self.set_vq_ready(index, ready),
            Request::Suspend => self.suspend(),
            // There is one of each.
            Request::SetGroupAsid { group: 0, asid: 0 } => Answer::Ok,
            Request::SetGroupAsid { .. } => Answer::Failed,
            Request::Unknown(kind) => {
                log::warn!("the kernel sent a message of type {kind}, which is unknown here");
                Answer::Failed
            }
        };
        if answer == Answer::Failed {
            log::warn!("refused: {request:x?}");
        }
        answer
    }

    fn note(&mut self) {
        let accepted = self.device.accepted();
        if let Err(error) = self.state.note(self.status.get(), accepted) {
            log::error!("a restart will not be seamless: the record can't be written: {error}");
        }
    }

    fn set_status(&mut self, status: u8) -> Answer {
        let features = match self.file.driver_features() {
            Ok(features) => features,
            Err(error) => {
                log::error!("the driver's features can't be read: {error}");
                return Answer::Failed;
            }
        };
        let before = self.status.get();
        match self.status.write(status, features, &self.device) {
            StatusChange::Refused => {
                log::warn!(
                    "the driver's features {features:#x} are refused; offered {:#x}",
                    self.device.offered()
                );
                return Answer::Failed;
            }
            StatusChange::Start => {
                self.note();
                self.start_all(From::Driver);
            }
            StatusChange::None | StatusChange::Reset => {
                if (before ^ self.status.get()) & FEATURES_OK != 0 {
                    log::debug!("features {features:#x}");
                }
                self.note();
            }
        }
        Answer::Ok
    }

    /// Starts every queue that the driver has enabled.
    fn start_all(&mut self, from: From) {
        self.suspended = false;
        for index in 0..self.queues.len() {
            let ready = self.file.vq_info(index as u16).map(|info| info.ready);
            if let Err(error) = &ready {
                log::error!("queue {index}: {error}");
            }
            if let Some(queue) = self.queues.get_mut(index) {
                queue.wanted = ready.unwrap_or(false);
            }
        }
        self.stale = true;
        self.start_wanted(from);
    }

    /// Starts the queues that should run and don't; `from`: where those go on that never ran.
    fn start_wanted(&mut self, from: From) {
        let now = Instant::now();
        let may = |queue: &Queue| {
            queue.wanted && queue.is_idle() && queue.not_before.is_none_or(|at| now >= at)
        };
        if !self.status.is_live() || self.suspended || !self.queues.iter().any(may) {
            return;
        }
        if !self.abandoned.is_empty() {
            log::warn!("the disk still works on requests from before the reset: waiting for it");
            return;
        }
        if self.stale && !self.walk() {
            return;
        }
        let context = Context {
            kernel: self.kernel.as_ref(),
            name: &self.state.shape().name,
            device: &self.device,
            file: &self.file,
            memory: self.memory.iotlb(),
            area: self.state.area(),
            poll: self.poll,
            pin: self.pin,
            gate: &self.gate,
        };
        for (index, queue) in (0..).zip(&mut self.queues).filter(|(_, queue)| may(queue)) {
            let from = match queue.from() {
                From::Driver => from,
                known => known,
            };
            if let Err(error) = queue.start(index, from, &context) {
                log::error!("queue {index} does not work until the driver resets it: {error}");
                queue.wanted = false;
            }
        }
    }

    /// Takes the address space over; nothing runs on it yet.
    fn walk(&mut self) -> bool {
        let bounce = self.bounce_size();
        match self.memory.walk(self.file.as_ref(), bounce) {
            Ok(_) => {
                self.stale = false;
                true
            }
            Err(error) => {
                log::error!("the driver's memory can't be used: {error}");
                false
            }
        }
    }

    fn update_iotlb(&mut self) -> Answer {
        if self.queues.iter().all(Queue::is_idle) && self.abandoned.is_empty() {
            self.stale = true;
            return Answer::Ok;
        }
        let (deadline, bounce) = (self.deadline(), self.bounce_size());
        let removed = match self.memory.walk(self.file.as_ref(), bounce) {
            Ok(removed) => removed,
            Err(error) => {
                log::error!("the driver's memory can't be used: {error}");
                return Answer::Failed;
            }
        };
        for queue in &self.queues {
            queue.remap();
        }
        match removed.settle(deadline) {
            Ok(false) => {}
            Ok(true) => log::warn!("requests in flight lost memory that the driver took away"),
            Err(error) => {
                log::error!("memory that the driver took away can't be released: {error}");
                return Answer::Failed;
            }
        }
        Answer::Ok
    }

    fn reset(&mut self) -> Answer {
        let deadline = self.deadline();
        let wake = self.wake.clone();
        for queue in &mut self.queues {
            queue.begin_stop(Stop::HandOver, &wake);
        }
        let mut stopped = true;
        for queue in &mut self.queues {
            stopped &= queue.wait_stopped(deadline);
        }
        if !stopped {
            self.cut_off();
        }
        self.queues.fill_with(Queue::default);
        self.device.reset();
        self.status = StatusRegister::default();
        self.suspended = false;
        self.stale = true;
        if let Err(error) = self.state.renew() {
            log::error!("a restart will not be seamless: the record can't be made: {error}");
        }
        Answer::Ok
    }

    /// Cuts queues that can't stop in time off from everything of the driver's.
    fn cut_off(&mut self) {
        log::warn!("the disk does not finish: its requests are cut off from the driver's memory");
        self.gate.close();
        self.gate = Gate::open();
        if let Err(error) = self.memory.revoke() {
            log::error!("the driver's memory can't be taken away from the disk: {error}");
        }
        let workers = self.queues.iter_mut().filter_map(Queue::abandon);
        self.abandoned.extend(workers);
    }

    fn get_vq_state(&mut self, index: u32) -> Answer {
        let deadline = self.deadline();
        let live = self.status.is_live() && !self.suspended;
        let wake = self.wake.clone();
        let Some(queue) = usize::try_from(index)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            return Answer::Failed;
        };
        queue.begin_stop(Stop::Drain, &wake);
        if !queue.wait_stopped(deadline) {
            return Answer::Failed;
        }
        if live && queue.wanted {
            queue.not_before = Some(Instant::now() + PAUSE);
        }
        Answer::VqState {
            index,
            next_avail: queue.next_avail(),
        }
    }

    fn set_vq_ready(&mut self, index: u32, ready: bool) -> Answer {
        let deadline = self.deadline();
        let live = self.status.is_live();
        let wake = self.wake.clone();
        let Some(queue) = usize::try_from(index)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            return Answer::Failed;
        };
        if ready {
            // Before DRIVER_OK the kernel is asked which queues are enabled.
            if live {
                queue.wanted = true;
                self.start_wanted(From::Driver);
            }
            return Answer::Ok;
        }
        queue.wanted = false;
        queue.begin_stop(Stop::Drain, &wake);
        if !queue.wait_stopped(deadline) {
            // A refusal would break the device. The driver's memory stays: other queues use it.
            log::warn!("queue {index} is disabled, but the disk does not finish its requests");
            self.abandoned.extend(queue.abandon());
        }
        Answer::Ok
    }

    fn suspend(&mut self) -> Answer {
        let deadline = self.deadline();
        let wake = self.wake.clone();
        for queue in &mut self.queues {
            queue.begin_stop(Stop::Drain, &wake);
        }
        let mut stopped = true;
        for queue in &mut self.queues {
            stopped &= queue.wait_stopped(deadline);
        }
        if !stopped {
            self.start_wanted(From::Driver);
            return Answer::Failed;
        }
        self.suspended = true;
        Answer::Ok
    }

    /// Something happened that is no message: a queue stopped, or a moment came.
    pub(crate) fn work(&mut self) {
        let now = Instant::now();
        self.abandoned.retain(|worker| !worker.wait_stopped(now));
        for queue in &mut self.queues {
            if !queue.is_idle() && !queue.is_running() {
                queue.wait_stopped(now);
            }
        }
        self.start_wanted(From::Driver);
    }

    /// When [`Session::work`] must be called.
    pub(crate) fn next(&self) -> Option<Instant> {
        let times = self.queues.iter().filter(|queue| queue.wanted);
        times.filter_map(|queue| queue.not_before).min()
    }

    /// Memory that was touched was gone: nothing the driver says can be relied on.
    pub(crate) fn alarmed(&mut self) {
        self.memory.acknowledge();
        log::error!("the driver's memory is gone: the device stops until it is reset");
        let wake = self.wake.clone();
        for queue in &mut self.queues {
            queue.wanted = false;
            queue.begin_stop(Stop::HandOver, &wake);
        }
    }

    /// Shows the driver the configuration space as it is now.
    pub(crate) fn push_config(&self) {
        if let Err(error) = self.file.set_config(&self.device.config().to_bytes()) {
            return log::error!("the driver can't be shown the new size: {error}");
        }
        // Without a driver nobody needs to know.
        if self.is_live()
            && let Err(error) = self.file.inject_config_irq()
        {
            log::debug!("no config interrupt: {error}");
        }
    }

    /// Begins to finish what was taken; nothing starts any more. [`Session::is_finished`] says when.
    pub(crate) fn finish(&mut self) {
        let wake = self.wake.clone();
        for queue in &mut self.queues {
            queue.wanted = false;
            queue.begin_stop(Stop::Drain, &wake);
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.queues.iter().all(Queue::is_idle) && self.abandoned.is_empty()
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device does for each message of the kernel.
//!
//! Nothing here waits for the disk longer than [`Session::budget`] says. What can't stop by then:
//! - at a reset is cut off from the driver's memory, interrupts and record, and ends on its own; queues
//!   start again only after that, so that no late write overtakes a newer one;
//! - at GET_VQ_STATE and SUSPEND makes the message fail, and the queue starts again once it has stopped;
//! - at SET_VQ_READY keeps its queue from being started until it has stopped.
//!
//! Whatever a message changes is in the record before the kernel learns of it, so that a server that takes the device
//! over continues from what the kernel and the VMM were told.

mod run;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_blk_core::device::{Device, StatusChange, StatusRegister};
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_core::runner::{Medium, MediumEvent, Refused, Stop};
use virtio_blk_core::spec::status::FEATURES_OK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::kernel::{Attribute, DeviceFile, Kernel};
use crate::memory::AddressSpace;
use crate::message::{Answer, Request};
use crate::queue::{Gate, Queue, Threads, Wish};
use crate::state::{Place, State};

/// A message gets this part of the kernel's time-out: others may be waiting behind it.
const SHARE: u32 = 5;
/// What the kernel's time-out is where it does not tell.
const USUAL_TIMEOUT: u64 = 30;
/// The most a message gets, also where the kernel waits for ever.
const LONGEST: Duration = Duration::from_secs(6);
/// The size of the bounce buffer where the kernel does not tell (before Linux 6.12).
const USUAL_BOUNCE: u64 = 64 << 20;

/// One device.
pub(crate) struct Session {
    kernel: Arc<dyn Kernel>,
    device: Arc<Device>,
    file: Arc<dyn DeviceFile>,
    state: State,
    poll: Duration,
    pin: bool,
    /// Signalled when a queue has stopped, or something else is to be done.
    wake: Arc<EventFd>,
    threads: Threads,
    memory: AddressSpace,
    status: StatusRegister,
    queues: Vec<Queue>,
    gate: Gate,
    /// The address space changed and was not looked at since, or never was.
    stale: bool,
    /// Gets the kicks of queues whose state was told.
    kicked: EventFd,
    /// When queues start again whose state was told.
    held_until: Option<Instant>,
    /// When to try again what failed.
    retry_at: Option<Instant>,
    /// When to send interrupts again that the kernel refused.
    irqs_at: Option<Instant>,
    /// Until when the kernel may still be about to do what a message asked for.
    soon_until: Option<Instant>,
    /// The last failure that was reported.
    complaint: String,
    /// When to leave the requests in flight to the next server.
    finish_by: Option<Instant>,
    /// As the kernel told last.
    timeout: u64,
    bounce: u64,
}

/// The disk, which signals `wake` when it has become what it should be.
fn medium(disk: Arc<dyn Disk>, wake: Arc<EventFd>) -> Medium {
    Medium::new(disk, move |event| match event {
        // The message that asks next may not report it.
        MediumEvent::Lost(error) => {
            log::error!("the disk can't be left in order, what it kept may be lost: {error}");
        }
        MediumEvent::Refused(error) => log::error!("the disk can't be taken into use: {error}"),
        MediumEvent::Settled => {
            // The counter can't overflow.
            let _ = wake.write(1);
        }
    })
}

/// What a session leaves.
pub(crate) struct Ended {
    /// The disk finished everything in time.
    pub(crate) finished: bool,
    /// Why what the disk kept in memory may be lost.
    pub(crate) lost: Option<DiskError>,
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
        let queues = state.shape().abi.queues;
        let medium = medium(device.disk().clone(), wake.clone());
        let on_stopped = wake.clone();
        Ok(Self {
            queues: (0..queues).map(|_| Queue::default()).collect(),
            threads: Threads::new(medium, queues, move || {
                // The counter can't overflow.
                let _ = on_stopped.write(1);
            }),
            kernel,
            device,
            file,
            state,
            poll,
            pin,
            wake,
            memory: AddressSpace::new()?,
            status: StatusRegister::default(),
            gate: Gate::open(),
            stale: true,
            kicked: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            held_until: None,
            retry_at: None,
            irqs_at: None,
            soon_until: None,
            complaint: String::new(),
            finish_by: None,
            timeout: USUAL_TIMEOUT,
            bounce: USUAL_BOUNCE,
        })
    }

    /// The disk, in use or not.
    pub(crate) fn medium(&self) -> &Medium {
        self.threads.medium()
    }

    /// Whether the driver uses the device.
    pub(crate) fn is_live(&self) -> bool {
        self.status.is_live()
    }

    /// What is readable when [`Session::alarmed`] must be called.
    pub(crate) fn memory(&self) -> &AddressSpace {
        &self.memory
    }

    /// Readable when [`Session::work`] must be called, beside `wake`.
    pub(crate) fn kicked(&self) -> &EventFd {
        &self.kicked
    }

    /// How long a message may take: a fifth of the kernel's time-out, and at most [`LONGEST`].
    pub(crate) fn budget(&mut self) -> Duration {
        // What can't be read now is as it was.
        let name = &self.state.shape().name;
        if let Ok(timeout) = self.kernel.attribute(name, Attribute::MsgTimeout) {
            self.timeout = timeout;
        }
        match self.timeout {
            0 => LONGEST,
            seconds => (Duration::from_secs(seconds) / SHARE).min(LONGEST),
        }
    }

    fn deadline(&mut self) -> Instant {
        Instant::now() + self.budget()
    }

    fn bounce_size(&mut self) -> u64 {
        let name = &self.state.shape().name;
        if let Ok(size) = self.kernel.attribute(name, Attribute::BounceSize) {
            self.bounce = size;
        }
        self.bounce
    }

    fn queue(&mut self, index: u32) -> Option<(u16, &mut Queue)> {
        let index = u16::try_from(index).ok()?;
        Some((index, self.queues.get_mut(usize::from(index))?))
    }

    /// Does what the kernel asks for.
    pub(crate) fn handle(&mut self, request: Request) -> Answer {
        log::debug!("{request:x?}");
        let deadline = self.deadline();
        let answer = match request {
            Request::SetStatus(0) => self.reset(deadline),
            Request::SetStatus(status) => self.set_status(status, deadline),
            Request::UpdateIotlb { .. } => self.update_iotlb(deadline),
            Request::GetVqState { index } => self.get_vq_state(index, deadline),
            Request::SetVqReady { index, ready } => self.set_vq_ready(index, ready, deadline),
            Request::Suspend => self.suspend(deadline),
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
        // A VMM asks for one queue after the other, which may take longer for each than the hold lasts.
        self.extend_hold();
        answer
    }

    fn set_status(&mut self, status: u8, deadline: Instant) -> Answer {
        let features = match self.file.driver_features() {
            Ok(features) => features,
            Err(error) => {
                log::error!("the driver's features can't be read: {error}");
                return Answer::Failed;
            }
        };
        let before = self.status;
        match self.status.write(status, features, &self.device) {
            StatusChange::Refused => {
                log::warn!(
                    "the driver's features {features:#x} are refused; offered {:#x}",
                    self.device.offered()
                );
                return Answer::Failed;
            }
            StatusChange::Start => {
                if let Err(error) = self.driver_ok(deadline) {
                    log::error!("DRIVER_OK is refused: {error}");
                    self.status = before;
                    return Answer::Failed;
                }
            }
            StatusChange::None | StatusChange::Reset => {
                if (before.get() ^ self.status.get()) & FEATURES_OK != 0 {
                    log::debug!("features {features:#x}");
                }
            }
        }
        self.state
            .set_status(self.status.get(), self.device.accepted());
        // Queues take nothing before the record says that there is a driver.
        self.start_wanted();
        Answer::Ok
    }

    /// The driver is ready: the disk is taken into use, if any queue is enabled.
    ///
    /// # Errors
    /// The disk can't be used.
    fn driver_ok(&mut self, deadline: Instant) -> Result<(), Refused> {
        self.all_wanted();
        if self.needs_medium()
            && let Some(Err(refused)) = self.threads.medium().take(deadline)
        {
            for queue in &mut self.queues {
                queue.wish = Wish::Rest;
            }
            return Err(refused);
        }
        Ok(())
    }

    fn update_iotlb(&mut self, deadline: Instant) -> Answer {
        self.stale = true;
        if !self.uses_memory() {
            self.start_wanted();
            return Answer::Ok;
        }
        match self.renew_memory(deadline) {
            true => Answer::Ok,
            false => Answer::Failed,
        }
    }

    fn reset(&mut self, deadline: Instant) -> Answer {
        let stopped = self.stop(|_| true, Stop::HandOver, deadline);
        let mut answer = Answer::Ok;
        if !stopped && let Err(error) = self.cut_off() {
            // Nothing else is different: what hangs keeps the next driver's queues from starting.
            log::error!("the driver's memory can't be taken away from the disk: {error}");
            answer = Answer::Failed;
        }
        self.queues.fill_with(Queue::default);
        self.device.reset();
        self.status = StatusRegister::default();
        self.state.reset();
        self.held_until = None;
        self.soon_until = None;
        self.stale = true;
        // What is not stable by now is, to the driver, what a power cut would have taken.
        self.release_medium(deadline);
        self.threads.medium().reset();
        answer
    }

    /// Cuts queues that can't stop in time off from everything of the driver's.
    fn cut_off(&mut self) -> io::Result<()> {
        log::warn!("the disk does not finish: its requests are cut off from the driver's memory");
        self.gate.close();
        self.gate = Gate::open();
        let revoked = self.memory.revoke();
        self.threads.leave_behind(|_| true);
        revoked
    }

    fn get_vq_state(&mut self, index: u32, deadline: Instant) -> Answer {
        self.start_unfinished(deadline);
        let Some((number, queue)) = self.queue(index) else {
            return Answer::Failed;
        };
        let wanted = queue.should_run();
        if !self.stop(|queue| queue == number, Stop::Drain, deadline) {
            return Answer::Failed;
        }
        let next_avail = match self.state.place(number) {
            Place::Fresh => match self.file.vq_info(number) {
                Ok(info) => info.avail_index,
                Err(error) => {
                    log::error!("queue {number}: the kernel does not tell its index: {error}");
                    return Answer::Failed;
                }
            },
            Place::Stopped(next_avail) => next_avail,
            Place::Started { .. } => {
                log::warn!("queue {number}: where it stands is not known");
                return Answer::Failed;
            }
        };
        // The VMM may continue from the told state with another server of this medium.
        if !self.release_medium(deadline) {
            self.start_wanted();
            return Answer::Failed;
        }
        if wanted && self.status.is_live() && !self.state.is_suspended() {
            self.hold(number);
        }
        Answer::VqState { index, next_avail }
    }

    fn set_vq_ready(&mut self, index: u32, ready: bool, deadline: Instant) -> Answer {
        let live = self.status.is_live();
        let Some((number, queue)) = self.queue(index) else {
            return Answer::Failed;
        };
        if ready {
            // Before DRIVER_OK the kernel is asked which queues are enabled.
            if live {
                queue.wish = Wish::Run;
                self.expect_kernel();
                self.unhold();
                self.start_wanted();
            }
            return Answer::Ok;
        }
        self.start_unfinished(deadline);
        if let Some((_, queue)) = self.queue(index) {
            queue.wish = Wish::Rest;
        }
        if self.stop(|queue| queue == number, Stop::Drain, deadline) {
            self.release_medium(deadline);
        } else {
            // A refusal would break the device. The driver's memory stays: other queues use it.
            log::warn!("queue {number} is disabled, but the disk does not finish its requests");
        }
        Answer::Ok
    }

    fn suspend(&mut self, deadline: Instant) -> Answer {
        // Ignored before the device is set up (virtio 1.4, 2.1.2): nothing runs.
        if !self.status.is_live() {
            return Answer::Ok;
        }
        // The VMM may continue with another server of this medium.
        if !self.start_unfinished(deadline)
            || !self.stop(|_| true, Stop::Drain, deadline)
            || !self.release_medium(deadline)
        {
            self.start_wanted();
            return Answer::Failed;
        }
        self.state.set_suspended();
        Answer::Ok
    }
}

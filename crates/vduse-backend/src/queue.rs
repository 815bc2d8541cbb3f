// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtio_blk_core::device::{Device, StartError};
use virtio_blk_core::memory::Iotlb;
use virtio_blk_core::ring::{QueueState, RingError};
use virtio_blk_core::runner::{
    InFlightError, QueueError as BrokenBy, QueueSet, QueueSetup, Stopped, ThreadOptions,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::affinity::{Pace, Placement};
use crate::kernel::{DeviceFile, Kernel, VqInfo};
use crate::state::{Place, State};

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("{0} descriptors: no queue has so many")]
    Size(u32),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the in-flight area can't be used: {0}")]
    InFlight(#[from] InFlightError),
    #[error("no eventfd for its kicks: {0}")]
    Kick(#[source] io::Error),
    #[error("no thread: {0}")]
    Thread(#[source] io::Error),
}

impl QueueError {
    /// Whether the cause may pass by itself (no descriptor, no thread), and is not what the driver has set up.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Kick(_) | Self::Thread(_) | Self::Start(StartError::Disk(_)) => true,
            Self::Size(_) | Self::Ring(_) | Self::Start(_) | Self::InFlight(_) => false,
        }
    }
}

/// What queues have in common.
pub(crate) struct Context<'a> {
    pub(crate) kernel: &'a dyn Kernel,
    pub(crate) name: &'a str,
    pub(crate) device: &'a Device,
    pub(crate) file: &'a Arc<dyn DeviceFile>,
    pub(crate) memory: Iotlb,
    pub(crate) state: &'a State,
    pub(crate) threads: &'a mut Threads,
    pub(crate) poll: Duration,
    pub(crate) pin: bool,
    /// Closed when the driver must not be interrupted any more by queues that were started with it.
    pub(crate) gate: &'a Gate,
    /// Signalled when the session has something to do.
    pub(crate) wake: &'a Arc<EventFd>,
}

/// Whether queues may interrupt the driver.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn open() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub(crate) fn close(&self) {
        self.0.store(false, Ordering::Release);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Interrupts the driver for one queue.
struct Irq {
    file: Arc<dyn DeviceFile>,
    index: u16,
    gate: Gate,
    refused: Arc<AtomicBool>,
    wake: Arc<EventFd>,
}

impl Irq {
    fn raise(&self) {
        if !self.gate.is_open() {
            return;
        }
        if let Err(error) = self.file.inject_irq(self.index) {
            log::debug!("queue {}: no interrupt: {error}", self.index);
            // The kernel's status shows DRIVER_OK only after the message was answered; the queue may have been
            // faster.
            self.refused.store(true, Ordering::Release);
            // The counter can't overflow.
            let _ = self.wake.write(1);
        }
    }
}

/// The threads of the queues.
pub(crate) type Threads = QueueSet<Iotlb>;

/// What a queue should do, as the driver has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing: there is no driver, or the queue is disabled, or broken.
    #[default]
    Rest,
    /// Run if it is enabled, which the kernel knows.
    IfReady,
    /// Run, as soon as it is enabled: it ran before, or a message says that it is about to be enabled.
    Run,
}

/// One queue. Where it stands is in the record.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) wish: Wish,
    /// The kernel refused an interrupt.
    refused: Arc<AtomicBool>,
}

impl Queue {
    pub(crate) fn should_run(&self) -> bool {
        self.wish != Wish::Rest
    }

    /// Starts the queue as the driver has set it up, from where the record says.
    pub(crate) fn start(
        &mut self,
        index: u16,
        info: &VqInfo,
        context: &mut Context<'_>,
    ) -> Result<(), QueueError> {
        let place = context.state.place(index);
        let driver = match context.pin {
            true => context.kernel.vq_cpus(context.name, index).ok(),
            false => None,
        };
        let placement = Placement::of_thread(driver.as_ref(), context.poll);
        let counters = context.device.counters(index).filter(|_| placement.alone);
        let pace = counters.map(Pace::new);
        let irq = self.irq(index, context);
        let mut setup = QueueSetup::new(context.memory.clone(), move || {
            if let Some(pace) = &pace {
                pace.tick();
            }
            irq.raise();
        });
        let (state, gap) = position(index, place, info, context, &mut setup)?;
        let runner = context.device.start_queue(index, setup, state)?;
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(QueueError::Kick)?;
        let kicked = context.file.set_kick(index, Some(&kick));
        kicked.map_err(QueueError::Kick)?;
        let gate = context.gate.clone();
        let options = ThreadOptions {
            name: format!("vblk-queue{index}"),
            poll: placement.poll,
            on_fatal: Box::new(move |error| {
                // A queue that was cut off finds zeroes where its ring was.
                if gate.is_open() {
                    log::error!(
                        "queue {index} stopped until the driver resets the device: {error}"
                    );
                }
            }),
        };
        // Before it takes anything.
        context.state.set_place(index, Place::Started { gap });
        let started = context.threads.start(index, runner, kick, options);
        started.map_err(QueueError::Thread)?;
        context.threads.post(index, move |_| placement.apply());
        if place != Place::Fresh {
            // An earlier server may have ended between its last used entry and the interrupt.
            self.irq(index, context).raise();
        }
        log::debug!("queue {index} started at {}", state.next_avail);
        Ok(())
    }

    fn irq(&self, index: u16, context: &Context<'_>) -> Irq {
        Irq {
            file: context.file.clone(),
            index,
            gate: context.gate.clone(),
            refused: self.refused.clone(),
            wake: context.wake.clone(),
        }
    }

    /// Interrupts the driver if the kernel refused that before. Returns whether it refuses it again.
    pub(crate) fn retry_irq(&self, index: u16, file: &dyn DeviceFile) -> bool {
        if self.refused.swap(false, Ordering::AcqRel) && file.inject_irq(index).is_err() {
            self.refused.store(true, Ordering::Release);
        }
        self.refused.load(Ordering::Acquire)
    }

    /// Notes where queue `index` stands, which has stopped; `None`: its thread panicked.
    pub(crate) fn set_stopped(&mut self, index: u16, state: &State, stopped: Option<&Stopped>) {
        // Unless it is noted where it stands, it stands where the log says.
        let Some(stopped) = stopped else {
            self.wish = Wish::Rest;
            return;
        };
        let sound = matches!(stopped.error, None | Some(BrokenBy::Disk(_)));
        if sound && stopped.in_flight.is_empty() {
            state.set_place(index, Place::Stopped(stopped.state.next_avail));
        }
        // One that broke starts again after a reset, not before.
        if stopped.error.is_some() {
            self.wish = Wish::Rest;
        }
    }
}

/// Where queue `index` starts, and how many entries lie between the requests that its log has in flight, which
/// `setup` executes again, and the next one. Fails also for a ring that can't be looked at.
fn position(
    index: u16,
    place: Place,
    info: &VqInfo,
    context: &Context<'_>,
    setup: &mut QueueSetup<Iotlb>,
) -> Result<(QueueState, u16), QueueError> {
    let size = u16::try_from(info.num).map_err(|_| QueueError::Size(info.num))?;
    let mut state = QueueState {
        max_size: context.state.shape().abi.queue_size,
        size,
        ready: true,
        desc_table: info.descriptor,
        avail_ring: info.driver,
        used_ring: info.device,
        ..QueueState::default()
    };
    // The index lies behind no entry that the size decides on.
    state.next_used = setup.used_index(&state)?;
    let replayed = setup.keep_log(context.state.log(index, size)?, 0, &state)?;
    state.next_avail = match place {
        Place::Fresh => info.avail_index,
        Place::Started { gap } => {
            let taken = gap.wrapping_add(replayed);
            state.next_used.wrapping_add(taken)
        }
        Place::Stopped(next_avail) => next_avail,
    };
    let taken = state.next_avail.wrapping_sub(state.next_used);
    Ok((state, taken.wrapping_sub(replayed)))
}

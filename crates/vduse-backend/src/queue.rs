// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue and its thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_blk_core::device::{Device, StartError};
use virtio_blk_core::memory::{GuestMap, Iotlb};
use virtio_blk_core::ring::{RingError, SplitRing};
use virtio_blk_core::runner::{
    InFlightArea, InFlightError, InFlightLog, QueueSetup, QueueThread, Stop, ThreadOptions,
};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::affinity::{Pace, Placement};
use crate::kernel::{DeviceFile, Kernel, VqInfo};

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("the kernel does not tell how it is set up: {0}")]
    Info(#[source] io::Error),
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

/// Where a queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// Where the driver said, after a reset.
    Driver,
    /// Where it was stopped, with nothing in flight.
    Stopped(u16),
    /// Where a server that died was: the in-flight area knows.
    Log,
}

/// What queues have in common.
pub(crate) struct Context<'a> {
    pub(crate) kernel: &'a dyn Kernel,
    pub(crate) name: &'a str,
    pub(crate) device: &'a Device,
    pub(crate) file: &'a Arc<dyn DeviceFile>,
    pub(crate) memory: Iotlb,
    pub(crate) area: &'a InFlightArea,
    pub(crate) poll: Duration,
    pub(crate) pin: bool,
    /// Closed when the driver must hear nothing more of the queues that were started with it.
    pub(crate) gate: &'a Gate,
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

/// The thread of a queue.
pub(crate) type Worker = QueueThread<Iotlb>;

/// One queue.
#[derive(Default)]
pub(crate) struct Queue {
    /// It should run: enabled, and the driver is ready.
    pub(crate) wanted: bool,
    worker: Option<Worker>,
    /// A stop was begun.
    stopping: bool,
    /// The next available index where it was stopped, or that it can't tell (it never ran).
    stopped_at: Option<u16>,
    /// Not before this moment.
    pub(crate) not_before: Option<Instant>,
}

impl Queue {
    pub(crate) fn is_idle(&self) -> bool {
        self.worker.is_none()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.worker.is_some() && !self.stopping
    }

    /// The next available index, while it does not run.
    pub(crate) fn next_avail(&self) -> u16 {
        self.stopped_at.unwrap_or_default()
    }

    /// Where to go on if it was stopped and not reset.
    pub(crate) fn from(&self) -> From {
        self.stopped_at.map_or(From::Driver, From::Stopped)
    }

    /// Starts the queue as the driver has set it up.
    pub(crate) fn start(
        &mut self,
        index: u16,
        from: From,
        context: &Context<'_>,
    ) -> Result<(), QueueError> {
        let info = context.file.vq_info(index).map_err(QueueError::Info)?;
        let (state, log, replay) = position(index, from, &info, context)?;
        let driver = match context.pin {
            true => context.kernel.vq_cpus(context.name, index).ok(),
            false => None,
        };
        let placement = Placement::of_thread(driver.as_ref(), context.poll);
        let counters = context.device.counters(index).filter(|_| placement.alone);
        let pace = counters.map(Pace::new);
        let (file, gate) = (context.file.clone(), context.gate.clone());
        let mut setup = QueueSetup::new(context.memory.clone(), move || {
            if let Some(pace) = &pace {
                pace.tick();
            }
            if gate.is_open()
                && let Err(error) = file.inject_irq(index)
            {
                log::debug!("queue {index}: no interrupt: {error}");
            }
        });
        setup.log = Some(log);
        setup.replay = replay;
        let runner = context.device.start_queue(index, setup, &state)?;
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
        let worker = QueueThread::spawn(runner, kick, options).map_err(QueueError::Thread)?;
        worker.post(move |_| placement.apply());
        if from == From::Log {
            // The dead server may have ended between its last used entry and the interrupt.
            let _ = context.file.inject_irq(index);
        }
        self.worker = Some(worker);
        self.stopping = false;
        self.not_before = None;
        log::debug!("queue {index} started at {}", state.next_avail);
        Ok(())
    }

    /// Begins to stop, if it runs and does not stop yet.
    pub(crate) fn begin_stop(&mut self, mode: Stop, wake: &Arc<EventFd>) {
        if let Some(worker) = self.worker.as_ref().filter(|_| !self.stopping) {
            let wake = wake.clone();
            worker.begin_stop(mode, move || {
                // The counter can't overflow.
                let _ = wake.write(1);
            });
            self.stopping = true;
        }
    }

    /// Waits for a stop that was begun. Answers whether the queue stands still.
    pub(crate) fn wait_stopped(&mut self, deadline: Instant) -> bool {
        let Some(worker) = self.worker.take() else {
            return true;
        };
        if !worker.wait_stopped(deadline) {
            self.worker = Some(worker);
            return false;
        }
        if let Some(stopped) = worker.stop(Stop::HandOver) {
            self.stopped_at = Some(stopped.state.next_avail);
            if stopped.error.is_some() {
                // It goes on after a reset, not before.
                self.wanted = false;
            }
        } else {
            log::error!("a queue's thread panicked");
            self.wanted = false;
        }
        self.stopping = false;
        true
    }

    /// Takes a changed address space over, as soon as the queue's thread gets to it.
    pub(crate) fn remap(&self) {
        if let Some(worker) = &self.worker {
            // A ring that is not mapped any more stops the queue, and says so itself.
            worker.post(|runner| {
                let _ = runner.remap();
            });
        }
    }

    /// Gives up a queue that can't stop in time.
    pub(crate) fn abandon(&mut self) -> Option<Worker> {
        self.stopping = false;
        self.worker.take()
    }
}

/// State, log and heads to execute again.
type Position = (QueueState, Box<dyn InFlightLog>, Vec<u16>);

fn position(
    index: u16,
    from: From,
    info: &VqInfo,
    context: &Context<'_>,
) -> Result<Position, QueueError> {
    let size = u16::try_from(info.num).map_err(|_| QueueError::Size(info.num))?;
    let mut state = QueueState {
        max_size: context.device.options().queue_size,
        size,
        ready: true,
        next_avail: info.avail_index,
        desc_table: info.descriptor,
        avail_ring: info.driver,
        used_ring: info.device,
        ..QueueState::default()
    };
    // The index lies behind no entry that the size decides on.
    state.next_used = SplitRing::used_index(&GuestMap::new(context.memory.clone()), &state)?;
    let (log, heads) = context.area.queue(index, size, state.next_used)?;
    match from {
        From::Driver => {}
        From::Stopped(next_avail) => state.next_avail = next_avail,
        From::Log => state.next_avail = state.next_used.wrapping_add(heads.len() as u16),
    }
    Ok((state, Box::new(log), heads))
}

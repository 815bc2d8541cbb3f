// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One queue of a strict device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_blk_core::disk::Wait;
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::runner::{QueueRunner, Service, Stop, Stopped};

use crate::address_space::MissTable;
use crate::callback::VqCallback;
use crate::lock;
use crate::model::Work;
use crate::notifier::Watch;

/// A runner over a table, or over one that misses by plan.
pub(super) enum Engine {
    Direct(QueueRunner<Arc<IotlbTable>>),
    Missing(QueueRunner<Arc<MissTable>>),
}

/// The same call on either.
macro_rules! either {
    ($engine:expr, $runner:ident => $call:expr) => {
        match $engine {
            Engine::Direct($runner) => $call,
            Engine::Missing($runner) => $call,
        }
    };
}

/// A running queue.
pub(super) struct Running {
    pub(super) engine: Engine,
    /// The disk's descriptor, where a worker sleeps.
    pub(super) watch: Option<Watch>,
    /// Suspended with requests in flight, by a fault plan.
    pub(super) paused: bool,
    broken: bool,
}

impl Running {
    pub(super) const fn new(engine: Engine, watch: Option<Watch>) -> Self {
        Self {
            engine,
            watch,
            paused: false,
            broken: false,
        }
    }

    pub(super) fn stop(self, mode: Stop) -> Stopped {
        either!(self.engine, runner => runner.stop(mode))
    }

    /// What is to be done for requests in flight.
    #[cold]
    fn work_in_flight(&self) -> Work {
        match either!(&self.engine, runner => runner.wait()) {
            Wait::Poll => Work::More,
            Wait::Fd(_) | Wait::Inline => Work::InFlight,
        }
    }

    /// The index of the next buffer to take.
    pub(super) fn next_avail(&self) -> u16 {
        either!(&self.engine, runner => runner.state()).next_avail
    }
}

/// What the worker and the control side share of a queue.
pub(super) struct Queue {
    slot: Mutex<Option<Running>>,
    /// The control side wants the queue: the worker lets it go first.
    wanted: AtomicBool,
    /// Requests are in flight.
    busy: AtomicBool,
    pub(super) callback: Arc<VqCallback>,
}

impl Queue {
    pub(super) fn new(callback: VqCallback) -> Self {
        Self {
            slot: Mutex::new(None),
            wanted: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            callback: Arc::new(callback),
        }
    }

    /// The queue, for the control side, whose lock the caller holds: the worker stays out until that is
    /// released.
    pub(super) fn control(&self) -> MutexGuard<'_, Option<Running>> {
        self.wanted.store(true, Ordering::Relaxed);
        let slot = lock(&self.slot);
        self.wanted.store(false, Ordering::Relaxed);
        slot
    }

    /// Whether the worker is to wait for the control side. Without, a busy worker that takes the lock again
    /// and again could keep it out for long.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// One pass. `None` if the queue broke in it.
    #[inline]
    pub(super) fn serve(&self, budget: usize) -> Option<Work> {
        let mut slot = lock(&self.slot);
        let Some(running) = slot.as_mut().filter(|r| !r.paused && !r.broken) else {
            self.busy.store(false, Ordering::Relaxed);
            return Some(Work::Idle);
        };
        let (answer, in_flight) = either!(&mut running.engine, runner => {
            (runner.service(budget), runner.in_flight())
        });
        self.busy.store(in_flight != 0, Ordering::Relaxed);
        match answer {
            Service::Idle if in_flight == 0 => Some(Work::Idle),
            Service::Idle => Some(running.work_in_flight()),
            Service::More => Some(Work::More),
            Service::WaitUntil(at) => Some(Work::Until(at)),
            Service::Fatal => {
                running.broken = true;
                // Nobody collects from the disk any more: it would ring for ever.
                running.watch = None;
                self.busy.store(false, Ordering::Relaxed);
                None
            }
        }
    }
}

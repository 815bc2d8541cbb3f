// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Execution of the guest's queues while they are on the slow path.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use virtio_blk_core::memory::DeviceMemory;
use virtio_blk_core::runner::{
    QueueRunner, QueueThread, StandbyThread, Stop, Stopped, ThreadOptions,
};
use vmm_sys_util::eventfd::EventFd;

/// Serves queues: with threads ([`ThreadExecutor`]), or from a VMM's own event loop. The methods are called with the
/// switch locked: neither they nor the code that serves a queue may call the switch, except for
/// [`PathSwitch::status`](super::PathSwitch::status) and [`PathSwitch::read_config`](super::PathSwitch::read_config).
pub trait QueueExecutor<M: DeviceMemory>: Send {
    /// Starts to serve `runner`: at once, without waiting for a kick, then whenever `kick` or the runner's disk is
    /// readable. A queue that breaks ([`Service::Fatal`](virtio_blk_core::runner::Service::Fatal)) is left until it is
    /// stopped; the switch has told the guest by then. So it has if the thread of a
    /// [`QueueThread`] panics; another executor has to stop such a queue.
    ///
    /// # Errors
    /// A thread or descriptor could not be had. The runner was dropped without having been served.
    fn start(&mut self, index: u16, runner: QueueRunner<M>, kick: Arc<EventFd>) -> io::Result<()>;

    /// Opens or closes the queue's intake ([`QueueRunner::set_intake`]). A queue whose intake was opened must be served at
    /// once.
    fn set_intake(&mut self, index: u16, open: bool);

    /// Returns the number of requests in flight ([`QueueRunner::in_flight`]), 0 for a queue that is not served.
    fn in_flight(&mut self, index: u16) -> usize;

    /// Announces [`QueueExecutor::stop`], which follows when all queues to be stopped were announced. An implementation
    /// that stops queues on their own threads begins here, so that they stop at the same time.
    fn begin_stop(&mut self, index: u16, mode: Stop) {
        let _ = (index, mode);
    }

    /// Stops serving the queue and returns where it stands. `None` if that is not known (a panic): the guest must reset its
    /// device then.
    fn stop(&mut self, index: u16, mode: Stop) -> Option<Stopped>;
}

/// Serves each queue on a thread of its own, which is made when the queue is first served, or before by
/// [`ThreadExecutor::prepare`]. It stays, and sleeps while the guest is on the fast path: woken, it runs sooner than a thread
/// that would have to be made for each move.
pub struct ThreadExecutor<M: DeviceMemory> {
    /// Of the queues that are served. Stopped before their threads end.
    threads: Vec<(u16, QueueThread<M>)>,
    standby: Vec<(u16, StandbyThread)>,
    poll: Duration,
}

impl<M: DeviceMemory> ThreadExecutor<M> {
    /// Makes an executor whose threads poll for `poll` before they sleep.
    pub const fn new(poll: Duration) -> Self {
        Self {
            threads: Vec::new(),
            standby: Vec::new(),
            poll,
        }
    }

    /// Makes the threads of the first `queues` queues now, so that none is made later, on the thread that moves the guest:
    /// for a VMM whose threads may make none once the guest runs.
    ///
    /// # Errors
    /// A thread could not be had.
    pub fn prepare(&mut self, queues: u16) -> io::Result<()> {
        (0..queues).try_for_each(|index| self.standby(index).map(drop))
    }

    /// The thread of a queue.
    fn standby(&mut self, index: u16) -> io::Result<&StandbyThread> {
        let known = self.standby.iter().position(|(found, _)| *found == index);
        let at = match known {
            Some(at) => at,
            None => {
                let thread = StandbyThread::spawn(format!("vdpa-slow{index}"))?;
                self.standby.push((index, thread));
                self.standby.len() - 1
            }
        };
        Ok(&self.standby[at].1)
    }

    fn find(&self, index: u16) -> Option<&QueueThread<M>> {
        let found = self.threads.iter().find(|(found, _)| *found == index);
        found.map(|(_, thread)| thread)
    }
}

impl<M: DeviceMemory> QueueExecutor<M> for ThreadExecutor<M> {
    fn start(&mut self, index: u16, runner: QueueRunner<M>, kick: Arc<EventFd>) -> io::Result<()> {
        let options = ThreadOptions {
            name: String::new(),
            poll: self.poll,
            // The guest is told by the switch, which the device model tells.
            on_fatal: Box::new(move |error| log::error!("queue {index}: {error}")),
        };
        let thread = self.standby(index)?;
        let thread = QueueThread::serve_on(thread, runner, kick.try_clone()?, options)?;
        self.threads.push((index, thread));
        Ok(())
    }

    fn set_intake(&mut self, index: u16, open: bool) {
        if let Some(thread) = self.find(index) {
            // `in_flight` is asked for after this was done.
            thread.post(move |runner| runner.set_intake(open));
        }
    }

    fn in_flight(&mut self, index: u16) -> usize {
        self.find(index)
            .and_then(|thread| thread.with(|runner| runner.in_flight()))
            .unwrap_or(0)
    }

    fn begin_stop(&mut self, index: u16, mode: Stop) {
        if let Some(thread) = self.find(index) {
            thread.begin_stop(mode, || {});
        }
    }

    fn stop(&mut self, index: u16, mode: Stop) -> Option<Stopped> {
        let at = self.threads.iter().position(|(found, _)| *found == index)?;
        self.threads.swap_remove(at).1.stop(mode)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads that serve the queues of one device.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::{Medium, QueueRunner, QueueThread, Stop, Stopped, ThreadOptions};
use crate::memory::DeviceMemory;

/// The queues of one device, by index, each on a thread of its own ([`QueueThread`]) while it runs, and the use that
/// they make of the disk.
///
/// A transport takes the disk into use ([`Medium::take`] of [`QueueSet::medium`]), starts a queue
/// ([`Device::start_queue`], then [`QueueSet::start`]), stops queues with one deadline for all of them
/// ([`QueueSet::stop`]), and releases the disk once none runs ([`QueueSet::release`]). What the disk does not let go of
/// by the deadline either stays in the set, and is waited for later ([`QueueSet::wait_stopped`]), or is left behind
/// ([`QueueSet::leave_behind`]).
///
/// A queue that breaks, and one whose thread panics, calls its [`ThreadOptions::on_fatal`] at once. It stays in the set,
/// serving nothing, until it is stopped.
///
/// Dropping the set stops all queues with [`Stop::HandOver`], waits for them without a deadline, and releases the disk.
/// A transport that must not wait leaves them behind first.
///
/// [`Device::start_queue`]: crate::device::Device::start_queue
pub struct QueueSet<M: DeviceMemory> {
    queues: Vec<Option<Running<M>>>,
    medium: Medium,
    on_stopped: Arc<dyn Fn() + Send + Sync>,
}

struct Running<M: DeviceMemory> {
    thread: QueueThread<M>,
    /// The stop that was begun.
    stopping: Option<Stop>,
}

impl<M: DeviceMemory> QueueSet<M> {
    /// A set of `queues`, none of which runs. `on_stopped` is called each time a queue that was told to stop has
    /// stopped, on its thread; it must not block.
    pub fn new(medium: Medium, queues: u16, on_stopped: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            queues: (0..queues).map(|_| None).collect(),
            medium,
            on_stopped: Arc::new(on_stopped),
        }
    }

    /// The disk that the queues use.
    pub const fn medium(&self) -> &Medium {
        &self.medium
    }

    /// Serves `runner` as queue `index` on a new thread, as [`QueueThread::spawn`] says. The disk is in use.
    ///
    /// # Errors
    /// As for [`QueueThread::spawn`]; or the set has no such queue, or it has not stopped. The runner was dropped.
    pub fn start(
        &mut self,
        index: u16,
        runner: QueueRunner<M>,
        kick: EventFd,
        options: ThreadOptions,
    ) -> io::Result<()> {
        let queues = self.queues.len();
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            let text = format!("queue {index} of a device with {queues}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        if queue.is_some() {
            let text = format!("queue {index} has not stopped");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        *queue = Some(Running {
            thread: QueueThread::spawn(runner, kick, options)?,
            stopping: None,
        });
        Ok(())
    }

    fn get(&self, index: u16) -> Option<&Running<M>> {
        self.queues.get(usize::from(index))?.as_ref()
    }

    /// Whether queue `index` has a thread, which may be about to stop.
    pub fn is_running(&self, index: u16) -> bool {
        self.get(index).is_some()
    }

    /// Whether queue `index` was told to stop and was not seen to have stopped.
    pub fn is_stopping(&self, index: u16) -> bool {
        self.get(index)
            .is_some_and(|running| running.stopping.is_some())
    }

    /// Whether no queue has a thread. Queues that were left behind don't count: [`Medium::left_behind`] does.
    pub fn is_idle(&self) -> bool {
        self.queues.iter().all(Option::is_none)
    }

    /// Runs `call` on the thread of queue `index`, as [`QueueThread::post`] does. Dropped if it has none.
    pub fn post(&self, index: u16, call: impl FnOnce(&mut QueueRunner<M>) + Send + 'static) {
        if let Some(running) = self.get(index) {
            running.thread.post(call);
        }
    }

    /// Has all queues take over a changed memory map ([`QueueRunner::remap`]), and does not wait. The result's sender is
    /// gone once all have. A queue whose ring is not mapped any more breaks, and says so itself.
    pub fn remap(&self) -> Receiver<()> {
        let (done, wait) = channel();
        for running in self.queues.iter().flatten() {
            let done = done.clone();
            running.thread.post(move |runner| {
                let _ = runner.remap();
                drop(done);
            });
        }
        wait
    }

    /// Has those queues stop that `which` chooses by index, and does not wait. A drain that was begun is cut short by
    /// [`Stop::HandOver`]; nothing else changes a stop that was begun.
    pub fn begin_stop(&mut self, which: impl Fn(u16) -> bool, mode: Stop) {
        for (index, queue) in (0..).zip(&mut self.queues) {
            let Some(running) = queue.as_mut().filter(|_| which(index)) else {
                continue;
            };
            if running.stopping == Some(mode) || running.stopping == Some(Stop::HandOver) {
                continue;
            }
            running.stopping = Some(mode);
            let on_stopped = self.on_stopped.clone();
            running.thread.begin_stop(mode, move || on_stopped());
        }
    }

    /// Waits until `deadline` for those queues that `which` chooses and that were told to stop. `each` is told where
    /// each of them stands as it is taken out of the set; `None`: its thread panicked, and it is not known. Returns
    /// those that have not stopped: they stay in the set.
    pub fn wait_stopped(
        &mut self,
        which: impl Fn(u16) -> bool,
        deadline: Instant,
        mut each: impl FnMut(u16, Option<Stopped>),
    ) -> Vec<u16> {
        let mut late = Vec::new();
        for (index, queue) in (0..).zip(&mut self.queues) {
            let stopping = |running: &mut Running<M>| running.stopping.is_some() && which(index);
            let Some(running) = queue.take_if(stopping) else {
                continue;
            };
            if running.thread.wait_stopped(deadline) {
                each(index, running.thread.stop(Stop::HandOver));
            } else {
                late.push(index);
                *queue = Some(running);
            }
        }
        late
    }

    /// As [`QueueSet::begin_stop`] and [`QueueSet::wait_stopped`].
    pub fn stop(
        &mut self,
        which: impl Fn(u16) -> bool,
        mode: Stop,
        deadline: Instant,
        each: impl FnMut(u16, Option<Stopped>),
    ) -> Vec<u16> {
        self.begin_stop(&which, mode);
        self.wait_stopped(which, deadline, each)
    }

    /// Takes those queues that `which` chooses out of the set without waiting for them, as [`QueueThread::detach_all`]
    /// does: nothing is written to their rings any more. The disk stays in use until it has let go of them
    /// ([`Medium::left_behind`]).
    pub fn leave_behind(&mut self, which: impl Fn(u16) -> bool) {
        let mut threads = Vec::new();
        for (index, queue) in (0..).zip(&mut self.queues) {
            let Some(Running { thread, .. }) = queue.take_if(|_| which(index)) else {
                continue;
            };
            let left_behind = self.medium.leave_behind();
            thread.begin_stop(Stop::HandOver, move || drop(left_behind));
            threads.push(thread);
        }
        QueueThread::detach_all(threads);
    }

    /// Lets go of the disk if no queue runs, and waits for that until `deadline`. `None`: what it held in memory is not
    /// stable yet. Queues that were left behind are not waited for: the disk is let go of once they have ended.
    ///
    /// # Errors
    /// As for [`Medium::wait_left`].
    pub fn release(&self, deadline: Instant) -> Option<Result<(), String>> {
        if !self.is_idle() {
            return Some(Ok(()));
        }
        self.medium.want(false);
        if self.medium.left_behind() != 0 {
            return Some(Ok(()));
        }
        self.medium.wait_left(deadline)
    }
}

impl<M: DeviceMemory> Drop for QueueSet<M> {
    fn drop(&mut self) {
        self.begin_stop(|_| true, Stop::HandOver);
        self.queues.clear();
        self.medium.want(false);
    }
}

#[cfg(test)]
mod tests;

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue in an `event-manager` loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::{OnFatal, QueueError, QueueRunner, Service, Stop, Stopped};
use crate::disk::Wait;
use crate::memory::DeviceMemory;

/// New requests taken per event, before other subscribers get their turn.
const BUDGET: usize = 256;

/// Serves one queue from an `event_manager::EventManager`. Add it as a subscriber; the ring is scanned
/// when it is initialised. To stop: remove it from the manager, then [`QueueSubscriber::stop`].
pub struct QueueSubscriber<M: DeviceMemory> {
    runner: Option<QueueRunner<M>>,
    kick: EventFd,
    /// The disk's descriptor: one of our own, as the disk's is closed when its queue breaks, and a closed
    /// descriptor can't be taken out of the loop any more.
    disk: Option<OwnedFd>,
    /// Brings the loop back when a pass ended early.
    again: EventFd,
    timer: TimerFd,
    on_fatal: Option<OnFatal>,
}

impl<M: DeviceMemory> QueueSubscriber<M> {
    /// A subscriber that serves `runner` when `kick` (non-blocking) or the disk fires. `on_fatal` is
    /// called once when the queue broke.
    ///
    /// # Errors
    /// No descriptor could be had; the queue was dropped.
    pub fn new(runner: QueueRunner<M>, kick: EventFd, on_fatal: OnFatal) -> io::Result<Self> {
        let disk = match runner.wait() {
            Wait::Fd(fd) => Some(fd.try_clone_to_owned()?),
            Wait::Poll | Wait::Inline => None,
        };
        Ok(Self {
            runner: Some(runner),
            kick,
            disk,
            again: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            timer: TimerFd::new().map_err(io::Error::from)?,
            on_fatal: Some(on_fatal),
        })
    }

    /// The queue, unless it was stopped.
    pub fn runner(&mut self) -> Option<&mut QueueRunner<M>> {
        self.runner.as_mut()
    }

    /// Stops the queue. `None` if it was stopped before.
    pub fn stop(&mut self, mode: Stop) -> Option<Stopped> {
        Some(self.runner.take()?.stop(mode))
    }

    /// Brings the loop back at `at`.
    fn wake_at(&mut self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        // Zero would disarm it.
        let left = left.max(Duration::from_micros(1));
        if self.timer.reset(left, None).is_err() {
            let _ = self.again.write(1);
        }
    }

    /// Serves the queue. `false` once that has no sense any more.
    fn serve(&mut self) -> bool {
        let Some(runner) = &mut self.runner else {
            return false;
        };
        let next = runner.service(BUDGET);
        let polled = matches!(runner.wait(), Wait::Poll) && runner.in_flight() != 0;
        match next {
            Service::Idle if !polled => {}
            Service::Idle | Service::More => {
                let _ = self.again.write(1);
            }
            Service::WaitUntil(_) if polled => {
                let _ = self.again.write(1);
            }
            Service::WaitUntil(at) => self.wake_at(at),
            Service::Fatal => {
                if let (Some(tell), Some(error)) = (self.on_fatal.take(), runner.error()) {
                    tell(error);
                }
                if runner.in_flight() == 0 {
                    return false;
                }
                // What the disk still has is collected.
                if polled {
                    let _ = self.again.write(1);
                } else if let Some(at) = runner.deadline() {
                    self.wake_at(at);
                }
            }
        }
        true
    }
}

impl<M: DeviceMemory> MutEventSubscriber for QueueSubscriber<M> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.kick.as_raw_fd() {
            let _ = self.kick.read();
        } else if fd == self.again.as_raw_fd() {
            let _ = self.again.read();
        } else if fd == self.timer.as_raw_fd() {
            // Not read: that would block if the timer was set again since it fired.
            let _ = self.timer.clear();
        }
        // Nobody collects from the disk any more: it would ring for ever.
        if !self.serve()
            && let Some(fd) = self.disk.take()
        {
            let _ = ops.remove(Events::new(&fd, EventSet::IN));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let fds = [
            Some(self.kick.as_raw_fd()),
            Some(self.again.as_raw_fd()),
            Some(self.timer.as_raw_fd()),
            self.disk.as_ref().map(AsRawFd::as_raw_fd),
        ];
        for fd in fds.into_iter().flatten() {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN))
                && let Some(tell) = self.on_fatal.take()
            {
                return tell(&QueueError::Watch(io::Error::other(error)));
            }
        }
        let _ = self.again.write(1);
    }
}

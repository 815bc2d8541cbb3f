// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread that serves one queue.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::wait::poll_timeout;
use super::{OnFatal, QueueRunner, Service, Stop, Stopped};
use crate::disk::Wait;
use crate::memory::DeviceMemory;

/// New requests taken per pass, before control calls get their turn.
const BUDGET: usize = 256;

/// How a queue's thread behaves.
pub struct ThreadOptions {
    /// The thread's name, at most 15 bytes of it shown by the system.
    pub name: String,
    /// How long to look for new work without sleeping after the last; zero: sleep at once. Burns a CPU
    /// for that time, also while the disk is slow, and no longer.
    pub poll: Duration,
    /// Called once, on the thread, when the queue broke.
    pub on_fatal: OnFatal,
}

type Call<M> = Box<dyn FnOnce(&mut QueueRunner<M>) + Send>;

struct Control<M: DeviceMemory> {
    wake: EventFd,
    /// Set before each wake, so that a busy thread need not ask the kernel.
    pending: AtomicBool,
    /// `None` once the thread is gone.
    calls: Mutex<Option<Vec<Call<M>>>>,
    stop: Mutex<Option<Stop>>,
}

impl<M: DeviceMemory> Control<M> {
    fn signal(&self) {
        self.pending.store(true, Ordering::Release);
        // The counter can't overflow: the thread reads it whenever it is set.
        let _ = self.wake.write(1);
    }
}

/// A queue on a thread of its own. Dropping it stops the queue with [`Stop::HandOver`].
pub struct QueueThread<M: DeviceMemory> {
    control: Arc<Control<M>>,
    thread: Option<JoinHandle<Stopped>>,
}

impl<M: DeviceMemory> QueueThread<M> {
    /// Serves `runner` on a new thread: at once, then whenever `kick` (non-blocking) or the disk fires.
    ///
    /// # Errors
    /// No thread or eventfd could be had; the queue was dropped.
    pub fn spawn(
        runner: QueueRunner<M>,
        kick: EventFd,
        options: ThreadOptions,
    ) -> io::Result<Self> {
        let control = Arc::new(Control {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            pending: AtomicBool::new(false),
            calls: Mutex::new(Some(Vec::new())),
            stop: Mutex::new(None),
        });
        let worker = Worker {
            runner,
            kick,
            control: control.clone(),
            poll: options.poll,
            on_fatal: Some(options.on_fatal),
            activity: (0, 0),
            quiet_since: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name(options.name)
            .spawn(move || worker.run())?;
        Ok(Self {
            control,
            thread: Some(thread),
        })
    }

    /// Runs `call` on the queue's thread, between two passes, and waits for it. `None` if the thread is
    /// gone.
    pub fn with<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut QueueRunner<M>) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let call: Call<M> = Box::new(move |runner| {
            // The receiver waits below.
            let _ = sender.send(call(runner));
        });
        lock(&self.control.calls).as_mut()?.push(call);
        self.control.signal();
        receiver.recv().ok()
    }

    /// Stops the queue and ends the thread. `None` if the thread panicked (a bug in a disk).
    pub fn stop(mut self, mode: Stop) -> Option<Stopped> {
        self.end(mode)
    }

    fn end(&mut self, mode: Stop) -> Option<Stopped> {
        *lock(&self.control.stop) = Some(mode);
        self.control.signal();
        self.thread.take()?.join().ok()
    }
}

impl<M: DeviceMemory> Drop for QueueThread<M> {
    fn drop(&mut self) {
        self.end(Stop::HandOver);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dropped when the thread ends, also by a panic: whoever waits for a call learns that it won't happen.
struct Leaving<M: DeviceMemory>(Arc<Control<M>>);

impl<M: DeviceMemory> Drop for Leaving<M> {
    fn drop(&mut self) {
        *lock(&self.0.calls) = None;
    }
}

struct Worker<M: DeviceMemory> {
    runner: QueueRunner<M>,
    kick: EventFd,
    control: Arc<Control<M>>,
    poll: Duration,
    on_fatal: Option<OnFatal>,
    /// What the queue had done when it last did something, and when that was noticed.
    activity: (u64, usize),
    quiet_since: Instant,
}

impl<M: DeviceMemory> Worker<M> {
    fn run(mut self) -> Stopped {
        let _leaving = Leaving(self.control.clone());
        loop {
            if self.control.pending.swap(false, Ordering::Acquire) {
                let calls = lock(&self.control.calls)
                    .as_mut()
                    .map(std::mem::take)
                    .unwrap_or_default();
                for call in calls {
                    call(&mut self.runner);
                }
                if let Some(mode) = lock(&self.control.stop).take() {
                    return self.runner.stop(mode);
                }
            }
            match self.runner.service(BUDGET) {
                Service::More => {}
                Service::Idle => self.sleep(None, true),
                Service::WaitUntil(at) => self.sleep(Some(at), true),
                Service::Fatal => {
                    if let (Some(tell), Some(error)) = (self.on_fatal.take(), self.runner.error()) {
                        tell(error);
                    }
                    self.sleep(None, false);
                }
            }
        }
    }

    /// Waits for a kick, the disk, the control side or `until`; `queue`: only the control side counts
    /// otherwise.
    fn sleep(&mut self, until: Option<Instant>, queue: bool) {
        if queue && !self.poll.is_zero() && self.busy_poll(until) {
            return;
        }
        let mut fds = [self.control.wake.as_raw_fd(), -1, -1].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let mut until = until;
        if queue {
            fds[1].fd = self.kick.as_raw_fd();
            match self.runner.wait() {
                Wait::Fd(fd) => fds[2].fd = fd.as_raw_fd(),
                Wait::Poll if self.runner.in_flight() != 0 => until = Some(Instant::now()),
                Wait::Poll | Wait::Inline => {}
            }
        }
        // SAFETY: three valid entries; a negative descriptor is ignored by the kernel.
        unsafe { libc::poll(fds.as_mut_ptr(), 3, poll_timeout(until)) };
        // Read where it is found and not where `pending` is: that is set a moment earlier, and what is
        // left in the counter then would end every later sleep at once.
        if fds[0].revents != 0 {
            let _ = self.control.wake.read();
        }
        if fds[1].revents != 0 {
            let _ = self.kick.read();
        }
    }

    /// Looks for new work for a while, counted from the last time there was any. Answers whether to go on
    /// without sleeping.
    fn busy_poll(&mut self, until: Option<Instant>) -> bool {
        let activity = (
            self.runner.counters().batches.get(),
            self.runner.in_flight(),
        );
        if self.activity != activity {
            self.activity = activity;
            self.quiet_since = Instant::now();
        }
        loop {
            let now = Instant::now();
            if now.duration_since(self.quiet_since) >= self.poll
                || until.is_some_and(|at| now >= at)
            {
                return false;
            }
            if self.control.pending.load(Ordering::Relaxed) || self.runner.has_work() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests;

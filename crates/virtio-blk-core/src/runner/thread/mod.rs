// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread that serves one queue.

mod standby;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::wait::poll_timeout;
use super::{ErrorCause, OnFatal, QueueError, QueueRunner, Service, Stop, Stopped};
use crate::disk::Wait;
use crate::memory::DeviceMemory;

pub use standby::StandbyThread;

/// How long a thread that is let go of may take to say that it writes nothing any more. One that is not inside a
/// call of the disk says so at once.
const LET_GO: Duration = Duration::from_millis(200);

/// New requests taken per pass, before control calls get their turn.
const BUDGET: usize = 256;

/// How a queue's thread behaves.
pub struct ThreadOptions {
    /// The thread's name, at most 15 bytes of it shown by the system.
    pub name: String,
    /// How long to look for new work without sleeping after the last; zero: sleep at once. Burns a CPU
    /// for that time, also while the disk is slow, and no longer.
    pub poll: Duration,
    /// Called once, on the thread, when the queue broke or the thread panicked ([`QueueError::Panicked`]).
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
    /// Nobody waits for the thread: the ring's memory may belong to something else already.
    detached: AtomicBool,
    left: Mutex<Left>,
    leaving: Condvar,
}

/// Whether the thread has done its work.
struct Left {
    gone: bool,
    /// Nothing is written to the ring any more.
    quiet: bool,
    /// Told when it goes.
    tell: Option<Box<dyn FnOnce() + Send>>,
}

impl<M: DeviceMemory> Control<M> {
    fn signal(&self) {
        self.pending.store(true, Ordering::Release);
        // The counter can't overflow within a process's life.
        let _ = self.wake.write(1);
    }

    /// Nothing is written to the ring any more.
    fn set_quiet(&self) {
        lock(&self.left).quiet = true;
        self.leaving.notify_all();
    }
}

/// A queue on a thread of its own. Dropping it stops the queue with [`Stop::HandOver`].
pub struct QueueThread<M: DeviceMemory> {
    control: Arc<Control<M>>,
    /// `None`: the thread was let go of, or has ended.
    thread: Option<Serving>,
}

/// A thread's work on a queue.
struct Serving {
    /// What is left of the queue at the end, unless the thread panicked.
    outcome: Receiver<Option<Stopped>>,
    /// The thread, if it is the queue's own.
    own: Option<JoinHandle<()>>,
}

impl<M: DeviceMemory> QueueThread<M> {
    /// Serves `runner` on a new thread: at once, then whenever `kick` or the disk fires. Kicks are noticed
    /// as they are written; the counter of `kick` is never read, so that those who share it can't make
    /// the thread wait for it.
    ///
    /// # Errors
    /// No thread, eventfd or epoll could be had, or it does not take `kick` or the disk's descriptor; the
    /// queue was dropped.
    pub fn spawn(
        runner: QueueRunner<M>,
        kick: EventFd,
        options: ThreadOptions,
    ) -> io::Result<Self> {
        let name = options.name.clone();
        let (worker, control) = Worker::new(runner, kick, options)?;
        let (ended, outcome) = channel();
        let own = std::thread::Builder::new().name(name).spawn(move || {
            // Nobody waits for a queue that was let go of.
            let _ = ended.send(run(worker));
        })?;
        let own = Some(own);
        Ok(Self {
            control,
            thread: Some(Serving { outcome, own }),
        })
    }

    /// As [`QueueThread::spawn`], on a thread that is there already, which keeps its name. While that serves another
    /// queue, this one waits: also for one that was let go of ([`QueueThread::detach`]) and has not ended.
    ///
    /// # Errors
    /// No eventfd or epoll could be had, or it does not take `kick` or the disk's descriptor; the queue was dropped.
    pub fn serve_on(
        thread: &StandbyThread,
        runner: QueueRunner<M>,
        kick: EventFd,
        options: ThreadOptions,
    ) -> io::Result<Self> {
        let (worker, control) = Worker::new(runner, kick, options)?;
        let (ended, outcome) = channel();
        thread.give(move || {
            let _ = ended.send(run(worker));
        });
        Ok(Self {
            control,
            thread: Some(Serving { outcome, own: None }),
        })
    }

    /// Runs `call` on the queue's thread, between two passes, and waits for it. `None` if the thread is
    /// gone.
    pub fn with<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut QueueRunner<M>) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.post(move |runner| {
            // The receiver waits below.
            let _ = sender.send(call(runner));
        });
        receiver.recv().ok()
    }

    /// Runs `call` on the queue's thread, between two passes, and does not wait for it. Dropped without
    /// being called if the thread is gone.
    pub fn post(&self, call: impl FnOnce(&mut QueueRunner<M>) + Send + 'static) {
        if let Some(calls) = lock(&self.control.calls).as_mut() {
            calls.push(Box::new(call));
        }
        self.control.signal();
    }

    /// Asks the queue to stop, and does not wait: [`QueueThread::wait_stopped`] does. `tell` is called on
    /// the thread when everything is done.
    ///
    /// A drain that takes too long can be cut short by a second call with [`Stop::HandOver`]: from then on
    /// nothing is returned to the driver, apart from what the pass at hand finishes where the disk works
    /// inside the call. `tell` of the first call is dropped.
    pub fn begin_stop(&self, mode: Stop, tell: impl FnOnce() + Send + 'static) {
        {
            let mut left = lock(&self.control.left);
            if left.gone {
                drop(left);
                return tell();
            }
            left.tell = Some(Box::new(tell));
        }
        *lock(&self.control.stop) = Some(mode);
        self.control.signal();
    }

    /// Waits until `deadline` for the end of a stop that was begun, and returns whether it came. If it did,
    /// [`QueueThread::stop`] does not block. If it did not, the disk still works on the queue's requests:
    /// the caller either waits on, or cuts a drain short with [`Stop::HandOver`], or lets go of the thread
    /// with [`QueueThread::detach`]. The driver's memory stays mapped as long as the thread lives.
    pub fn wait_stopped(&self, deadline: Instant) -> bool {
        self.wait_left(deadline, |left| left.gone)
    }

    fn wait_left(&self, deadline: Instant, is_so: impl Fn(&Left) -> bool) -> bool {
        let mut left = lock(&self.control.left);
        while !is_so(&left) {
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let waited = self.control.leaving.wait_timeout(left, deadline - now);
            left = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(left, _)| left);
        }
        true
    }

    /// Stops the queue and ends the thread. `None` if the thread panicked (a bug in a disk).
    pub fn stop(mut self, mode: Stop) -> Option<Stopped> {
        self.end(mode)
    }

    /// Stops the queue with [`Stop::HandOver`] and does not wait for it: for a disk that lets go of its
    /// buffers too late, or never. The thread ends by itself once the disk has; memory and log of the queue
    /// stay mapped until then, and `tell` of a stop that was begun before is called then. Once this returns,
    /// nothing is written to the ring any more, apart from what a pass finishes that has been inside a call
    /// of the disk for 200 ms.
    pub fn detach(self) {
        Self::detach_all([self]);
    }

    /// As [`QueueThread::detach`], for several queues at a time: takes 200 ms at most for all of them together.
    pub fn detach_all(threads: impl IntoIterator<Item = Self>) {
        let threads: Vec<Self> = threads.into_iter().collect();
        for thread in &threads {
            thread.control.detached.store(true, Ordering::Release);
            *lock(&thread.control.stop) = Some(Stop::HandOver);
            thread.control.signal();
        }
        let deadline = Instant::now() + LET_GO;
        for mut thread in threads {
            thread.wait_left(deadline, |left| left.quiet || left.gone);
            // Dropping the handle does not wait, other than dropping this.
            thread.thread = None;
        }
    }

    fn end(&mut self, mode: Stop) -> Option<Stopped> {
        *lock(&self.control.stop) = Some(mode);
        self.control.signal();
        let Serving { outcome, own } = self.thread.take()?;
        let stopped = outcome.recv().ok().flatten();
        if let Some(own) = own {
            let _ = own.join();
        }
        stopped
    }
}

impl<M: DeviceMemory> Drop for QueueThread<M> {
    fn drop(&mut self) {
        self.end(Stop::HandOver);
    }
}

fn watch(epoll: &Epoll, fd: RawFd, how: EventSet) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN | how, 0);
    epoll.ctl(ControlOperation::Add, fd, event)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dropped when the thread ends, also by a panic: a caller that waits for a call learns that it won't happen.
struct Leaving<M: DeviceMemory>(Arc<Control<M>>);

impl<M: DeviceMemory> Drop for Leaving<M> {
    fn drop(&mut self) {
        *lock(&self.0.calls) = None;
        let tell = {
            let mut left = lock(&self.0.left);
            left.gone = true;
            left.tell.take()
        };
        self.0.leaving.notify_all();
        if let Some(tell) = tell {
            tell();
        }
    }
}

struct Worker<M: DeviceMemory> {
    runner: QueueRunner<M>,
    kick: EventFd,
    disk: Option<RawFd>,
    /// Watches the control side, the kick and the disk.
    epoll: Epoll,
    control: Arc<Control<M>>,
    poll: Duration,
    on_fatal: Option<OnFatal>,
    /// What the queue had done when it last did something, and when that was noticed.
    activity: (u64, usize),
    quiet_since: Instant,
}

/// What the thread does: serves the queue, and ends its work. Returns `None` if that panicked.
fn run<M: DeviceMemory>(mut worker: Worker<M>) -> Option<Stopped> {
    // Dropped after the runner: the disk has let go of every buffer.
    let leaving = Leaving(worker.control.clone());
    // Of what a panic left behind, only what tells of it is used.
    let served = catch_unwind(AssertUnwindSafe(|| worker.serve()));
    let Worker {
        runner, on_fatal, ..
    } = worker;
    let panicked = QueueError::Panicked;
    let stopped = match served {
        Ok(Stop::HandOver) => catch_unwind(AssertUnwindSafe(|| runner.abandon())).ok(),
        Ok(Stop::Drain) => catch_unwind(AssertUnwindSafe(|| runner.stop(Stop::Drain))).ok(),
        Err(_) => {
            leaving.0.set_quiet();
            if runner.error.is_none() {
                let reports = runner.completer.reports();
                reports.tell(ErrorCause::Queue(&panicked));
            }
            // Before the disk is waited for, which may take for ever.
            if let Some(tell) = on_fatal {
                tell(&panicked);
            }
            return None;
        }
    };
    if let (None, Some(tell)) = (&stopped, on_fatal) {
        tell(&panicked);
    }
    stopped
}

impl<M: DeviceMemory> Worker<M> {
    /// What serves `runner`, and the control side's end of it.
    ///
    /// # Errors
    /// As for [`QueueThread::serve_on`].
    fn new(
        runner: QueueRunner<M>,
        kick: EventFd,
        options: ThreadOptions,
    ) -> io::Result<(Self, Arc<Control<M>>)> {
        let control = Arc::new(Control {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            pending: AtomicBool::new(false),
            calls: Mutex::new(Some(Vec::new())),
            stop: Mutex::new(None),
            detached: AtomicBool::new(false),
            left: Mutex::new(Left {
                gone: false,
                quiet: false,
                tell: None,
            }),
            leaving: Condvar::new(),
        });
        let epoll = Epoll::new()?;
        watch(&epoll, control.wake.as_raw_fd(), EventSet::EDGE_TRIGGERED)?;
        watch(&epoll, kick.as_raw_fd(), EventSet::EDGE_TRIGGERED)?;
        let disk = match runner.wait() {
            Wait::Fd(fd) => Some(fd.as_raw_fd()),
            Wait::Poll | Wait::Inline => None,
        };
        if let Some(disk) = disk {
            watch(&epoll, disk, EventSet::empty())?;
        }
        let worker = Self {
            runner,
            kick,
            disk,
            epoll,
            control: control.clone(),
            poll: options.poll,
            on_fatal: Some(options.on_fatal),
            activity: (0, 0),
            quiet_since: Instant::now(),
        };
        Ok((worker, control))
    }

    /// Serves the queue until it is to stop. Returns how: of a drain, every request was returned to the driver already
    /// or can't be.
    fn serve(&mut self) -> Stop {
        let mut draining = false;
        loop {
            if self.control.pending.swap(false, Ordering::Acquire) {
                let calls = lock(&self.control.calls)
                    .as_mut()
                    .map(std::mem::take)
                    .unwrap_or_default();
                for call in calls {
                    call(&mut self.runner);
                }
                // The lock is not held while the queue stops: who asks again must not wait for that.
                let stop = lock(&self.control.stop).take();
                match stop {
                    Some(Stop::HandOver) => {
                        if !self.control.detached.load(Ordering::Acquire) {
                            self.runner.leave();
                        }
                        self.control.set_quiet();
                        return Stop::HandOver;
                    }
                    // Not inside `stop`: it can still be cut short.
                    Some(Stop::Drain) => {
                        self.runner.begin_drain();
                        draining = true;
                    }
                    None => {}
                }
            }
            let next = self.runner.service(BUDGET);
            let at_rest = next == Service::Fatal && self.runner.in_flight() == 0;
            if draining && (at_rest || self.runner.is_drained()) {
                return Stop::Drain;
            }
            match next {
                Service::More => {}
                Service::Idle => self.sleep(None),
                Service::WaitUntil(at) => self.sleep(Some(at)),
                Service::Fatal => {
                    if let (Some(tell), Some(error)) = (self.on_fatal.take(), self.runner.error()) {
                        self.unwatch(self.kick.as_raw_fd());
                        tell(error);
                    }
                    self.wait_broken();
                }
            }
        }
    }

    /// Waits for a kick, the disk, the control side or `until`.
    fn sleep(&mut self, until: Option<Instant>) {
        if !self.poll.is_zero() && self.busy_poll(until) {
            return;
        }
        let polled = matches!(self.runner.wait(), Wait::Poll) && self.runner.in_flight() != 0;
        self.wait(if polled { Some(Instant::now()) } else { until });
    }

    fn wait(&self, until: Option<Instant>) {
        // The next pass looks at everything: what fired does not matter. A signal ends the wait early.
        let mut events = [EpollEvent::default(); 3];
        let _ = self.epoll.wait(poll_timeout(until), &mut events);
    }

    /// Waits for the disk to finish what a broken queue gave it; then only the control side counts.
    fn wait_broken(&mut self) {
        if self.runner.in_flight() == 0 {
            if let Some(disk) = self.disk.take() {
                self.unwatch(disk);
            }
            self.wait(None);
        } else {
            let polled = matches!(self.runner.wait(), Wait::Poll);
            self.wait(if polled {
                Some(Instant::now())
            } else {
                self.runner.deadline()
            });
        }
    }

    fn unwatch(&self, fd: RawFd) {
        // The disk's queue may be closed already, and its descriptor with it.
        let _ = (self.epoll).ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Looks for new work for a while, counted from the last time there was any. Returns whether to continue
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

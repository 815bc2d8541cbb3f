// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notification of the worker: kicks, kick eventfds, and disks that completed something.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;

/// Marks of what an epoll event is about; a kick eventfd has its queue's number.
const WAKE: u64 = u64::MAX;
const DISK: u64 = 1 << 32;

/// Which queues have something to do, and how the worker sleeps until one has.
///
/// A kick is an atomic store, and a system call only if the worker sleeps. Kick eventfds are watched
/// edge-triggered and never read: each write is an event, one that is readable when it is added is an
/// event too, and the counter stays for the next one to watch it, as with the kernel's vhost.
pub(crate) struct Notifier {
    pending: Box<[AtomicBool]>,
    /// The worker sleeps, or is about to.
    asleep: AtomicBool,
    wake: EventFd,
    epoll: Epoll,
    kicks: Mutex<Vec<Option<EventFd>>>,
    /// Some descriptor was ever watched: who does not sleep has to look at them.
    watching: AtomicBool,
}

impl Notifier {
    pub(crate) fn new(queues: u16) -> io::Result<Self> {
        let this = Self {
            pending: (0..queues).map(|_| AtomicBool::new(false)).collect(),
            asleep: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            epoll: Epoll::new()?,
            kicks: Mutex::new((0..queues).map(|_| None).collect()),
            watching: AtomicBool::new(false),
        };
        this.add(this.wake.as_raw_fd(), WAKE, EventSet::EDGE_TRIGGERED)?;
        Ok(this)
    }

    fn add(&self, fd: RawFd, mark: u64, how: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | how, mark);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    fn remove(&self, fd: RawFd) {
        // It only fails for a descriptor that is not there.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Notes that queue `vq` has something to do and wakes the worker if it sleeps.
    #[inline]
    pub(crate) fn signal(&self, vq: u16) {
        if let Some(pending) = self.pending.get(usize::from(vq)) {
            // Stored before `asleep` is looked at, as the worker does it the other way round.
            pending.store(true, Ordering::SeqCst);
            if self.asleep.load(Ordering::SeqCst) {
                self.wake_worker();
            }
        }
    }

    /// Wakes the worker.
    #[cold]
    pub(crate) fn wake_worker(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        // Edge-triggered and never read: each write wakes, and the counter can't fill up in practice
        // (2^64 of them).
        let _ = self.wake.write(1);
    }

    /// Whether queue `vq` had something to do; it is up to the caller now.
    #[inline]
    pub(crate) fn take(&self, vq: u16) -> bool {
        self.pending
            .get(usize::from(vq))
            .is_some_and(|p| p.load(Ordering::Relaxed) && p.swap(false, Ordering::AcqRel))
    }

    /// Forgets what queue `vq` had to do.
    pub(crate) fn clear(&self, vq: u16) {
        self.take(vq);
    }

    /// Watches an eventfd for kicks of queue `vq` instead of the one before, or none.
    pub(crate) fn set_kick(&self, vq: u16, kick: Option<&EventFd>) -> io::Result<()> {
        let mut kicks = lock(&self.kicks);
        let Some(slot) = kicks.get_mut(usize::from(vq)) else {
            return Ok(());
        };
        // One of our own: the same eventfd may kick two queues, and an epoll takes a descriptor once.
        let kick = kick.map(EventFd::try_clone).transpose()?;
        if let Some(old) = slot.take() {
            self.remove(old.as_raw_fd());
        }
        if let Some(kick) = kick {
            self.watching.store(true, Ordering::Release);
            self.add(kick.as_raw_fd(), u64::from(vq), EventSet::EDGE_TRIGGERED)?;
            *slot = Some(kick);
        }
        Ok(())
    }

    /// Watches a disk's descriptor for queue `vq` until the returned value is dropped.
    pub(crate) fn watch(self: &Arc<Self>, vq: u16, disk: BorrowedFd<'_>) -> io::Result<Watch> {
        // One of our own: the disk's is closed with its queue, and a closed one can't be taken out.
        let fd = disk.try_clone_to_owned()?;
        self.watching.store(true, Ordering::Release);
        self.add(fd.as_raw_fd(), DISK | u64::from(vq), EventSet::empty())?;
        Ok(Watch {
            notifier: self.clone(),
            fd,
        })
    }

    /// Looks at the descriptors without waiting. Costs nothing while there are none.
    pub(crate) fn poll_now(&self, kick: impl Fn(u16)) {
        if self.watching.load(Ordering::Acquire) {
            self.poll(0, kick);
        }
    }

    /// Sleeps until something is to do, at most `timeout` milliseconds (-1: without end). `kick` is called
    /// for each eventfd that fired.
    pub(crate) fn wait(&self, timeout: i32, kick: impl Fn(u16)) {
        self.asleep.store(true, Ordering::SeqCst);
        let idle = !self.pending.iter().any(|p| p.load(Ordering::SeqCst));
        self.poll(if idle { timeout } else { 0 }, kick);
        self.asleep.store(false, Ordering::SeqCst);
    }

    fn poll(&self, timeout: i32, kick: impl Fn(u16)) {
        let mut events = [EpollEvent::default(); 16];
        // An error is a signal: the caller looks at everything again anyway.
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data() {
                WAKE => {}
                mark if mark & DISK != 0 => {
                    if let Some(pending) = self.pending.get((mark & !DISK) as usize) {
                        pending.store(true, Ordering::SeqCst);
                    }
                }
                vq => kick(vq as u16),
            }
        }
    }
}

/// A disk's descriptor that is being watched.
pub(crate) struct Watch {
    notifier: Arc<Notifier>,
    fd: OwnedFd,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.notifier.remove(self.fd.as_raw_fd());
    }
}

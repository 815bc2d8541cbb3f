// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues served from loops of a VMM's own, with a few requests at a time.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost_vdpa_frontend::QueueExecutor;
use virtio_blk_core::disk::Wait;
use virtio_blk_core::runner::{QueueRunner, Service, Stop, Stopped};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::eventfd::EventFd;

use super::eventfd;
use super::guest::Memory;

type Runner = QueueRunner<GuestMemoryAtomic<Memory>>;

/// A loop sleeps no longer.
const NAP: Duration = Duration::from_millis(100);

struct Served {
    index: u16,
    runner: Arc<Mutex<Runner>>,
    wake: Arc<EventFd>,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Serves each queue with `budget` requests at a time.
pub struct Budgeted {
    budget: usize,
    queues: Vec<Served>,
}

impl Budgeted {
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            queues: Vec::new(),
        }
    }

    fn find(&self, index: u16) -> Option<&Served> {
        self.queues.iter().find(|served| served.index == index)
    }
}

/// Waits until one is readable, or for so long.
fn sleep(fds: impl Iterator<Item = RawFd>, at_most: Duration) {
    let mut fds: Vec<_> = fds
        .map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let (count, millis) = (fds.len() as libc::nfds_t, at_most.as_millis() as i32);
    // SAFETY: so many valid entries.
    unsafe { libc::poll(fds.as_mut_ptr(), count, millis) };
}

fn serve(
    runner: &Mutex<Runner>,
    budget: usize,
    kick: &EventFd,
    wake: &EventFd,
    ending: &AtomicBool,
) {
    while !ending.load(Ordering::SeqCst) {
        let (next, disk) = {
            let mut runner = runner.lock().unwrap();
            let next = runner.service(budget);
            let disk = match runner.wait() {
                Wait::Fd(fd) => Some(fd.as_raw_fd()),
                _ => None,
            };
            (next, disk)
        };
        let at_most = match next {
            Service::More => continue,
            Service::WaitUntil(at) => at.saturating_duration_since(Instant::now()).min(NAP),
            _ => NAP,
        };
        let events = [kick.as_raw_fd(), wake.as_raw_fd()];
        sleep(events.into_iter().chain(disk), at_most);
        let _ = (kick.read(), wake.read());
    }
}

impl QueueExecutor<GuestMemoryAtomic<Memory>> for Budgeted {
    fn start(&mut self, index: u16, runner: Runner, kick: Arc<EventFd>) -> io::Result<()> {
        let (runner, wake) = (Arc::new(Mutex::new(runner)), eventfd());
        let ending = Arc::new(AtomicBool::new(false));
        let thread = {
            let (runner, wake, ending) = (runner.clone(), wake.clone(), ending.clone());
            let budget = self.budget;
            std::thread::spawn(move || serve(&runner, budget, &kick, &wake, &ending))
        };
        self.queues.push(Served {
            index,
            runner,
            wake,
            ending,
            thread,
        });
        Ok(())
    }

    fn set_intake(&mut self, index: u16, open: bool) {
        if let Some(served) = self.find(index) {
            served.runner.lock().unwrap().set_intake(open);
            served.wake.write(1).unwrap();
        }
    }

    fn in_flight(&mut self, index: u16) -> usize {
        let served = self.find(index);
        served.map_or(0, |served| served.runner.lock().unwrap().in_flight())
    }

    fn stop(&mut self, index: u16, mode: Stop) -> Option<Stopped> {
        let at = self
            .queues
            .iter()
            .position(|served| served.index == index)?;
        let served = self.queues.swap_remove(at);
        served.ending.store(true, Ordering::SeqCst);
        served.wake.write(1).unwrap();
        served.thread.join().ok()?;
        let runner = Arc::into_inner(served.runner)?.into_inner().ok()?;
        Some(runner.stop(mode))
    }
}

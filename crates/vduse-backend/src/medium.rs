// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking the disk into use before the first queue starts, and letting go of it after the last has stopped.
//!
//! Both may wait (for another owner's lock, for data to become stable), so a thread of its own does them, and
//! messages wait for that thread no longer than they may.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Disk, DiskError};
use vmm_sys_util::eventfd::EventFd;

/// How long after the disk could not be taken into use this is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why a disk could not be taken into use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk can't be taken into use: {why}")]
pub(crate) struct Refused {
    why: String,
    /// When to try again.
    pub(crate) until: Instant,
}

#[derive(Default)]
struct State {
    /// What it should be.
    wanted: bool,
    /// What it is.
    active: bool,
    /// A thread is at work.
    working: bool,
    /// Why it could not be taken into use. Forgotten when something is wanted again.
    refused: Option<Refused>,
    /// Why what it kept when it was used last may be lost. Stays until it is in use again.
    lost: Option<DiskError>,
    /// The driver has reset the device since the disk was wanted last: no message fails because of what is lost.
    reset: bool,
}

struct Shared {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    changed: Condvar,
    /// Rings after each change.
    wake: Arc<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk of a device, in use or not.
pub(crate) struct Medium(Arc<Shared>);

impl Medium {
    /// A disk that is not in use. `wake` rings whenever that has changed.
    pub(crate) fn new(disk: Arc<dyn Disk>, wake: Arc<EventFd>) -> Self {
        Self(Arc::new(Shared {
            disk,
            state: Mutex::default(),
            changed: Condvar::new(),
            wake,
        }))
    }

    /// Wants the disk in use, or not. Does not wait. If it could not be taken into use before, that is tried again at
    /// once; [`Medium::refused`] says when it should be.
    pub(crate) fn want(&self, wanted: bool) {
        let mut state = self.0.lock();
        state.refused = None;
        state.wanted = wanted;
        if state.working || state.active == wanted {
            return;
        }
        state.working = true;
        drop(state);
        let shared = self.0.clone();
        let thread = std::thread::Builder::new().name("vblk-medium".to_owned());
        if let Err(error) = thread.spawn(move || work(&shared)) {
            let mut state = self.0.lock();
            state.working = false;
            state.wanted = state.active;
            state.failed(wanted, error.into());
        }
    }

    /// The driver resets the device: what is lost is what a power cut would have taken.
    pub(crate) fn reset(&self) {
        self.0.lock().reset = true;
    }

    /// Why the disk could not be taken into use. `None`: it was not tried, or is being tried, or it is in use.
    pub(crate) fn refused(&self) -> Option<Refused> {
        self.0.lock().refused.clone()
    }

    /// Waits until `deadline` for the disk, which is wanted, to be in use. `None`: it is not so yet.
    ///
    /// # Errors
    /// It can't be taken into use.
    pub(crate) fn wait_taken(&self, deadline: Instant) -> Option<Result<(), Refused>> {
        let state = self.settled(deadline)?;
        Some(state.refused.clone().map_or(Ok(()), Err))
    }

    /// Waits until `deadline` for the disk, which is not wanted, to be let go of. `None`: it is not so yet. If it was let
    /// go of before, returns what came of that.
    ///
    /// # Errors
    /// What it held in memory can't be made stable. Said to each who asks, until the disk is in use again or the driver
    /// resets the device.
    pub(crate) fn wait_left(&self, deadline: Instant) -> Option<Result<(), String>> {
        let state = self.settled(deadline)?;
        Some(match &state.lost {
            Some(error) if !state.reset => Err(error.to_string()),
            _ => Ok(()),
        })
    }

    /// Why what the disk held in memory when it was used last may be lost, also if the driver has reset the device since.
    /// The caller is the last who asks.
    pub(crate) fn take_lost(&self) -> Option<DiskError> {
        self.0.lock().lost.take()
    }

    fn settled(&self, deadline: Instant) -> Option<MutexGuard<'_, State>> {
        let mut state = self.0.lock();
        while state.working {
            let now = Instant::now();
            if now >= deadline {
                return None;
            }
            let waited = self.0.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state)
    }
}

impl State {
    /// Notes that the disk could not be taken into use, or not be left in order.
    fn failed(&mut self, taking: bool, error: DiskError) {
        if taking {
            self.refused = Some(Refused {
                why: error.to_string(),
                until: Instant::now() + RETRY,
            });
        } else {
            // The message that asks next may not report it.
            log::error!("the disk can't be left in order, what it kept may be lost: {error}");
            self.lost = Some(error);
        }
    }

    /// Notes what came of an attempt to take the disk into use, or to let go of it.
    fn note(&mut self, taking: bool, done: Result<(), DiskError>) {
        self.active = taking && done.is_ok();
        match done {
            Err(error) if !taking || self.wanted => {
                self.failed(taking, error);
                // Until it is wanted again.
                self.wanted &= !taking;
            }
            Err(error) => log::error!("the disk can't be taken into use: {error}"),
            Ok(()) => {
                self.lost = None;
                // What is taken for a driver that is gone already is let go of again.
                self.reset &= !(taking && self.wanted);
            }
        }
    }
}

/// Makes the disk what it should be.
fn work(shared: &Shared) {
    loop {
        let taking = {
            let mut state = shared.lock();
            if state.active == state.wanted {
                state.working = false;
                break;
            }
            state.wanted
        };
        let done = catch_unwind(AssertUnwindSafe(|| match taking {
            true => shared.disk.activate(),
            false => shared.disk.deactivate(),
        }));
        let panicked = |_| Err(io::Error::other("the disk panicked").into());
        shared.lock().note(taking, done.unwrap_or_else(panicked));
    }
    shared.changed.notify_all();
    // The counter can't overflow.
    let _ = shared.wake.write(1);
}

#[cfg(test)]
mod tests;

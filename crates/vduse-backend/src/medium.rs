// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking the disk into use before the first queue starts, and letting go of it after the last has stopped.
//!
//! Both may wait (for another owner's lock, for data to become stable), so a thread of its own does them, and
//! messages wait for that thread no longer than they may.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_blk_core::disk::{Disk, DiskError};
use vmm_sys_util::eventfd::EventFd;

#[derive(Default)]
struct State {
    /// What it should be.
    wanted: bool,
    /// What it is.
    active: bool,
    /// A thread is at work.
    working: bool,
    /// Why the last change did not succeed.
    error: Option<DiskError>,
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

    /// Wants the disk in use, or not. Does not wait. What went wrong before is forgotten.
    pub(crate) fn want(&self, wanted: bool) {
        let mut state = self.0.lock();
        if state.wanted == wanted && state.error.is_none() {
            return;
        }
        state.wanted = wanted;
        state.error = None;
        if state.working || state.active == wanted {
            return;
        }
        state.working = true;
        drop(state);
        let shared = self.0.clone();
        let thread = std::thread::Builder::new().name("vblk-medium".to_owned());
        if let Err(error) = thread.spawn(move || work(&Finishing(shared))) {
            let mut state = self.0.lock();
            state.working = false;
            state.wanted = state.active;
            state.error = Some(error.into());
        }
    }

    /// Waits until `deadline` for what is wanted. `None`: it is not so yet.
    ///
    /// # Errors
    /// It can't be: the disk can't be taken into use; or what it held in memory can't be made stable, and it is not in
    /// use any more.
    pub(crate) fn wait(&self, deadline: Instant) -> Option<Result<(), String>> {
        let mut state = self.0.lock();
        while state.working {
            let now = Instant::now();
            if now >= deadline {
                return None;
            }
            let waited = self.0.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match &state.error {
            Some(error) => Some(Err(error.to_string())),
            None => Some(Ok(())),
        }
    }
}

/// The thread's end, also by a panic of the disk.
struct Finishing(Arc<Shared>);

impl Drop for Finishing {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.working {
            state.working = false;
            state.wanted = state.active;
            state.error = Some(io::Error::other("the disk panicked").into());
        }
        drop(state);
        self.0.changed.notify_all();
        // The counter can't overflow.
        let _ = self.0.wake.write(1);
    }
}

/// Makes the disk what it should be.
fn work(shared: &Finishing) {
    let Finishing(shared) = shared;
    loop {
        let wanted = {
            let mut state = shared.lock();
            if state.active == state.wanted {
                state.working = false;
                return;
            }
            state.wanted
        };
        let done = match wanted {
            true => shared.disk.activate(),
            false => shared.disk.deactivate(),
        };
        let mut state = shared.lock();
        state.active = wanted && done.is_ok();
        if let Err(error) = done {
            if !wanted {
                // The message that asks next may not report it.
                log::error!("the disk can't be left in order, what it kept may be lost: {error}");
            }
            if state.wanted == wanted {
                state.wanted = false;
                state.error = Some(error);
            } else {
                log::error!("the disk: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests;

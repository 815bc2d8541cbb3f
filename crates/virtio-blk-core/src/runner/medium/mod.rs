// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking the disk into use before the first queue starts, and letting go of it after the last has stopped.
//!
//! Both may wait (for another owner's lock, for data to become stable), so a thread of its own does them, and a
//! transport waits for that thread no longer than it may.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::{Disk, DiskError};

/// How long after the disk could not be taken into use this is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Why a disk could not be taken into use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk can't be taken into use: {why}")]
pub struct Refused {
    why: String,
    /// When to try again at the earliest: a second after the attempt.
    pub until: Instant,
}

/// What the listener of a [`Medium`] is told, on the thread that did it.
#[derive(Debug)]
pub enum MediumEvent<'a> {
    /// The disk was let go of, and what it kept in memory may be lost.
    Lost(&'a DiskError),
    /// The disk can't be taken into use, and is not wanted any more. Otherwise [`Medium::wait_taken`] returns that.
    Refused(&'a DiskError),
    /// The disk is what was wanted last, or can't be, or the last queue that was left behind has let go of it: no
    /// method of [`Medium`] waits now.
    Settled,
}

type Listener = Box<dyn Fn(MediumEvent<'_>) + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    /// What it should be.
    wanted: bool,
    /// What it is.
    active: bool,
    /// A thread is at work.
    working: bool,
    /// Queues that were left behind: until they have let go of the disk, it stays in use.
    left_behind: usize,
    /// Why it could not be taken into use. Forgotten when something is wanted again.
    refused: Option<Refused>,
    /// Why what it kept when it was used last may be lost. Stays until it is in use again.
    lost: Option<DiskError>,
    /// The driver has reset the device since the disk was wanted last: no message fails because of what is lost.
    reset: bool,
}

impl State {
    /// What is to be done: take the disk into use, or let go of it.
    const fn due(&self) -> Option<bool> {
        match (self.active, self.wanted) {
            (false, true) => Some(true),
            (true, false) if self.left_behind == 0 => Some(false),
            _ => None,
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    listener: Listener,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk of a device, in use or not: calls [`Disk::activate`] and [`Disk::deactivate`] on a thread of its own. The
/// thread lives as long as a call does. The caller wants the disk before it starts the first queue, and does not want it
/// any more once the last queue is dropped. Clones are handles of the same.
#[derive(Clone)]
pub struct Medium {
    /// Not among what the thread shares, which may outlive the last handle by a moment: a process that drops its disk
    /// and ends closes it before.
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
}

impl Medium {
    /// A disk that is not in use. `listener` must not block.
    pub fn new(
        disk: Arc<dyn Disk>,
        listener: impl Fn(MediumEvent<'_>) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            listener: Box::new(listener),
        });
        Self { disk, shared }
    }

    /// Wants the disk in use, or not. Does not wait. If it could not be taken into use before, that is tried again at
    /// once: [`Medium::refused`] says when it should be.
    pub fn want(&self, wanted: bool) {
        let mut state = self.shared.lock();
        state.refused = None;
        state.wanted = wanted;
        self.shared.start(&self.disk, state);
    }

    /// As [`Medium::want`], and waits until `deadline` for the disk to be in use. `None`: it is not so yet.
    ///
    /// # Errors
    /// It can't be taken into use.
    pub fn take(&self, deadline: Instant) -> Option<Result<(), Refused>> {
        self.want(true);
        self.wait_taken(deadline)
    }

    /// Keeps the disk in use for a queue that is left behind, until the result is dropped.
    pub(super) fn leave_behind(&self) -> LeftBehind {
        self.shared.lock().left_behind += 1;
        LeftBehind(self.clone())
    }

    /// How many queues were left behind and have not let go of the disk yet. As long as there are any it stays in use,
    /// wanted or not: they may still write to it.
    pub fn left_behind(&self) -> usize {
        self.shared.lock().left_behind
    }

    /// Waits until `deadline` for the queues that were left behind. Returns whether all have let go of the disk.
    pub fn wait_left_behind(&self, deadline: Instant) -> bool {
        self.wait(deadline, |state| state.left_behind == 0)
            .is_some()
    }

    /// The driver resets the device: what is lost is what a power cut would have taken.
    pub fn reset(&self) {
        self.shared.lock().reset = true;
    }

    /// Why the disk could not be taken into use. `None`: it was not tried, or is being tried, or it is in use.
    pub fn refused(&self) -> Option<Refused> {
        self.shared.lock().refused.clone()
    }

    /// Waits until `deadline` for the disk, which is wanted, to be in use. `None`: it is not so yet.
    ///
    /// # Errors
    /// It can't be taken into use.
    pub fn wait_taken(&self, deadline: Instant) -> Option<Result<(), Refused>> {
        let state = self.settled(deadline)?;
        Some(state.refused.clone().map_or(Ok(()), Err))
    }

    /// Waits until `deadline` for the disk, which is not wanted, to be let go of. `None`: it is not so yet. If it was let
    /// go of before, returns what came of that.
    ///
    /// # Errors
    /// What it held in memory can't be made stable. Said to each who asks, until the disk is in use again or the driver
    /// resets the device.
    pub fn wait_left(&self, deadline: Instant) -> Option<Result<(), String>> {
        let state = self.settled(deadline)?;
        Some(match &state.lost {
            Some(error) if !state.reset => Err(error.to_string()),
            _ => Ok(()),
        })
    }

    /// Why what the disk held in memory when it was used last may be lost, also if the driver has reset the device since.
    /// The caller is the last who asks.
    pub fn take_lost(&self) -> Option<DiskError> {
        self.shared.lock().lost.take()
    }

    fn settled(&self, deadline: Instant) -> Option<MutexGuard<'_, State>> {
        self.wait(deadline, |state| {
            !state.working && state.active == state.wanted
        })
    }

    fn wait(
        &self,
        deadline: Instant,
        is_so: impl Fn(&State) -> bool,
    ) -> Option<MutexGuard<'_, State>> {
        let mut state = self.shared.lock();
        while !is_so(&state) {
            let now = Instant::now();
            if now >= deadline {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(state)
    }
}

/// A queue that was left behind: the disk may still read and write for it.
pub(super) struct LeftBehind(Medium);

impl Drop for LeftBehind {
    fn drop(&mut self) {
        let Medium { disk, shared } = &self.0;
        let mut state = shared.lock();
        state.left_behind -= 1;
        let rest = state.left_behind == 0 && !shared.start(disk, state);
        shared.changed.notify_all();
        if rest {
            (shared.listener)(MediumEvent::Settled);
        }
    }
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &*self.shared.lock();
        f.debug_struct("Medium")
            .field("state", state)
            .finish_non_exhaustive()
    }
}

impl Refused {
    fn new(why: &dyn fmt::Display) -> Self {
        Self {
            why: why.to_string(),
            until: Instant::now() + RETRY,
        }
    }
}

impl Shared {
    /// Has a thread do what is to be done. Returns whether one is at work.
    fn start(self: &Arc<Self>, disk: &Arc<dyn Disk>, mut state: MutexGuard<'_, State>) -> bool {
        let due = state.due();
        let (false, Some(taking)) = (state.working, due) else {
            return state.working;
        };
        state.working = true;
        drop(state);
        let (shared, disk) = (self.clone(), disk.clone());
        let thread = std::thread::Builder::new().name("vblk-medium".to_owned());
        let Err(error) = thread.spawn(move || work(&shared, disk)) else {
            return true;
        };
        if taking {
            let mut state = self.lock();
            state.working = false;
            state.wanted = state.active;
            state.refused = Some(Refused::new(&error));
        } else {
            let error = error.into();
            (self.listener)(MediumEvent::Lost(&error));
            let mut state = self.lock();
            state.working = false;
            state.wanted = state.active;
            state.lost = Some(error);
        }
        self.changed.notify_all();
        false
    }

    /// Notes what came of an attempt to take the disk into use, or to let go of it.
    fn note(&self, taking: bool, done: Result<(), DiskError>) {
        if let (false, Err(error)) = (taking, &done) {
            (self.listener)(MediumEvent::Lost(error));
        }
        let mut state = self.lock();
        state.active = taking && done.is_ok();
        match done {
            Err(error) if !taking => state.lost = Some(error),
            Err(error) if state.wanted => {
                state.refused = Some(Refused::new(&error));
                // Until it is wanted again.
                state.wanted = false;
            }
            Err(error) => {
                drop(state);
                (self.listener)(MediumEvent::Refused(&error));
            }
            Ok(()) => {
                state.lost = None;
                // What is taken for a driver that is gone already is let go of again.
                state.reset &= !(taking && state.wanted);
            }
        }
    }
}

/// Makes the disk what it should be.
fn work(shared: &Shared, disk: Arc<dyn Disk>) {
    loop {
        let taking = {
            let mut state = shared.lock();
            let Some(taking) = state.due() else {
                // Before anybody who waits for this can find the disk still held.
                drop(disk);
                state.working = false;
                break;
            };
            taking
        };
        let done = catch_unwind(AssertUnwindSafe(|| match taking {
            true => disk.activate(),
            false => disk.deactivate(),
        }));
        let panicked = |_| Err(io::Error::other("the disk panicked").into());
        shared.note(taking, done.unwrap_or_else(panicked));
    }
    shared.changed.notify_all();
    (shared.listener)(MediumEvent::Settled);
}

#[cfg(test)]
mod tests;

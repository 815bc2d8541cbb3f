// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the disk is in use: from before the first queue starts until after the last has stopped, so that two
//! servers of one medium can hand it over in a migration.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Disk, DiskError};

/// Why a disk could not be taken into use, or not be left in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MediumError {
    #[error("the disk can't be taken into use: {0}")]
    Activate(#[source] DiskError),
    #[error("the disk can't be taken into use: it still writes what it kept when it was used last")]
    Busy,
    #[error("the disk can't be left in order: {0}; what it kept in memory may be lost")]
    Deactivate(#[source] DiskError),
    #[error(
        "the disk does not finish writing what it kept within {0:?}: its lock is kept until it has"
    )]
    Slow(Duration),
}

type Left = Result<(), DiskError>;

#[derive(Debug)]
enum State {
    Idle,
    /// What it kept when it was used last may be lost: said to each who asks, until it is in use again.
    Lost(String),
    Active,
    /// A thread lets go of it.
    Leaving(Receiver<Left>),
}

/// The disk of a server.
pub(crate) struct Medium {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    /// The longest time that letting go may take.
    time: Duration,
}

impl Medium {
    pub(crate) fn new(disk: Arc<dyn Disk>, time: Duration) -> Self {
        Self {
            disk,
            state: Mutex::new(State::Idle),
            time,
        }
    }

    /// Takes the disk into use, if it is not.
    ///
    /// # Errors
    /// Somebody else has it, or it has not been let go of since the last time.
    pub(crate) fn take(&self, deadline: Instant) -> Result<(), MediumError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Leaving(wait) = &*state {
            match wait.recv_timeout(left_until(deadline)) {
                Err(RecvTimeoutError::Timeout) => return Err(MediumError::Busy),
                // Its failure was told, or nobody waited for it.
                Ok(Err(error)) => log::error!("{}", MediumError::Deactivate(error)),
                Ok(Ok(())) | Err(RecvTimeoutError::Disconnected) => {}
            }
            *state = State::Idle;
        }
        if let State::Idle | State::Lost(_) = *state {
            self.disk.activate().map_err(MediumError::Activate)?;
            *state = State::Active;
        }
        Ok(())
    }

    /// Lets go of the disk, if it is in use; no queue of it is open. Waits until `deadline`. If it was let go of
    /// before, returns what came of that: QEMU disables its queues, and ignores whether that failed, before it
    /// asks for the first one's state.
    ///
    /// # Errors
    /// What the disk kept could not be made stable, or not in time.
    pub(crate) fn leave(&self, deadline: Instant) -> Result<(), MediumError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = match std::mem::replace(&mut *state, State::Idle) {
            State::Idle => return Ok(()),
            State::Lost(why) => {
                *state = State::Lost(why.clone());
                return Err(MediumError::Deactivate(DiskError::Config(why)));
            }
            State::Leaving(wait) => wait,
            State::Active => match self.begin_leave(false) {
                Ok(wait) => wait,
                Err(error) => {
                    log::warn!("no thread to leave the disk on, so it is waited for: {error}");
                    return Self::left(&mut state, self.disk.deactivate());
                }
            },
        };
        match wait.recv_timeout(left_until(deadline)) {
            Ok(result) => Self::left(&mut state, result),
            Err(RecvTimeoutError::Disconnected) => {
                let panicked = DiskError::Config("its thread panicked".to_owned());
                Self::left(&mut state, Err(panicked))
            }
            Err(RecvTimeoutError::Timeout) => {
                *state = State::Leaving(wait);
                Err(MediumError::Slow(self.time))
            }
        }
    }

    /// Begins to let go of the disk, if it is in use, and does not wait: for when there is no client to be told.
    /// A failure is logged.
    pub(crate) fn leave_later(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Active) {
            return;
        }
        match self.begin_leave(true) {
            Ok(wait) => *state = State::Leaving(wait),
            Err(error) => {
                log::warn!("no thread to leave the disk on, so it is waited for: {error}");
                if let Err(error) = Self::left(&mut state, self.disk.deactivate()) {
                    log::error!("{error}");
                }
            }
        }
    }

    /// Lets go of the disk on a thread: it may take for ever, as the disk is asked to write. The thread logs a
    /// failure if `nobody_waits` for it.
    fn begin_leave(&self, nobody_waits: bool) -> io::Result<Receiver<Left>> {
        let (done, wait) = sync_channel(1);
        let disk = self.disk.clone();
        let leave = move || {
            let left = disk.deactivate();
            if let Err(error) = &left
                && nobody_waits
            {
                let error = MediumError::Deactivate(DiskError::Config(error.to_string()));
                log::error!("{error}");
            }
            // Nobody may be there any more to hear it.
            let _ = done.send(left);
        };
        let thread = std::thread::Builder::new().name("vblk-leave".to_owned());
        thread.spawn(leave)?;
        Ok(wait)
    }

    /// Notes how the disk was left.
    fn left(state: &mut State, result: Left) -> Result<(), MediumError> {
        *state = match &result {
            Ok(()) => State::Idle,
            Err(error) => State::Lost(error.to_string()),
        };
        result.map_err(MediumError::Deactivate)
    }
}

fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

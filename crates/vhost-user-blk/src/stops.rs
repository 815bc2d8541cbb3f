// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long stops may take, and the queues whose disk took longer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::runner::{QueueThread, Stop};

use crate::medium::{Medium, MediumError};
use crate::memory::Memory;

/// What the sessions of a server have in common about stops.
pub(crate) struct Stops {
    /// The longest time for one.
    time: Duration,
    /// When the server has to have ended, once it was told to.
    end: Mutex<Option<Instant>>,
    stuck: Arc<Stuck>,
}

/// Queues whose disk did not let go in time. They return nothing to the driver any more, but the disk may still
/// read and write the client's memory and the medium. Outlives the server, if the disk takes longer than that.
struct Stuck {
    medium: Arc<Medium>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queues: usize,
    /// Nothing else uses the medium: the last of them leaves it.
    leaves: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stuck {
    /// The disk has let go of one of them.
    fn let_go(&self) {
        let mut state = lock(&self.state);
        state.queues -= 1;
        // With the lock held: the next session does not begin in between.
        if state.queues == 0 && std::mem::take(&mut state.leaves) {
            self.medium.leave_later();
        }
    }
}

impl Stops {
    pub(crate) fn new(time: Duration, medium: Arc<Medium>) -> Self {
        Self {
            time,
            end: Mutex::new(None),
            stuck: Arc::new(Stuck {
                medium,
                state: Mutex::default(),
            }),
        }
    }

    /// The longest time for a stop.
    pub(crate) fn time(&self) -> Duration {
        self.time
    }

    /// Until when a stop that begins now may take.
    pub(crate) fn deadline(&self) -> Instant {
        let usual = Instant::now() + self.time;
        lock(&self.end).map_or(usual, |end| end.min(usual))
    }

    /// The server was told to end: no stop takes longer than until [`Stops::deadline`] of now.
    pub(crate) fn begin_end(&self) {
        lock(&self.end).get_or_insert_with(|| Instant::now() + self.time);
    }

    /// Gives up queues that could not be stopped in time. Nothing is written to their rings any more once this
    /// returns, as [`QueueThread::detach_all`] says.
    pub(crate) fn abandon(&self, threads: Vec<QueueThread<Memory>>) {
        if threads.is_empty() {
            return;
        }
        lock(&self.stuck.state).queues += threads.len();
        for thread in &threads {
            let stuck = self.stuck.clone();
            thread.begin_stop(Stop::HandOver, move || stuck.let_go());
        }
        QueueThread::detach_all(threads);
    }

    /// How many queues the disk has not let go of.
    pub(crate) fn stuck(&self) -> usize {
        lock(&self.stuck.state).queues
    }

    /// Lets go of the medium, which no queue of the session uses any more; if the disk is not done with queues
    /// that were given up, that happens once it is, and is not waited for.
    ///
    /// # Errors
    /// As for [`Medium::leave`].
    pub(crate) fn leave_medium(&self, deadline: Instant) -> Result<(), MediumError> {
        {
            let mut state = lock(&self.stuck.state);
            if state.queues != 0 {
                state.leaves = true;
                return Ok(());
            }
        }
        self.stuck.medium.leave(deadline)
    }
}

impl std::fmt::Debug for Stops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stops")
            .field("time", &self.time)
            .field("stuck", &self.stuck())
            .finish_non_exhaustive()
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long stops may take, and the queues whose disk took longer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::runner::{QueueThread, Stop};

use crate::memory::Memory;

/// What the sessions of a server have in common about stops.
pub(crate) struct Stops {
    /// The longest time for one.
    time: Duration,
    /// When the server has to have ended, once it was told to.
    end: Mutex<Option<Instant>>,
    /// Queues whose disk did not let go in time. They return nothing to the driver any more, but the disk
    /// may still read and write the client's memory and the medium.
    stuck: Mutex<Vec<QueueThread<Memory>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stops {
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            time,
            end: Mutex::new(None),
            stuck: Mutex::default(),
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

    /// Keeps a queue that could not be stopped in time.
    pub(crate) fn abandon(&self, thread: QueueThread<Memory>) {
        thread.begin_stop(Stop::HandOver, || {});
        lock(&self.stuck).push(thread);
    }

    /// How many queues the disk has not let go of.
    pub(crate) fn stuck(&self) -> usize {
        let mut stuck = lock(&self.stuck);
        let now = Instant::now();
        stuck.retain(|thread| !thread.wait_stopped(now));
        stuck.len()
    }
}

impl Drop for Stops {
    fn drop(&mut self) {
        for thread in lock(&self.stuck).drain(..) {
            thread.detach();
        }
    }
}

impl std::fmt::Debug for Stops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stops")
            .field("time", &self.time)
            .field("stuck", &lock(&self.stuck).len())
            .finish_non_exhaustive()
    }
}

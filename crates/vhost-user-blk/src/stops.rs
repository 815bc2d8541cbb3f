// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long stops may take, and what is said of those that take longer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a stop takes at most, unless [`ServerOptions::stop_time`](crate::ServerOptions::stop_time) says otherwise.
pub const STOP_TIME: Duration = Duration::from_secs(5);

/// Queues whose disk did not finish in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "queues {queues:?} can't be stopped: the disk did not finish their requests within {time:?}; they stay in \
     the in-flight area, and no client is served until the disk has let go of them"
)]
pub(crate) struct Stuck {
    pub(crate) queues: Vec<u16>,
    pub(crate) time: Duration,
}

/// Why the disk was not left in order when its last queue stopped.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// It failed to make stable what it kept in memory, for this reason.
    #[error("the disk can't be left in order: {0}; what it kept in memory may be lost")]
    Lost(String),
    /// It has not finished within the time of a stop.
    #[error(
        "the disk does not finish writing what it kept within {0:?}: its lock is kept until it has"
    )]
    Slow(Duration),
}

/// How long the sessions of a server take for a stop.
#[derive(Debug)]
pub(crate) struct Stops {
    /// The longest time for one.
    time: Duration,
    /// When the server has to have ended, once it was told to.
    end: Mutex<Option<Instant>>,
}

impl Stops {
    pub(crate) const fn new(time: Duration) -> Self {
        Self {
            time,
            end: Mutex::new(None),
        }
    }

    /// The longest time for a stop.
    pub(crate) const fn time(&self) -> Duration {
        self.time
    }

    /// Until when a stop that begins now may take.
    pub(crate) fn deadline(&self) -> Instant {
        let usual = Instant::now() + self.time;
        self.end().map_or(usual, |end| end.min(usual))
    }

    /// Until when a start may wait for the disk to be taken into use.
    pub(crate) fn start_deadline(&self) -> Instant {
        self.end().unwrap_or_else(|| Instant::now() + STOP_TIME)
    }

    fn end(&self) -> Option<Instant> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server was told to end: no stop takes longer than until [`Stops::deadline`] of now.
    pub(crate) fn begin_end(&self) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert_with(|| Instant::now() + self.time);
    }
}

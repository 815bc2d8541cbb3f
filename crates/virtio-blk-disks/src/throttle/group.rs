// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What several disks may use together.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::limits::{Cost, LIMITS, LimitError, Limits};

/// Where a group's time comes from.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Limits that one or several [`super::ThrottleDisk`]s share. Cheap to clone; clones are the same group.
///
/// Turns are fair: each queue of each disk has a place in line for its next operation only, so a queue
/// with a hundred operations waiting gets no more than one with two.
#[derive(Clone)]
pub struct ThrottleGroup {
    shared: Arc<Shared>,
    clock: Clock,
    origin: Instant,
}

struct Shared {
    /// Whether there is any limit: asked before the lock is taken.
    is_limited: AtomicBool,
    state: Mutex<State>,
}

struct State {
    limits: Limits,
    /// Counts changes of the limits.
    generation: u64,
    buckets: [Option<Bucket>; LIMITS],
}

/// An operation's place in line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Nanoseconds on the group's time line.
    pub(super) start: u64,
    pub(super) cost: Cost,
    pub(super) generation: u64,
}

impl State {
    fn new(limits: Limits, generation: u64) -> Self {
        Self {
            limits,
            generation,
            buckets: limits.all().map(|rate| rate.as_ref().map(Bucket::new)),
        }
    }

    /// The buckets that an operation draws from, with what it takes.
    fn drawn(&mut self, cost: Cost) -> impl Iterator<Item = (&mut Bucket, u64)> {
        self.buckets
            .iter_mut()
            .zip(cost.0)
            .filter_map(|(bucket, units)| Some((bucket.as_mut().filter(|_| units != 0)?, units)))
    }

    /// When the limits allow an operation.
    fn earliest(&mut self, cost: Cost) -> u64 {
        (self.drawn(cost)).fold(0, |at, (bucket, _)| at.max(bucket.start()))
    }

    fn take(&mut self, cost: Cost, now: u64) -> u64 {
        let start = self.earliest(cost).max(now);
        for (bucket, units) in self.drawn(cost) {
            bucket.take(start, units);
        }
        start
    }
}

impl ThrottleGroup {
    /// A group with these limits.
    ///
    /// # Errors
    /// A limit makes no sense.
    pub fn new(limits: Limits) -> Result<Self, LimitError> {
        Self::with_clock(limits, Arc::new(Instant::now))
    }

    /// A group whose time is `clock`'s, for tests and simulations. It never goes back.
    ///
    /// # Errors
    /// A limit makes no sense.
    pub fn with_clock(limits: Limits, clock: Clock) -> Result<Self, LimitError> {
        limits.validate()?;
        Ok(Self {
            shared: Arc::new(Shared {
                is_limited: AtomicBool::new(limits != Limits::default()),
                state: Mutex::new(State::new(limits, 0)),
            }),
            origin: clock(),
            clock,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        (self.shared.state.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is any limit.
    #[inline]
    pub fn is_limited(&self) -> bool {
        // A reader that sees a change late is like an operation that came earlier.
        self.shared.is_limited.load(Ordering::Relaxed)
    }

    /// Whether there is another handle to this group.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.state().limits
    }

    /// Changes the limits. What is held back falls under the new ones when its queue is next served, at
    /// the latest after [`super::RECHECK`].
    ///
    /// # Errors
    /// A limit makes no sense; nothing changed.
    pub fn set_limits(&self, limits: Limits) -> Result<(), LimitError> {
        limits.validate()?;
        let mut state = self.state();
        let generation = state.generation + 1;
        *state = State::new(limits, generation);
        let is_limited = limits != Limits::default();
        (self.shared.is_limited).store(is_limited, Ordering::Relaxed);
        Ok(())
    }

    /// Nanoseconds on the group's time line.
    pub(super) fn now(&self) -> u64 {
        let elapsed = (self.clock)().saturating_duration_since(self.origin);
        // The line starts at a second, so that there is room before it.
        u64::try_from(elapsed.as_nanos())
            .map_or(u64::MAX, |nanos| nanos.saturating_add(1_000_000_000))
    }

    /// A point of the group's time line.
    pub(super) fn instant(&self, at: u64) -> Instant {
        self.origin + Duration::from_nanos(at.saturating_sub(1_000_000_000))
    }

    /// The place in line of an operation that may start now. `None`: it may not, and has no place.
    pub(super) fn turn_now(&self, cost: Cost, now: u64) -> Option<Turn> {
        let mut state = self.state();
        let earliest = state.earliest(cost);
        (earliest <= now).then(|| Turn {
            start: state.take(cost, now),
            cost,
            generation: state.generation,
        })
    }

    /// A place in line for an operation.
    pub(super) fn turn(&self, cost: Cost, now: u64) -> Turn {
        let mut state = self.state();
        Turn {
            start: state.take(cost, now),
            cost,
            generation: state.generation,
        }
    }

    /// Gives a place back that was not used.
    pub(super) fn give_back(&self, turn: &Turn) {
        let mut state = self.state();
        if state.generation == turn.generation {
            for (bucket, units) in state.drawn(turn.cost) {
                bucket.give_back(units);
            }
        }
    }

    /// Whether a place in line still counts.
    pub(super) fn is_current(&self, turn: &Turn) -> bool {
        self.state().generation == turn.generation
    }

    /// Does something while nobody can take a turn.
    #[cfg(test)]
    pub(super) fn hold_lock(&self, f: impl FnOnce()) {
        let _state = self.state();
        f();
    }

    /// Notes that an operation that had to wait starts now, perhaps too late.
    pub(super) fn started(&self, turn: &Turn, now: u64) {
        let mut state = self.state();
        if state.generation == turn.generation {
            for (bucket, _) in state.drawn(turn.cost) {
                bucket.started(turn.start, now);
            }
        }
    }
}

impl fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThrottleGroup")
            .field("limits", &self.limits())
            .finish_non_exhaustive()
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clusters that are ready for use: they are counted, their counts are stable, nothing refers to them, and they read as
//! zeroes, stably so. A table may refer to one as soon as it is taken.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};

use virtio_blk_core::disk::DiskError;

use crate::base::{EIO, ENOSPC};
use crate::refcounts::Run;
use crate::sync::{lock, wait};

/// Bytes of the first refill, and of the largest.
const MIN_REFILL: u64 = 1 << 20;
const MAX_REFILL: u64 = 64 << 20;
/// Clusters of the smallest refill.
const MIN_CLUSTERS: u64 = 8;

#[derive(Debug, Default)]
struct State {
    runs: VecDeque<Run>,
    clusters: u64,
    /// Somebody refills it, or was asked to.
    asked: bool,
    /// Refills that failed, and the last error's number.
    failures: u64,
    errno: i32,
    /// Clusters of the next refill; 0: the least.
    target: u64,
    /// There were too few since the last refill began.
    dry: bool,
    /// Nobody refills it any more.
    closed: bool,
}

/// Clusters that are ready for use.
#[derive(Debug)]
pub struct Reserve {
    state: Mutex<State>,
    changed: Condvar,
    min: u64,
    max: u64,
}

/// What was taken.
#[derive(Debug, Default)]
pub struct Taken {
    /// The clusters; fewer than wanted, or none, if there are no more.
    pub runs: Vec<Run>,
    /// The reserve is low, and nobody was asked to refill it: the caller asks.
    pub ask: bool,
}

impl Reserve {
    /// An empty one, for clusters of `1 << cluster_bits` bytes.
    pub fn new(cluster_bits: u32) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            min: (MIN_REFILL >> cluster_bits).max(MIN_CLUSTERS),
            max: (MAX_REFILL >> cluster_bits).max(MIN_CLUSTERS),
        }
    }

    /// Takes `want` clusters if there are as many, in as few pieces as possible. Else takes none.
    pub fn take(&self, want: u64) -> Taken {
        let mut state = lock(&self.state);
        let mut runs = Vec::new();
        if state.clusters >= want {
            let mut left = want;
            while left > 0
                && let Some(run) = state.runs.front_mut()
            {
                let count = run.count.min(left);
                let first = run.first;
                run.first += count;
                run.count -= count;
                if run.count == 0 {
                    state.runs.pop_front();
                }
                left -= count;
                runs.push(Run { first, count });
            }
            state.clusters -= want;
        }
        let low = state.clusters <= state.target / 2 || runs.is_empty();
        let ask = low && !state.asked && !state.closed;
        state.asked |= ask;
        state.dry |= runs.is_empty();
        if runs.is_empty() && want > state.target {
            state.target = want.min(self.max);
        }
        Taken { runs, ask }
    }

    /// Waits until there may be `want` clusters. The caller has seen that there were not, and has asked for more.
    ///
    /// # Errors
    /// There are none to be had: why.
    pub fn wait(&self, want: u64, ask: &dyn Fn()) -> Result<(), DiskError> {
        let mut state = lock(&self.state);
        let mut failures = state.failures;
        // What somebody was asked for before may not find what has become free since.
        let mut is_earlier = state.asked;
        loop {
            if state.clusters >= want {
                return Ok(());
            }
            if is_earlier && state.failures != failures {
                (failures, is_earlier) = (state.failures, false);
            }
            if state.closed || state.failures != failures {
                let errno = if state.errno != 0 {
                    state.errno
                } else {
                    ENOSPC
                };
                return Err(DiskError::from_errno(errno));
            }
            if !state.asked {
                state.asked = true;
                drop(state);
                ask();
                state = lock(&self.state);
                continue;
            }
            state = wait(&self.changed, state);
        }
    }

    /// Clusters that a refill should bring. It grows with each one, and faster if there were too few: each refill takes a
    /// barrier, which takes the longer the more the guest has written.
    pub fn target(&self) -> u64 {
        let mut state = lock(&self.state);
        let now = state.target.clamp(self.min, self.max);
        let growth = if std::mem::take(&mut state.dry) { 4 } else { 2 };
        state.target = (now * growth).min(self.max);
        now
    }

    /// Adds clusters that somebody was asked for: counted, stable, zero.
    pub fn fill(&self, runs: impl IntoIterator<Item = Run>) {
        let mut state = lock(&self.state);
        for run in runs {
            state.clusters += run.count;
            state.runs.push_back(run);
        }
        state.asked = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Takes clusters back that were not used after all.
    pub fn put_back(&self, run: Run) {
        let mut state = lock(&self.state);
        state.clusters += run.count;
        state.runs.push_front(run);
        drop(state);
        self.changed.notify_all();
    }

    /// A refill failed. Who waits is told.
    pub fn fail(&self, error: &DiskError) {
        let mut state = lock(&self.state);
        state.failures += 1;
        state.errno = error.errno().unwrap_or(EIO);
        state.asked = false;
        drop(state);
        self.changed.notify_all();
    }

    /// Takes everything, also what a refill that somebody was asked for brings.
    pub fn recall(&self) -> Vec<Run> {
        let mut state = lock(&self.state);
        while state.asked && !state.closed {
            state = wait(&self.changed, state);
        }
        state.clusters = 0;
        std::mem::take(&mut state.runs).into()
    }

    /// Takes everything. From now on, if `close`, nobody refills it and nobody waits for that.
    pub fn drain(&self, close: bool) -> Vec<Run> {
        let mut state = lock(&self.state);
        state.closed = close;
        state.asked = false;
        state.clusters = 0;
        state.target = 0;
        state.dry = false;
        let runs = std::mem::take(&mut state.runs).into();
        drop(state);
        self.changed.notify_all();
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> Run {
        Run { first, count }
    }

    #[test]
    fn takes_all_that_is_wanted_or_nothing() {
        let reserve = Reserve::new(16);
        let taken = reserve.take(1);
        assert!(taken.runs.is_empty() && taken.ask);
        assert!(!reserve.take(1).ask, "asked once");
        assert_eq!(reserve.target(), 16);
        reserve.fill([run(10, 3), run(20, 8)]);
        assert_eq!(reserve.take(5).runs, [run(10, 3), run(20, 2)]);
        assert!(reserve.take(7).runs.is_empty());
        assert_eq!(reserve.take(6).runs, [run(22, 6)]);
        assert!(reserve.drain(true).is_empty());
        assert!(!reserve.take(1).ask, "nobody would hear");
    }

    #[test]
    fn refills_grow_up_to_a_bound_and_meet_large_wishes() {
        let reserve = Reserve::new(21);
        let sizes: Vec<u64> = (0..4).map(|_| reserve.target()).collect();
        assert_eq!(sizes, [8, 16, 32, 32]);
        let reserve = Reserve::new(16);
        reserve.take(100);
        assert_eq!(reserve.target(), 100);
        // Somebody waited for that one, and nobody for the next.
        assert_eq!([reserve.target(), reserve.target()], [400, 800]);
    }

    #[test]
    fn all_of_it_is_with_what_is_on_its_way() {
        let reserve = Reserve::new(16);
        assert!(reserve.take(1).ask);
        // Somebody who did not ask brings nothing that was asked for.
        reserve.put_back(run(7, 1));
        std::thread::scope(|scope| {
            let all = scope.spawn(|| reserve.recall());
            reserve.fill([run(1, 4)]);
            assert_eq!(all.join().unwrap(), [run(7, 1), run(1, 4)]);
        });
        assert!(reserve.recall().is_empty(), "nobody was asked since");
    }

    #[test]
    fn the_failure_of_an_earlier_refill_is_not_the_last_word() {
        let reserve = Reserve::new(16);
        assert!(reserve.take(1).ask);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| reserve.wait(1, &|| reserve.fill([run(1, 1)])));
            // It may wait or not come that far: it gets its cluster either way.
            reserve.fail(&DiskError::from_errno(ENOSPC));
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn who_waits_is_told_of_a_failure() {
        let reserve = Reserve::new(16);
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| reserve.wait(1, &|| reserve.fail(&DiskError::from_errno(ENOSPC))));
            let error = waiter.join().unwrap().unwrap_err();
            assert!(error.is_no_space());
        });
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| reserve.wait(1, &|| reserve.fill([run(1, 1)])));
            waiter.join().unwrap().unwrap();
        });
    }
}

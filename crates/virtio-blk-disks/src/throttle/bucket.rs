// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One limit: when the next operation may start, by the generic cell rate algorithm (ITU-T I.371) on a
//! time line of nanoseconds.

use super::Rate;

/// How far behind the time line operations may be counted after one was released late: what an event loop
/// with timers of a millisecond needs to keep the rate. One per cent of a second.
const SLACK: u64 = 10_000_000;

/// A leaky bucket. Its content is a point in time: when it would be empty.
#[derive(Clone, Copy, Debug)]
struct Leak {
    /// Units a second.
    rate: u64,
    /// Nanoseconds that the content may be ahead of the time.
    credit: u64,
    empty_at: u64,
}

impl Leak {
    const fn new(rate: u64, credit: u64) -> Self {
        Self {
            rate,
            credit,
            empty_at: 0,
        }
    }

    const fn start(&self) -> u64 {
        self.empty_at.saturating_sub(self.credit)
    }

    fn cost(&self, units: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        let rate = self.rate.max(1);
        match units.checked_mul(SECOND) {
            Some(scaled) => scaled / rate,
            None => {
                let nanos = u128::from(units) * u128::from(SECOND) / u128::from(rate);
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        }
    }

    fn take(&mut self, at: u64, units: u64) {
        self.empty_at = self.empty_at.max(at).saturating_add(self.cost(units));
    }

    fn give_back(&mut self, units: u64) {
        self.empty_at = self.empty_at.saturating_sub(self.cost(units));
    }
}

/// The state of one [`Rate`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    average: Leak,
    /// What a burst may not exceed.
    peak: Option<Leak>,
    /// The last operation that waited was released late. What follows closely makes up for that, also for the
    /// time in which its owner, who got the answer late, comes with the next one.
    is_lagging: bool,
}

impl Bucket {
    pub(super) fn new(rate: &Rate) -> Self {
        let Some(burst) = &rate.burst else {
            return Self {
                average: Leak::new(rate.per_second, 0),
                peak: None,
                is_lagging: false,
            };
        };
        // A burst at its rate, for its length, takes this much more than the average gives.
        let extra = burst.per_second.saturating_sub(rate.per_second);
        let credit =
            burst.length.as_nanos() * u128::from(extra) / u128::from(rate.per_second.max(1));
        Self {
            average: Leak::new(rate.per_second, u64::try_from(credit).unwrap_or(u64::MAX)),
            peak: Some(Leak::new(burst.per_second, 0)),
            is_lagging: false,
        }
    }

    fn leaks(&mut self) -> impl Iterator<Item = &mut Leak> {
        std::iter::once(&mut self.average).chain(&mut self.peak)
    }

    /// The earliest time for the next operation.
    pub(super) fn start(&self) -> u64 {
        let peak = self.peak.as_ref().map_or(0, Leak::start);
        self.average.start().max(peak)
    }

    /// Has `units` start at `at`, which is not before [`Bucket::start`].
    pub(super) fn take(&mut self, at: u64, units: u64) {
        let start = self.start();
        // After a longer pause nothing is to be made up for.
        self.is_lagging &= at.saturating_sub(start) <= 2 * SLACK;
        let counted = match self.is_lagging {
            true => start.max(at.saturating_sub(SLACK)),
            false => at,
        };
        for leak in self.leaks() {
            leak.take(counted, units);
        }
    }

    /// Something that should have started at `at` starts `now`.
    pub(super) fn started(&mut self, at: u64, now: u64) {
        self.is_lagging |= now > at;
        for leak in self.leaks() {
            leak.empty_at = leak.empty_at.max(now.saturating_sub(SLACK));
        }
    }

    /// Undoes a [`Bucket::take`] of something that did not happen.
    pub(super) fn give_back(&mut self, units: u64) {
        for leak in self.leaks() {
            leak.give_back(units);
        }
    }
}

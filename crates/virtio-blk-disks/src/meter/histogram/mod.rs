// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often which duration was seen.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps in each doubling: values are known to 1 part in 8.
const STEPS: u32 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Durations from 2^40 ns (18 minutes) on are counted in the last step.
const TOP_BITS: u32 = 40;
const BUCKETS: usize = ((TOP_BITS - STEP_BITS + 1) * STEPS) as usize;

/// The place of a value: its highest bit, and the three bits behind that.
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.min((1 << TOP_BITS) - 1);
    if nanos < u64::from(STEPS) {
        return nanos as usize;
    }
    let high = nanos.ilog2();
    let step = (nanos >> (high - STEP_BITS)) - u64::from(STEPS);
    ((high - STEP_BITS + 1) * STEPS) as usize + step as usize
}

/// The largest value of a place.
fn upper(bucket: usize) -> u64 {
    let (double, step) = (
        bucket as u64 / u64::from(STEPS),
        bucket as u64 % u64::from(STEPS),
    );
    match double.checked_sub(1) {
        None => step,
        Some(shift) => ((u64::from(STEPS) + step + 1) << shift) - 1,
    }
}

/// Counts durations; read while it is written to.
pub(super) struct Histogram {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: std::iter::repeat_with(AtomicU64::default)
                .take(BUCKETS)
                .collect(),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(super) fn record(&self, nanos: u64) {
        if let Some(count) = self.counts.get(bucket(nanos)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(nanos, Ordering::Relaxed);
        if nanos > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    pub(super) fn snapshot(&self) -> Latency {
        let counts: Vec<u64> = (self.counts.iter())
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        Latency {
            count: counts.iter().sum(),
            counts,
            sum: self.sum.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
        }
    }
}

/// Durations as they were at one moment: a histogram in steps of an eighth of a doubling.
#[derive(Clone, PartialEq, Eq)]
pub struct Latency {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            count: 0,
            sum: 0,
            max: 0,
        }
    }
}

impl Latency {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The mean. Zero without any.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum.checked_div(self.count).unwrap_or(0))
    }

    /// The duration that a `fraction` of all (0 to 1: 0.5 is the median, 0.9999 p99.99) did not exceed, to
    /// 1 part in 8 upwards. Zero without any.
    pub fn quantile(&self, fraction: f64) -> Duration {
        let wanted = (self.count as f64 * fraction.clamp(0.0, 1.0))
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(bucket).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// Upper ends of steps, and how many durations did not exceed each; from `first` on, a step for each
    /// doubling, up to the longest.
    pub fn cumulative(&self, first: Duration) -> Vec<(Duration, u64)> {
        let mut steps = Vec::new();
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            let end = Duration::from_nanos(upper(bucket));
            if (bucket + 1).is_multiple_of(STEPS as usize) && end >= first {
                steps.push((end, seen));
                if seen == self.count {
                    break;
                }
            }
        }
        steps
    }

    /// Those of both.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        Self {
            counts: (self.counts.iter().zip(&other.counts))
                .map(|(a, b)| a + b)
                .collect(),
            count: self.count + other.count,
            sum: self.sum.wrapping_add(other.sum),
            max: self.max.max(other.max),
        }
    }

    /// Those that came since an `earlier` snapshot of the same histogram. The longest stays that of all
    /// times.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts: Vec<u64> = (self.counts.iter().zip(&earlier.counts))
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        Self {
            count: counts.iter().sum(),
            counts,
            sum: self.sum.wrapping_sub(earlier.sum),
            max: self.max,
        }
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latency")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests;

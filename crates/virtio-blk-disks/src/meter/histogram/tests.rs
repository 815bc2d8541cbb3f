// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;

use super::*;

#[test]
fn places_are_in_order_without_gaps() {
    let mut last = None;
    for nanos in (0..100_000).chain((17..64).map(|shift| 1 << shift)) {
        let found = bucket(nanos);
        assert!(found < BUCKETS);
        assert!(last.is_none_or(|last| found == last || found == last + 1 || nanos > 99_999));
        if nanos < 1 << TOP_BITS {
            assert!(nanos <= upper(found), "{nanos}");
            assert!(upper(found) - nanos <= nanos / 8, "{nanos}");
        }
        assert!(found == 0 || upper(found - 1) < nanos);
        last = Some(found);
    }
    assert_eq!(upper(BUCKETS - 1), (1 << TOP_BITS) - 1);
}

#[test]
fn an_empty_histogram_answers_zero() {
    let empty = Histogram::default().snapshot();
    assert_eq!(empty, Latency::default());
    assert_eq!(empty.quantile(0.99), Duration::ZERO);
    assert_eq!(empty.mean(), Duration::ZERO);
    assert_eq!(
        empty.cumulative(Duration::ZERO).last().map(|s| s.1),
        Some(0)
    );
}

#[test]
fn differences_and_sums() {
    let histogram = Histogram::default();
    histogram.record(1000);
    let then = histogram.snapshot();
    histogram.record(5000);
    histogram.record(u64::MAX / 2);
    let new = histogram.snapshot().since(&then);
    assert_eq!(new.count(), 2);
    assert_eq!(new.sum(), Duration::from_nanos(5000 + u64::MAX / 2));
    assert_eq!(then.merged(&new).count(), 3);
    assert_eq!(then.merged(&new), histogram.snapshot());
    let steps = histogram.snapshot().cumulative(Duration::from_micros(1));
    assert_eq!(steps[0], (Duration::from_nanos(1023), 1));
    assert_eq!(steps.last().map(|step| step.1), Some(3));
}

proptest! {
    #[test]
    fn quantiles_are_right_to_an_eighth(
        mut values in proptest::collection::vec(0_u64..1 << 40, 1..200),
        fraction in 0.0_f64..=1.0,
    ) {
        let histogram = Histogram::default();
        for &value in &values {
            histogram.record(value);
        }
        values.sort_unstable();
        let rank = (values.len() as f64 * fraction).ceil().max(1.0) as usize;
        let exact = values[rank - 1];
        let found = histogram.snapshot().quantile(fraction).as_nanos() as u64;
        prop_assert!(found >= exact && found - exact <= exact / 8);
    }
}

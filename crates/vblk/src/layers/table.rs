// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a served disk does, as a table for people: `vblk top` and `vblk ctl stats`.

use std::fmt::Write as _;

use super::stats::{Ops, Stats};
use crate::output;

/// A duration in three digits.
fn micros(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.1}µs"),
        v if v < 1e3 => format!("{v:.0}µs"),
        v if v < 1e4 => format!("{:.1}ms", v / 1e3),
        v if v < 1e6 => format!("{:.0}ms", v / 1e3),
        v => format!("{:.1}s", v / 1e6),
    }
}

/// A row: of `seconds`, or of all time.
fn row(table: &mut String, name: &str, ops: &Ops, seconds: Option<f64>) {
    let seconds = seconds.unwrap_or(1.0);
    let _ = writeln!(
        table,
        "  {name:<12} {:>9.0} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7}",
        ops.count as f64 / seconds,
        output::size((ops.bytes as f64 / seconds) as u64),
        micros(ops.mean),
        micros(ops.p50),
        micros(ops.p99),
        micros(ops.p999),
        micros(ops.p9999),
        ops.errors,
    );
}

/// The table of one disk: rates if the numbers are those of an interval, else sums.
pub(super) fn of(stats: &Stats) -> String {
    let mut table = format!(
        "{}  {}  {}",
        stats.name,
        stats.disk,
        output::size(stats.capacity)
    );
    if !stats.layers.is_empty() {
        let _ = write!(table, "  {}", stats.layers.join(","));
    }
    table.push('\n');
    if let Some(total) = &stats.total {
        let (ops, bytes) = match stats.interval {
            Some(_) => ("ops/s", "bytes/s"),
            None => ("ops", "bytes"),
        };
        let _ = writeln!(
            table,
            "  {:<12} {ops:>9} {bytes:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7}",
            format!("depth {}", total.depth),
            "mean",
            "p50",
            "p99",
            "p99.9",
            "p99.99",
            "errors"
        );
        for (name, ops) in &total.ops {
            row(&mut table, name, ops, stats.interval);
        }
    } else {
        table.push_str("  not measured: that takes the layer `meter`\n");
    }
    for throttle in &stats.throttles {
        let _ = writeln!(
            table,
            "  {}: {} waiting, {} waited {:.1} s in all",
            throttle.layer, throttle.waiting, throttle.released, throttle.seconds
        );
    }
    for dirty in &stats.dirty {
        let _ = writeln!(
            table,
            "  dirty {}: {}{}",
            dirty.bitmap,
            output::size(dirty.bytes),
            if dirty.incomplete {
                ", incomplete: all counts as changed"
            } else {
                ""
            }
        );
    }
    if let Some(held) = stats.held.as_ref().filter(|held| held.operations != 0) {
        let _ = writeln!(
            table,
            "  held: {} operations that failed, until `vblk ctl SOCKET resume`; the last: {}",
            output::thousands(held.operations),
            held.last.as_deref().unwrap_or("unknown")
        );
    }
    for error in &stats.errors {
        let _ = writeln!(
            table,
            "  errors: {} of the kind {}, {}",
            output::thousands(error.count),
            error.operation,
            error.error
        );
    }
    if let Some(error) = stats.last_error() {
        let _ = writeln!(table, "  last error: {}", error.last);
    }
    if let Some(error) = &stats.flush_error {
        let _ = writeln!(table, "  FLUSHES FAIL: {error}");
    }
    if let Some(sector) = stats.lie {
        let _ = writeln!(
            table,
            "  sector {sector} does not hold what was written to it"
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (value, text) in [
            (0.25, "0.2µs"),
            (12.0, "12µs"),
            (999.0, "999µs"),
            (1234.0, "1.2ms"),
            (65_000.0, "65ms"),
            (2_500_000.0, "2.5s"),
        ] {
            assert_eq!(micros(value), text);
        }
    }
}

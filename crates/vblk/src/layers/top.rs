// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk top`.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::control::Request;
use super::stats::{Ops, Stats};
use crate::output;

/// Options of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The --control sockets of running servers.
    #[arg(value_name = "SOCKET", required = true)]
    sockets: Vec<PathBuf>,
    /// Seconds between two looks.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// End after so many tables [default: go on until interrupted].
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|s| (0.01..=3600.0).contains(s));
    parsed.ok_or_else(|| "give seconds from 0.01 to 3600".to_owned())
}

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

fn row(table: &mut String, name: &str, ops: &Ops, seconds: f64) {
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

/// The table of one disk.
fn table(stats: &Stats) -> String {
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
    match (&stats.total, stats.interval) {
        (Some(total), Some(seconds)) => {
            let _ = writeln!(
                table,
                "  {:<12} {:>9} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7}",
                format!("depth {}", total.depth),
                "ops/s",
                "bytes/s",
                "mean",
                "p50",
                "p99",
                "p99.9",
                "p99.99",
                "errors"
            );
            for (name, ops) in &total.ops {
                row(&mut table, name, ops, seconds);
            }
        }
        _ => table
            .push_str("  not measured: add the layer `meter` with `vblk ctl SOCKET layers …`\n"),
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
            "  dirty {}: {}",
            dirty.bitmap,
            output::size(dirty.bytes)
        );
    }
    if let Some(sector) = stats.lie {
        let _ = writeln!(
            table,
            "  sector {sector} does not hold what was written to it"
        );
    }
    table
}

/// Shows the table until interrupted.
pub fn run(args: &TopArgs, json: bool) -> Result<(), Box<dyn Error>> {
    let since = Request::Stats { since: true };
    let mut clients = Vec::new();
    for socket in &args.sockets {
        let mut client = Client::connect(socket)?;
        let disks: Vec<String> =
            serde_json::from_value(client.ask(None, &Request::Disks {})?["disks"].take())?;
        for disk in &disks {
            // From here on it tells what came since.
            client.ask(Some(disk), &since)?;
        }
        clients.push((client, disks));
    }
    let clears = std::io::stdout().is_terminal() && !json;
    let mut shown = 0;
    while args.count.is_none_or(|count| shown < count) {
        std::thread::sleep(Duration::from_secs_f64(args.interval));
        let mut screen = String::new();
        for (client, disks) in &mut clients {
            for disk in disks {
                let answer = client.ask(Some(disk), &since)?;
                if json {
                    output::print(&answer, true)?;
                } else {
                    screen.push_str(&table(&serde_json::from_value(answer)?));
                }
            }
        }
        let mut out = std::io::stdout().lock();
        if clears {
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(screen.as_bytes())?;
        out.flush()?;
        shown += 1;
    }
    Ok(())
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

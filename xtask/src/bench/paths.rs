// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the paths of a vDPA device cost a VMM, and for how long a move between them stops its guest.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{callgrind, said};
use crate::command::{Error, need_program};

/// The longest p99 of a pause, in microseconds.
const TARGET: f64 = 1000.0;
/// Kicks of the shorter of two counts; the other has twice as many.
const SHORT: u64 = 100;
/// Moves in each direction.
const MOVES: u32 = 1000;

/// Ways to serve a request: what they are called, and the options of `path-cost`.
const WAYS: [(&str, &[&str]); 5] = [
    ("the disk directly, no vDPA device", &["--direct"]),
    ("slow path", &[]),
    ("slow path, polling", &["--poll"]),
    ("slow path, data copied", &["--bounce"]),
    ("slow path, writes", &["--write"]),
];

/// Everything.
#[derive(Serialize)]
pub struct Report {
    ways: Vec<Way>,
    moves: Vec<Moves>,
}

/// Instructions of the VMM per request.
#[derive(Serialize)]
struct Way {
    way: &'static str,
    /// One request per kick, and 32.
    one: f64,
    many: f64,
}

/// What `switch-pause` says.
#[derive(Serialize, Deserialize)]
struct Moves {
    queues: u16,
    in_flight: u16,
    moves: u32,
    to_slow: Pauses,
    to_fast: Pauses,
    fast: Vmm,
    slow: Vmm,
}

/// In microseconds.
#[derive(Serialize, Deserialize)]
struct Pauses {
    p50: f64,
    p99: f64,
    max: f64,
}

/// The VMM on one path.
#[derive(Serialize, Deserialize)]
struct Vmm {
    threads: u32,
    /// Nanoseconds of CPU time.
    per_request: f64,
}

/// Measures both.
///
/// # Errors
/// valgrind is missing and can't be installed, or something fails.
pub fn measure() -> Result<Report, Error> {
    need_program("valgrind", "valgrind")?;
    let mut ways = Vec::new();
    for (way, options) in WAYS {
        eprintln!("counting: {way}");
        let cost = |batch: u64| {
            let count = |batches: u64| {
                let mut args: Vec<String> = options.iter().map(ToString::to_string).collect();
                args.extend([format!("--batch={batch}"), format!("--batches={batches}")]);
                callgrind::count("path-cost", "path_cost::serve*", &args)
            };
            let more = count(2 * SHORT)? - count(SHORT)?;
            Ok::<_, Error>(more / (SHORT * batch) as f64)
        };
        ways.push(Way {
            way,
            one: cost(1)?,
            many: cost(32)?,
        });
    }
    let moves = [1, 2, 4].map(moves).into_iter().collect::<Result<_, _>>()?;
    Ok(Report { ways, moves })
}

fn moves(queues: u32) -> Result<Moves, Error> {
    eprintln!("moving a guest of {queues} queues");
    let args = [
        "--json".to_owned(),
        format!("--queues={queues}"),
        format!("--moves={MOVES}"),
    ];
    serde_json::from_str(&said("switch-pause", &args)?).map_err(|source| Error::Format {
        what: "switch-pause's report".into(),
        source,
    })
}

/// The tables.
pub fn tables(report: &Report) -> String {
    let mut text = "Instructions of the VMM for a request of 4 KiB (reads, unless said otherwise), from the guest's kick \
                    to its used entry, without the device's own work:\n\n\
                    | | 1 per kick | 32 per kick |\n|---|--:|--:|\n"
        .to_owned();
    for Way { way, one, many } in &report.ways {
        // Writing to a String does not fail.
        let _ = writeln!(text, "| {way} | {one:.0} | {many:.0} |");
    }
    let _ = write!(
        text,
        "\nA guest of some queues with 32 requests in flight on a memory disk: CPU time of the VMM's threads for each \
         request, and how long nobody serves the guest when it is moved (target: p99 below {TARGET:.0} µs):\n\n\
         | queues | fast path | slow path | to the slow path: p50, p99, max (µs) | to the fast path |\n\
         |--:|---|---|---|---|\n"
    );
    for row in &report.moves {
        let vmm = |vmm: &Vmm| format!("{:.0} ns, {} threads", vmm.per_request, vmm.threads);
        let pauses = |p: &Pauses| format!("{:.0}, {:.0}, {:.0}", p.p50, p.p99, p.max);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            row.queues,
            vmm(&row.fast),
            vmm(&row.slow),
            pauses(&row.to_slow),
            pauses(&row.to_fast)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_becomes_a_row() {
        let said = r#"{"queues":1,"in_flight":32,"moves":9,"to_slow":{"p50":1.2,"p99":2.5,"max":3.0},
            "to_fast":{"p50":4.0,"p99":5.0,"max":6.0},"fast":{"threads":0,"per_request":0.0},
            "slow":{"threads":1,"per_request":812.4},"answered":7}"#;
        let text = tables(&Report {
            ways: vec![Way {
                way: "slow path",
                one: 3700.4,
                many: 1900.0,
            }],
            moves: vec![serde_json::from_str(said).unwrap()],
        });
        assert!(text.contains("| slow path | 3700 | 1900 |"), "{text}");
        let row = "| 1 | 0 ns, 0 threads | 812 ns, 1 threads | 1, 2, 3 | 4, 5, 6 |";
        assert!(text.contains(row), "{text}");
    }
}

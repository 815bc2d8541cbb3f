// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients and servers of network block devices side by side, measured by `vblk-testing compare-nbd`.

use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::servers::DISTURBED;
use crate::command::{Error, command, need_program, output, target_dir};

/// The programs that take part, and their packages.
const PROGRAMS: [(&str, &str); 5] = [
    ("qemu-storage-daemon", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
];

/// Who is compared with the others.
const OURS: &str = "vblk";

/// Who takes part to show its own limit, and is no peer.
const BESIDE: &str = "nbdkit";

/// One program under one load, as `vblk-testing compare-nbd` prints it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    table: String,
    program: String,
    upstream: Option<String>,
    write: bool,
    depth: usize,
    rate: f64,
    cpu_ns: f64,
    others: f64,
    rounds: Vec<f64>,
}

/// Runs the comparison.
///
/// # Errors
/// A program is missing and can't be installed, or something fails.
pub fn measure(seconds: f64, rounds: u32, dir: Option<&Path>) -> Result<Vec<Row>, Error> {
    for (program, package) in PROGRAMS {
        need_program(program, package)?;
    }
    let programs = target_dir().join("release");
    let mut command = command(programs.join("vblk-testing"), ["compare-nbd", "--vblk"]);
    command
        .arg(programs.join("vblk"))
        .arg(format!("--seconds={seconds}"))
        .arg(format!("--rounds={rounds}"));
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    let lines = output(&mut command)?;
    let row = |line| {
        serde_json::from_str(line).map_err(|source| Error::Format {
            what: "what vblk-testing printed".into(),
            source,
        })
    };
    lines.lines().map(row).collect()
}

impl Row {
    fn same_load(&self, other: &Self) -> bool {
        (&self.table, &self.upstream, self.write, self.depth)
            == (&other.table, &other.upstream, other.write, other.depth)
    }

    /// How this compares with the best of the peers: times the rate, part of the CPU time.
    fn against_peers(&self, rows: &[Self]) -> Option<(f64, f64)> {
        let peers = || {
            let is_peer = |row: &&Self| ![OURS, BESIDE].contains(&&*row.program);
            rows.iter()
                .filter(|row| row.same_load(self))
                .filter(is_peer)
        };
        let fastest = peers().map(|row| row.rate).reduce(f64::max)?;
        let cheapest = peers().map(|row| row.cpu_ns).reduce(f64::min)?;
        Some((self.rate / fastest, self.cpu_ns / cheapest))
    }
}

/// The tables: of the clients, and of the servers.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::from(
        "Medians; 4 KiB at random, one queue or connection, but for nbdcopy; a raw file in the page cache, unix sockets; CPU \
         time of all threads of the program that is named. Ratios: to the best of QEMU's programs in the same lines.\n",
    );
    let most = rows.iter().map(|row| row.others).fold(0.0, f64::max);
    if most > DISTURBED {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "\n**The machine was not quiet: something else kept up to {most:.1} CPUs busy.**"
        );
    }
    for (table, head) in [
        (
            "client",
            "Clients, over vhost-user (targets at depth 32: on nbdkit at least 1.1 at 0.5, on our own server 1.5)",
        ),
        ("fio", "Servers under fio's engine (targets: at least 1.5)"),
        ("nbdcopy", "Servers under nbdcopy (target: at least 1)"),
    ] {
        if rows.iter().all(|row| row.table != table) {
            continue;
        }
        let (first, unit) = match table {
            "client" => ("server", "IOPS | µs CPU per I/O"),
            "fio" => ("under", "IOPS | µs CPU per I/O"),
            _ => ("under", "MiB/s | µs CPU per MiB"),
        };
        let _ = write!(
            text,
            "\n{head}:\n\n| {first} | load | program | {unit} | rate | CPU |\n|---|---|---|--:|--:|--:|--:|\n"
        );
        for row in rows.iter().filter(|row| row.table == table) {
            let load = match (table, row.write) {
                ("nbdcopy", _) => "copy".to_owned(),
                (_, false) => format!("read, depth {}", row.depth),
                (_, true) => format!("write, depth {}", row.depth),
            };
            let _ = write!(
                text,
                "| {} | {load} | {} | {:.0} | {:.2} |",
                row.upstream.as_deref().unwrap_or(table),
                row.program,
                row.rate,
                row.cpu_ns / 1e3,
            );
            match row.against_peers(rows) {
                Some((faster, cheaper)) if row.program == OURS => {
                    let _ = writeln!(text, " {faster:.1} | {cheaper:.2} |");
                }
                _ => text.push_str(" | |\n"),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(table: &str, program: &str, rate: f64, cpu_ns: f64) -> Row {
        Row {
            table: table.into(),
            program: program.into(),
            upstream: None,
            write: false,
            depth: 32,
            rate,
            cpu_ns,
            others: 0.0,
            rounds: vec![rate],
        }
    }

    #[test]
    fn ours_is_compared_with_the_best_of_the_peers() {
        let rows = [
            row("fio", "vblk", 600.0, 100.0),
            row("fio", "qemu-nbd", 200.0, 500.0),
            row("fio", "qemu-storage-daemon", 100.0, 400.0),
            // Neither of them is a peer.
            row("fio", "nbdkit", 900.0, 1.0),
            row("nbdcopy", "qemu-nbd", 900.0, 1.0),
        ];
        assert_eq!(rows[0].against_peers(&rows), Some((3.0, 0.25)));
        let tables = tables(&rows);
        assert!(tables.contains("| 3.0 | 0.25 |"), "{tables}");
        assert!(
            tables.contains("| nbdcopy | copy | qemu-nbd | 900 |"),
            "{tables}"
        );
        assert!(!tables.contains("not quiet"));
    }
}

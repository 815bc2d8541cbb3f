// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What layers cost, in instructions.

use std::fmt::Write;

use serde::Serialize;

use super::cost::per_request;
use crate::command::{Error, need_program};

/// What is counted: what it is called, and the options of `request-cost`. Rows that write are compared with the
/// first that does.
const STACKS: [(&str, &[&str]); 14] = [
    ("the disk alone, no stack", &["--bare"]),
    ("the same, writes", &["--bare", "--write"]),
    ("a stack without layers", &[]),
    ("a stack without layers, writes", &["--write"]),
    ("none, but to be changed at run time", &["--live"]),
    (
        "`throttle=group:a`, no limit set",
        &["--layers=throttle=group:a"],
    ),
    (
        "`throttle`, two limits that hold nothing back",
        &["--layers=throttle=iops:100000000/bandwidth:1P"],
    ),
    ("`dirty=a`", &["--layers=dirty=a"]),
    ("`dirty=a`, writes", &["--layers=dirty=a", "--write"]),
    ("`werror=stop`", &["--layers=werror=stop"]),
    ("`meter`", &["--layers=meter"]),
    (
        "`fault=seed:1`, nothing planned",
        &["--layers=fault=seed:1"],
    ),
    (
        "`fault=errors:0/reorder:on`",
        &["--layers=fault=reorder:on"],
    ),
    ("`verify`", &["--layers=verify"]),
];

/// One stack.
#[derive(Serialize)]
pub struct Row {
    stack: &'static str,
    write: bool,
    /// Instructions per request, one per kick.
    one: f64,
    /// The same, 32 per kick.
    many: f64,
}

/// Counts all stacks.
///
/// # Errors
/// valgrind is missing and can't be installed, or fails.
pub fn measure() -> Result<Vec<Row>, Error> {
    need_program("valgrind", "valgrind")?;
    let mut rows = Vec::new();
    for (stack, options) in STACKS {
        eprintln!("counting: {stack}");
        let args: Vec<String> = std::iter::once("--disk=memory")
            .chain(options.iter().copied())
            .map(Into::into)
            .collect();
        rows.push(Row {
            stack,
            write: options.contains(&"--write"),
            one: per_request(&args, 1)?,
            many: per_request(&args, 32)?,
        });
    }
    Ok(rows)
}

/// The table.
pub fn table(rows: &[Row]) -> String {
    let mut table = "4 KiB reads, unless said otherwise, on a memory disk in plain memory:\n\n\
         | layers | 1 per kick | added | 32 per kick | added |\n|---|--:|--:|--:|--:|\n"
        .to_owned();
    for row in rows {
        let base = rows.iter().find(|base| base.write == row.write);
        let added = base.map_or((0.0, 0.0), |base| {
            (row.one - base.one, row.many - base.many)
        });
        // Writing to a String does not fail.
        let _ = writeln!(
            table,
            "| {} | {:.0} | {:.0} | {:.0} | {:.0} |",
            row.stack, row.one, added.0, row.many, added.1
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_compared_with_reads_and_writes_with_writes() {
        let row = |stack, write, one| Row {
            stack,
            write,
            one,
            many: one / 2.0,
        };
        let table = table(&[
            row("a", false, 100.0),
            row("b", true, 200.0),
            row("c", true, 260.0),
        ]);
        assert!(table.contains("| a | 100 | 0 | 50 | 0 |"), "{table}");
        assert!(table.contains("| c | 260 | 60 | 130 | 30 |"), "{table}");
    }
}

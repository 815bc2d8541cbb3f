// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Instructions from the kick to the used entry, by callgrind.

use std::fmt::Write;

use serde::Serialize;

use super::callgrind;
use crate::command::{Error, need_program};

/// The most instructions of a read on a null disk, in plain memory.
const TARGET: f64 = 500.0;

/// Kicks of the shorter of two counts; the other has twice as many.
const BATCHES: u64 = 100;

/// What one request costs.
pub(super) fn per_request(args: &[String], batch: u64) -> Result<f64, Error> {
    let mut args = args.to_vec();
    args.push(format!("--batch={batch}"));
    let more = count(&args, 2 * BATCHES)? - count(&args, BATCHES)?;
    Ok(more / (BATCHES * batch) as f64)
}

/// One kind of request.
#[derive(Serialize)]
pub struct Row {
    disk: &'static str,
    write: bool,
    indirect: bool,
    costs: Vec<Cost>,
}

/// Its cost in one place.
#[derive(Serialize)]
struct Cost {
    iommu: bool,
    batch: u64,
    /// Per request.
    instructions: f64,
}

/// Counts all kinds.
///
/// # Errors
/// valgrind is missing and can't be installed, or fails.
pub fn measure() -> Result<Vec<Row>, Error> {
    need_program("valgrind", "valgrind")?;
    let mut rows = Vec::new();
    for disk in ["null", "null-zero", "memory", "raw", "qcow2"] {
        for write in [false, true] {
            // Writes don't tell the null disks apart, and those to a file are a system call.
            if write && !matches!(disk, "null" | "memory") {
                continue;
            }
            for indirect in [false, true] {
                eprintln!(
                    "counting: {disk}, {}, {}",
                    verb(write),
                    descriptors(indirect)
                );
                let mut costs = Vec::new();
                for (iommu, batch) in [(false, 1), (false, 32), (true, 1), (true, 32)] {
                    let mut args = vec![format!("--disk={disk}")];
                    for (set, name) in [
                        (iommu, "--iommu"),
                        (write, "--write"),
                        (indirect, "--indirect"),
                    ] {
                        if set {
                            args.push(name.into());
                        }
                    }
                    costs.push(Cost {
                        iommu,
                        batch,
                        instructions: per_request(&args, batch)?,
                    });
                }
                rows.push(Row {
                    disk,
                    write,
                    indirect,
                    costs,
                });
            }
        }
    }
    Ok(rows)
}

const fn verb(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

const fn descriptors(indirect: bool) -> &'static str {
    if indirect { "indirect" } else { "direct" }
}

/// Instructions inside `serve`.
fn count(args: &[String], batches: u64) -> Result<f64, Error> {
    let args = [args, &[format!("--batches={batches}")]].concat();
    callgrind::count("request-cost", "request_cost::serve*", &args)
}

/// The table.
pub fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "Instructions per request (target: a direct read on null in plain memory, at most {TARGET}):\n\n\
         | disk | request | descriptors | plain, 1 per kick | plain, 32 per kick | IOMMU, 1 per kick | \
         IOMMU, 32 per kick |\n|---|---|---|--:|--:|--:|--:|\n"
    );
    for row in rows {
        let disk = match row.disk {
            "null" => "null, zero=off",
            "null-zero" => "null, zero=on",
            "raw" => "raw, in the page cache",
            "qcow2" => "qcow2, in the page cache",
            other => other,
        };
        // Writing to a String does not fail.
        let _ = write!(
            table,
            "| {disk} | {} | {} |",
            verb(row.write),
            descriptors(row.indirect)
        );
        for cost in &row.costs {
            let _ = write!(table, " {:.0} |", cost.instructions);
        }
        table.push('\n');
    }
    table
}

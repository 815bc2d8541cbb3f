// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the vDPA layer costs, and a translation.

use std::fmt::Write;

use serde::Serialize;

use super::callgrind;
use crate::command::{Error, need_program};

/// The most that the layer may add, in percent.
const TARGET: f64 = 15.0;
/// Kicks, or lookups in hundreds, of the shorter of two counts; the other has twice as many.
const SHORT: u64 = 100;

/// Everything.
#[derive(Serialize)]
pub struct Report {
    requests: Vec<Requests>,
    lookups: Vec<Lookups>,
}

/// One kind of request through one layer.
#[derive(Serialize)]
struct Requests {
    layer: &'static str,
    write: bool,
    batch: u64,
    /// Per request, in the device.
    instructions: f64,
}

/// One kind of memory.
#[derive(Serialize)]
struct Lookups {
    memory: &'static str,
    ranges: u64,
    /// Instructions of a lookup in the range of the one before, and in another.
    same: f64,
    scattered: f64,
}

/// Measures both.
///
/// # Errors
/// valgrind is missing and can't be installed, or something fails.
pub fn measure() -> Result<Report, Error> {
    need_program("valgrind", "valgrind")?;
    let mut requests = Vec::new();
    for write in [false, true] {
        for batch in [1, 32] {
            for layer in ["none", "strict", "compat"] {
                eprintln!("counting: {layer}, write {write}, {batch} per kick");
                let count = |batches: u64| {
                    let mut args = arguments(layer, write, batch);
                    args.push(format!("--batches={batches}"));
                    callgrind::count("vdpa-cost", "vdpa_cost::serve*", &args)
                };
                let more = count(2 * SHORT)? - count(SHORT)?;
                requests.push(Requests {
                    layer,
                    write,
                    batch,
                    instructions: more / (SHORT * batch) as f64,
                });
            }
        }
    }
    let mut lookups = Vec::new();
    for memory in ["plain", "iotlb", "iommu"] {
        for ranges in [1, 64, 4096] {
            eprintln!("counting: {memory} memory of {ranges} ranges");
            let count = |scattered: bool, lookups: u64| {
                let mut args = vec![
                    "lookups".to_owned(),
                    format!("--memory={memory}"),
                    format!("--ranges={ranges}"),
                    format!("--lookups={lookups}"),
                ];
                if scattered {
                    args.push("--scattered".into());
                }
                callgrind::count("vdpa-cost", "vdpa_cost::translate*", &args)
            };
            let cost = |scattered| {
                let more = count(scattered, 200 * SHORT)? - count(scattered, 100 * SHORT)?;
                Ok::<_, Error>(more / (100 * SHORT) as f64)
            };
            lookups.push(Lookups {
                memory,
                ranges,
                same: cost(false)?,
                scattered: cost(true)?,
            });
        }
    }
    Ok(Report { requests, lookups })
}

fn arguments(layer: &str, write: bool, batch: u64) -> Vec<String> {
    let mut args = vec![
        "requests".to_owned(),
        format!("--layer={layer}"),
        format!("--batch={batch}"),
    ];
    if write {
        args.push("--write".into());
    }
    args
}

/// The tables.
pub fn tables(report: &Report) -> String {
    let mut text = format!(
        "4 KiB requests on a memory disk; instructions of the device per request (target: the strict \
         layer adds at most {TARGET} percent):\n\n\
         | request | layer | instructions | added |\n|---|---|--:|--:|\n"
    );
    for row in &report.requests {
        let verb = if row.write { "write" } else { "read" };
        let base = report
            .requests
            .iter()
            .find(|b| b.layer == "none" && (b.write, b.batch) == (row.write, row.batch));
        let added = base
            .filter(|_| row.layer != "none")
            .map_or_else(String::new, |base| {
                let added = 100.0 * (row.instructions / base.instructions - 1.0);
                format!("{added:+.1} %")
            });
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "| {verb}, {} per kick | {} | {:.0} | {added} |",
            row.batch, row.layer, row.instructions
        );
    }
    text += "\nInstructions of a lookup of 4 KiB by `GuestMap::translate`:\n\n\
             | memory | ranges | in the same range as the last | in another |\n|---|--:|--:|--:|\n";
    for row in &report.lookups {
        let memory = match row.memory {
            "plain" => "plain (`GuestMemoryMmap`)",
            "iotlb" => "`IotlbTable`",
            _ => "`IommuMemory` of vm-memory",
        };
        let _ = writeln!(
            text,
            "| {memory} | {} | {:.0} | {:.0} |",
            row.ranges, row.same, row.scattered
        );
    }
    text
}

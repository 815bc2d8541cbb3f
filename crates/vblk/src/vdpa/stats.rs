// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk vdpa stats`.

use std::collections::BTreeMap;

use serde::Serialize;
use vdpa_bus::management::{Management, ManagementError, VendorStats};

use super::cli::StatsArgs;
use super::{Failure, lines, table};

/// The counters of one virtqueue. Field names are the JSON's.
#[derive(Serialize)]
pub struct Counters {
    pub name: String,
    pub queue: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negotiated_features: Option<u64>,
    /// By the vendor's name. Of several with one name the last counts.
    pub counters: BTreeMap<String, u64>,
}

impl From<VendorStats> for Counters {
    fn from(stats: VendorStats) -> Self {
        Self {
            name: stats.name,
            queue: stats.queue,
            negotiated_features: stats.negotiated_features,
            counters: stats.counters.into_iter().collect(),
        }
    }
}

/// As a table: a line for each counter.
pub fn text(all: &[Counters]) -> String {
    let rows = all.iter().flat_map(|queue| {
        queue.counters.iter().map(|(name, value)| {
            [
                Some(queue.queue.to_string()),
                Some(name.clone()),
                Some(value.to_string()),
            ]
        })
    });
    table::render(["QUEUE", "COUNTER", "VALUE"], rows)
}

/// Asks the kernel.
pub fn run(args: &StatsArgs, json: bool) -> Result<(), Failure> {
    let mut client = Management::open()?;
    let queues = match args.queue {
        Some(queue) => queue..queue.saturating_add(1),
        None => 0..client.device(&args.name)?.max_vqs,
    };
    // A device may claim any number: the first that the kernel refuses ends it.
    let all = queues.map(|queue| client.vendor_stats(&args.name, queue).map(Counters::from));
    let all = all.collect::<Result<Vec<_>, ManagementError>>()?;
    Ok(lines(&all, &text(&all), json)?)
}

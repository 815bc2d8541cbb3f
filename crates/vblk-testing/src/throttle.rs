// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How exactly limits are kept, by the clock on the wall: on a served disk, seen from the driver.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::Error;
use crate::load::{self, BLOCK, Load, QUEUE_SIZE};
use crate::server::{Config as ServerConfig, Disk, Program, Server};

/// The limits that are looked at, with the I/Os of [`BLOCK`] bytes a second that they allow.
const LIMITS: [(&str, f64); 4] = [
    ("iops:500", 500.0),
    ("iops:2000", 2000.0),
    ("iops:10000", 10_000.0),
    ("bandwidth:64M", (64 << 20) as f64 / BLOCK as f64),
];

/// A limit at a depth.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The limit as it is written.
    pub limit: &'static str,
    /// I/Os in flight.
    pub depth: usize,
    /// I/Os a second that it allows.
    pub allowed: f64,
    /// I/Os a second of each round.
    pub rounds: Vec<f64>,
    /// The largest deviation, in percent.
    pub off: f64,
}

/// Puts a load on a disk that does nothing but keep a limit, for each limit and depth. A quarter of the time passes before
/// each round is counted.
///
/// # Errors
/// The server or a request fails.
pub fn run(
    vblk: PathBuf,
    depths: &[usize],
    time: Duration,
    rounds: usize,
    poll: bool,
) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (limit, allowed) in LIMITS {
        let server = Server::start(&ServerConfig {
            program: Program::Vblk(vblk.clone()),
            disk: Disk::Named(format!("null:1G,throttle={limit}")),
            queues: 1,
            queue_size: QUEUE_SIZE,
            read_only: false,
        })?;
        for &depth in depths {
            let load = Load::reads(depth, poll);
            let rounds = (0..rounds)
                .map(|_| Ok(load::run(&server.socket(), server.pid(), load, time)?.iops))
                .collect::<Result<Vec<f64>, Error>>()?;
            let off = |iops: &f64| (iops / allowed - 1.0).abs() * 100.0;
            rows.push(Row {
                limit,
                depth,
                allowed,
                off: rounds.iter().map(off).fold(0.0, f64::max),
                rounds,
            });
        }
        server.stop()?;
    }
    Ok(rows)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a served disk does, as JSON.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_blk_disks::dirty::DirtyOptions;
use virtio_blk_disks::meter::{ClassStats, OpClass, QueueStats};

use super::ExportedDisk;
use crate::journal::Failures;

/// One kind of operation. Times in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Ops {
    /// Operations that ended.
    pub count: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Those that failed.
    pub errors: u64,
    /// Mean latency.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 of 100 took no longer.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// 9,999 of 10,000.
    pub p9999: f64,
    /// The longest since the start.
    pub max: f64,
    /// Of all latencies together, the time without room below.
    pub queued: f64,
}

/// One queue, or all together.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Queue {
    /// Operations in flight now.
    pub depth: u64,
    /// By kind; without those that did not happen.
    pub ops: BTreeMap<String, Ops>,
}

/// One throttle.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Throttle {
    /// The layer as it is written.
    pub layer: String,
    /// Operations that wait now.
    pub waiting: u64,
    /// Operations that had to wait, since the start.
    pub released: u64,
    /// For how long, in seconds, all together.
    pub seconds: f64,
}

/// One dirty bitmap.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Dirty {
    /// Its name.
    pub bitmap: String,
    /// Bytes in marked blocks.
    pub bytes: u64,
    /// Bytes of a block.
    pub granularity: u64,
    /// It can't know what changed: everything counts.
    pub incomplete: bool,
}

/// The operations that failed and are held, by `rerror` and `werror`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HeldOperations {
    /// How many, now.
    pub operations: u64,
    /// Why the last one is held, or was.
    pub last: Option<String>,
}

/// Everything about one disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stats {
    /// What the disk is called among those of its server.
    pub name: String,
    /// The disk at the bottom.
    pub disk: String,
    /// Bytes.
    pub capacity: u64,
    /// The layers, from the medium upwards.
    pub layers: Vec<String>,
    /// Seconds that `queues` and `total` cover; all time if there are none.
    pub interval: Option<f64>,
    /// What the meter counted, by queue.
    pub queues: Vec<Queue>,
    /// What the meter counted. None without a meter.
    pub total: Option<Queue>,
    /// The throttles.
    pub throttles: Vec<Throttle>,
    /// The dirty bitmaps.
    pub dirty: Vec<Dirty>,
    /// What failed and is held. None without a layer for it.
    pub held: Option<HeldOperations>,
    /// What failed, by operation and error, since the start.
    #[serde(default)]
    pub errors: Vec<Failures>,
    /// Why no flush succeeds any more: completed writes may be lost.
    #[serde(default)]
    pub flush_error: Option<String>,
    /// The sector of the first mismatch that `verify` found.
    pub lie: Option<u64>,
}

/// What was counted the last time.
pub struct Before {
    at: Instant,
    queues: Vec<QueueStats>,
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

impl From<&ClassStats> for Ops {
    fn from(class: &ClassStats) -> Self {
        let quantile = |fraction| micros(class.latency.quantile(fraction));
        Self {
            count: class.count(),
            bytes: class.bytes,
            errors: class.errors,
            mean: micros(class.latency.mean()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            p9999: quantile(0.9999),
            max: micros(class.latency.max()),
            queued: micros(class.queued),
        }
    }
}

impl From<&QueueStats> for Queue {
    fn from(stats: &QueueStats) -> Self {
        let happened = |class: &OpClass| stats.class(*class).count() != 0;
        let named = |class: OpClass| (class.name().to_owned(), stats.class(class).into());
        Self {
            depth: stats.depth,
            ops: (OpClass::ALL.into_iter().filter(happened).map(named)).collect(),
        }
    }
}

impl Stats {
    /// The kind of error that came last.
    pub(super) fn last_error(&self) -> Option<&Failures> {
        self.errors.iter().max_by(|a, b| a.at.total_cmp(&b.at))
    }

    /// Looks. With what was counted `before`, the meter's part is what came since.
    pub(super) fn of(served: &ExportedDisk, before: Option<&Before>) -> (Self, Before) {
        let stack = &served.stack;
        let meter = stack.meter();
        let queues = meter.as_ref().map_or_else(Vec::new, |meter| meter.queues());
        let since = |(index, now): (usize, &QueueStats)| {
            let earlier = before.and_then(|before| before.queues.get(index));
            earlier.map_or_else(|| now.clone(), |earlier| now.since(earlier))
        };
        let shown: Vec<QueueStats> = queues.iter().enumerate().map(since).collect();
        let total = shown
            .iter()
            .fold(QueueStats::default(), |sum, queue| sum.merged(queue));
        let layers = stack.layers();
        let of_throttles = layers.iter().filter(|layer| layer.name() == "throttle");
        let throttles = of_throttles.zip(stack.throttles()).map(|(layer, disk)| {
            let stats = disk.stats();
            Throttle {
                layer: layer.to_string(),
                waiting: stats.waiting,
                released: stats.released,
                seconds: stats.time.as_secs_f64(),
            }
        });
        let dirty = layers.iter().filter_map(|layer| {
            let DirtyOptions {
                name, granularity, ..
            } = layer.options()?;
            let bitmap = stack.dirty(name)?.bitmap(name)?;
            Some(Dirty {
                bitmap: name.clone(),
                bytes: bitmap.dirty_bytes(),
                granularity: *granularity,
                incomplete: bitmap.is_incomplete().is_some(),
            })
        });
        let at = Instant::now();
        let stats = Self {
            name: served.name.clone(),
            disk: served.source.to_string(),
            capacity: served.disk.caps().capacity_bytes(),
            interval: before.map(|before| at.duration_since(before.at).as_secs_f64()),
            queues: shown.iter().map(Queue::from).collect(),
            total: meter.as_ref().map(|_| Queue::from(&total)),
            throttles: throttles.collect(),
            dirty: dirty.collect(),
            held: stack.policy().map(|policy| HeldOperations {
                operations: policy.held(),
                last: policy.last_held().map(|operation| operation.to_string()),
            }),
            errors: served.journal.failures(),
            flush_error: (served.disk.flush_error()).map(|error| error.to_string()),
            lie: stack
                .verify()
                .and_then(|verify| verify.mismatch())
                .map(|mismatch| mismatch.sector),
            layers: layers.iter().map(ToString::to_string).collect(),
        };
        (stats, Before { at, queues })
    }
}

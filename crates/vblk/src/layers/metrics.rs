// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--metrics`: the meter's numbers for Prometheus.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use virtio_blk_disks::meter::{ClassStats, Latency, OpClass, QueueStats};

use super::address::Address;
use super::http::{self, Page};
use super::stats::Stats;
use super::{ExportedDisk, Shown};

/// Upper ends of the histogram: 2^10 ns (a microsecond) to 2^33 (8.6 s).
const ENDS: std::ops::RangeInclusive<u32> = 10..=33;

type Labels = Vec<(&'static str, String)>;

/// Has the numbers fetched by HTTP, on threads of their own. Returns the address.
///
/// # Errors
/// None of the addresses can be listened on.
pub(super) fn start(address: &Address, shown: Shown) -> io::Result<SocketAddr> {
    let listener = address
        .bind()
        .map_err(|error| io::Error::new(error.kind(), format!("--metrics {address}: {error}")))?;
    let bound = listener.local_addr()?;
    let mut registry = Registry::with_prefix("vblk");
    registry.register_collector(Box::new(All(shown)));
    let text = move || {
        let mut text = String::new();
        match text::encode(&mut text, &registry) {
            Ok(()) => Ok(text),
            Err(error) => Err(error.to_string()),
        }
    };
    let page = Page {
        path: "/metrics",
        kind: "application/openmetrics-text; version=1.0.0; charset=utf-8",
        text: Box::new(text),
    };
    http::start(listener, page)?;
    Ok(bound)
}

/// The durations between upper ends, as seconds and counts.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let first = Duration::from_nanos((1 << ENDS.start()) - 1);
    let steps = latency.cumulative(first);
    let mut before = 0;
    let mut buckets: Vec<(f64, u64)> = ENDS
        .zip(steps.into_iter().map(Some).chain(std::iter::repeat(None)))
        .map(|(end, step)| {
            let upto = step.map_or(before, |(_, count)| count);
            let count = upto - before;
            before = upto;
            ((1_u64 << end) as f64 / 1e9, count)
        })
        .collect();
    // The encoder writes it as `+Inf`.
    buckets.push((f64::INFINITY, latency.count().saturating_sub(before)));
    buckets
}

/// What one disk says.
struct Disk {
    name: String,
    stats: Stats,
    queues: Vec<QueueStats>,
}

impl Disk {
    fn of(served: &ExportedDisk) -> Self {
        let (stats, _) = Stats::of(served, None);
        Self {
            name: served.name.clone(),
            stats,
            queues: (served.stack.meter()).map_or_else(Vec::new, |meter| meter.queues()),
        }
    }

    fn labels(&self, more: &[(&'static str, String)]) -> Labels {
        let mut labels = vec![("disk", self.name.clone())];
        labels.extend_from_slice(more);
        labels
    }

    /// Each kind of each queue that happened, with its labels.
    fn classes(&self) -> Vec<(Labels, &ClassStats)> {
        let mut classes = Vec::new();
        for (index, queue) in self.queues.iter().enumerate() {
            for class in OpClass::ALL {
                let stats = queue.class(class);
                if stats.count() != 0 {
                    let queue = ("queue", index.to_string());
                    let labels = self.labels(&[queue, ("op", class.name().to_owned())]);
                    classes.push((labels, stats));
                }
            }
        }
        classes
    }
}

fn counter<'a, T>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl Iterator<Item = (&'a T, f64)>,
) -> fmt::Result
where
    T: prometheus_client::encoding::EncodeLabelSet + 'a,
{
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

fn gauge<N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl Iterator<Item = (Labels, N)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// All disks of the process.
#[derive(Debug)]
struct All(Shown);

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // None of them, if the process ends.
        let served = self.0.upgrade();
        let disks: Vec<Disk> = served
            .iter()
            .flat_map(|all| all.iter())
            .map(Disk::of)
            .collect();
        operations(&mut encoder, &disks)?;
        throttles(&mut encoder, &disks)?;
        failures(&mut encoder, &disks)?;
        let dirty = disks.iter().flat_map(|disk| {
            let bitmaps = disk.stats.dirty.iter();
            bitmaps.map(|dirty| {
                (
                    disk.labels(&[("bitmap", dirty.bitmap.clone())]),
                    dirty.bytes,
                )
            })
        });
        let bytes = Some(&Unit::Bytes);
        gauge(
            &mut encoder,
            "dirty",
            "Bytes in blocks that changed",
            bytes,
            dirty,
        )?;
        let sizes = disks.iter();
        let sizes = sizes.map(|disk| (disk.labels(&[]), disk.stats.capacity));
        gauge(&mut encoder, "capacity", "Size of the disk", bytes, sizes)
    }
}

/// What the meters counted.
fn operations(encoder: &mut DescriptorEncoder<'_>, disks: &[Disk]) -> fmt::Result {
    let classes: Vec<_> = disks.iter().flat_map(Disk::classes).collect();
    let seconds = Some(&Unit::Seconds);
    let each = |of: fn(&ClassStats) -> f64| {
        (classes.iter()).map(move |(labels, class)| (labels, of(class)))
    };
    counter(
        encoder,
        "operations",
        "Operations that ended, well or badly",
        None,
        each(|class| class.count() as f64),
    )?;
    counter(
        encoder,
        "transferred",
        "Bytes of operations that succeeded",
        Some(&Unit::Bytes),
        each(|class| class.bytes as f64),
    )?;
    counter(
        encoder,
        "errors",
        "Operations that failed",
        None,
        each(|class| class.errors as f64),
    )?;
    counter(
        encoder,
        "queued",
        "Time in which the disk had no room for operations",
        seconds,
        each(|class| class.queued.as_secs_f64()),
    )?;
    let mut family = encoder.encode_descriptor(
        "latency",
        "From the submission of an operation to its end",
        seconds,
        MetricType::Histogram,
    )?;
    for (labels, class) in &classes {
        let latency = &class.latency;
        family.encode_family(labels)?.encode_histogram::<Labels>(
            latency.sum().as_secs_f64(),
            latency.count(),
            &buckets(latency),
            None,
        )?;
    }
    let depths = disks.iter().flat_map(|disk| {
        let queues = disk.queues.iter().enumerate();
        queues.map(|(index, queue)| (disk.labels(&[("queue", index.to_string())]), queue.depth))
    });
    gauge(
        encoder,
        "in_flight",
        "Operations that the disk has now",
        None,
        depths,
    )
}

/// What failed, with or without a meter.
fn failures(encoder: &mut DescriptorEncoder<'_>, disks: &[Disk]) -> fmt::Result {
    let failures: Vec<_> = (disks.iter())
        .flat_map(|disk| {
            let errors = disk.stats.errors.iter();
            errors.map(|one| {
                let operation = ("operation", one.operation.clone());
                (disk.labels(&[operation, ("error", one.error.clone())]), one)
            })
        })
        .collect();
    counter(
        encoder,
        "failures",
        "Errors by kind: of operations of the disk, requests and queues of the driver",
        None,
        (failures.iter()).map(|(labels, one)| (labels, one.count as f64)),
    )?;
    let last = disks.iter().filter_map(|disk| {
        let last = disk.stats.last_error()?;
        let operation = ("operation", last.operation.clone());
        let labels = disk.labels(&[operation, ("error", last.error.clone())]);
        Some((labels, last.at))
    });
    gauge(
        encoder,
        "last_failure_time",
        "When the last error came, since 1970, and its kind",
        Some(&Unit::Seconds),
        last,
    )?;
    let lost = disks.iter();
    let lost = lost.map(|disk| {
        let is_lost = disk.stats.flush_error.is_some();
        (disk.labels(&[]), u64::from(is_lost))
    });
    gauge(
        encoder,
        "flush_lost",
        "1 if a flush failed, so that every later flush fails: completed writes may be lost",
        None,
        lost,
    )?;
    let held = disks.iter().filter_map(|disk| {
        let held = disk.stats.held.as_ref()?;
        Some((disk.labels(&[]), held.operations))
    });
    gauge(
        encoder,
        "held_operations",
        "Operations that failed and wait for `vblk ctl SOCKET resume`",
        None,
        held,
    )
}

/// What the throttles held.
fn throttles(encoder: &mut DescriptorEncoder<'_>, disks: &[Disk]) -> fmt::Result {
    let throttles: Vec<_> = (disks.iter())
        .flat_map(|disk| {
            let throttles = disk.stats.throttles.iter();
            throttles.map(|one| (disk.labels(&[("layer", one.layer.clone())]), one))
        })
        .collect();
    counter(
        encoder,
        "throttled_operations",
        "Operations that had to wait",
        None,
        (throttles.iter()).map(|(labels, throttle)| (labels, throttle.released as f64)),
    )?;
    counter(
        encoder,
        "throttled",
        "How long they waited",
        Some(&Unit::Seconds),
        (throttles.iter()).map(|(labels, throttle)| (labels, throttle.seconds)),
    )?;
    gauge(
        encoder,
        "throttle_waiting",
        "Operations that wait now",
        None,
        (throttles.iter()).map(|(labels, throttle)| (labels.clone(), throttle.waiting)),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use virtio_blk_core::device::{Device, DeviceOptions};
    use virtio_blk_core::disk::{self, Caps, DiskError, IoQueue};
    use virtio_blk_disks::MemoryDisk;
    use virtio_blk_disks::stack::{Groups, Stack};

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_histogram_has_the_same_ends_always() {
        let ends = |latency: &Latency| buckets(latency).iter().map(|b| b.0).collect::<Vec<_>>();
        let empty = Latency::default();
        assert_eq!(buckets(&empty).len(), 25);
        assert!(buckets(&empty).iter().all(|(_, count)| *count == 0));
        assert!(ends(&empty).is_sorted());
    }

    /// A disk on which a flush failed.
    struct Lost;

    impl disk::Disk for Lost {
        fn caps(&self) -> Caps {
            MemoryDisk::new(1 << 20).unwrap().caps()
        }

        fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
            Err(DiskError::Unsupported)
        }

        fn flush_error(&self) -> Option<DiskError> {
            Some(DiskError::FlushLost { errno: libc::EIO })
        }
    }

    #[test]
    fn a_lost_flush_is_shown() {
        let line = "vblk serve vhost-user --disk memory:1M --socket /nonexistent/s";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Serve(serve) = cli.command else {
            panic!("{line}");
        };
        let stack = Stack::fixed(Arc::new(Lost), &[], Groups::default()).unwrap();
        let device = Device::new(stack.disk(), DeviceOptions::default()).unwrap();
        let served = ExportedDisk::of_device(
            "disk".to_owned(),
            &serve.disk().disk.disk,
            Arc::new(stack),
            device,
        );
        let (stats, _) = Stats::of(&served, None);
        let said = stats.flush_error.clone().unwrap();
        assert!(said.contains("Input/output error"), "{said}");
        let table = super::super::table::of(&stats);
        assert!(
            table.contains("FLUSHES FAIL: ") && table.contains(&said),
            "{table}"
        );
        let all = Arc::new(vec![served]);
        let mut registry = Registry::with_prefix("vblk");
        registry.register_collector(Box::new(All(Arc::downgrade(&all))));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("vblk_flush_lost{disk=\"disk\"} 1\n"),
            "{text}"
        );
    }
}

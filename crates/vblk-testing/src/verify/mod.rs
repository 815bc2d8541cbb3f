// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random requests on several queues, every byte compared with a model.

mod plan;
mod worker;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::client::{Client, Options, Properties, Queue};
use crate::model::Model;
use crate::pattern::Stamp;
use crate::{Error, SECTOR};
use plan::Space;
use worker::Worker;

/// What to do to a device.
#[derive(Clone, Debug)]
pub struct Config {
    /// A vhost-user server's socket, or a vhost-vdpa device.
    pub socket: PathBuf,
    /// Requests in all.
    pub ops: u64,
    /// Queues, each driven by a thread of its own.
    pub queues: usize,
    /// Entries of each queue.
    pub queue_size: u16,
    /// The depth goes through 1, 2, 4 … up to this.
    pub max_depth: usize,
    /// Makes runs repeatable, as far as the order of threads lets it.
    pub seed: u64,
    /// What the whole device holds at the start.
    pub initial: Stamp,
    /// The device is read-only: only read.
    pub read_only: bool,
}

impl Config {
    /// Four queues up to depth 128 on a device that holds zeroes.
    pub fn new(socket: impl Into<PathBuf>, ops: u64) -> Self {
        Self {
            socket: socket.into(),
            ops,
            queues: 4,
            queue_size: 512,
            max_depth: 128,
            seed: 1,
            initial: Stamp::ZERO,
            read_only: false,
        }
    }
}

/// What was done. Every request counted here ended as it had to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Report {
    /// Reads.
    pub reads: u64,
    /// Writes without FUA.
    pub writes: u64,
    /// Writes and write-zeroes with FUA.
    pub fua: u64,
    /// Discards.
    pub discards: u64,
    /// Write-zeroes that may deallocate.
    pub zeroes_unmap: u64,
    /// Write-zeroes that may not.
    pub zeroes_keep: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests past the end of the disk, all refused.
    pub refused: u64,
    /// Requests of several segments.
    pub vectored: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes read and compared.
    pub bytes_verified: u64,
    /// Sectors read that could hold more than one content, because of writes in flight.
    pub ambiguous_sectors: u64,
    /// Of those, sectors that were a mix of several writes.
    pub mixed_sectors: u64,
    /// Most requests that one queue had in flight.
    pub deepest: usize,
    /// Seconds.
    pub seconds: f64,
}

impl Report {
    /// All requests.
    pub fn ops(&self) -> u64 {
        self.reads
            + self.writes
            + self.fua
            + self.discards
            + self.zeroes_unmap
            + self.zeroes_keep
            + self.flushes
            + self.refused
    }

    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.fua += other.fua;
        self.discards += other.discards;
        self.zeroes_unmap += other.zeroes_unmap;
        self.zeroes_keep += other.zeroes_keep;
        self.flushes += other.flushes;
        self.refused += other.refused;
        self.vectored += other.vectored;
        self.bytes_written += other.bytes_written;
        self.bytes_verified += other.bytes_verified;
        self.ambiguous_sectors += other.ambiguous_sectors;
        self.mixed_sectors += other.mixed_sectors;
        self.deepest = self.deepest.max(other.deepest);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        writeln!(
            f,
            "{} requests in {:.1} s, none wrong",
            self.ops(),
            self.seconds
        )?;
        writeln!(
            f,
            "  {} reads, {} writes, {} with FUA, {} flushes, {} of several segments, depth up to {}",
            self.reads, self.writes, self.fua, self.flushes, self.vectored, self.deepest
        )?;
        writeln!(
            f,
            "  {} discards, {} write-zeroes with unmap, {} without, {} past the end (refused)",
            self.discards, self.zeroes_unmap, self.zeroes_keep, self.refused
        )?;
        write!(
            f,
            "  {} MiB written, {} MiB compared; {} sectors read amid writes, {} of them mixed",
            self.bytes_written / MIB,
            self.bytes_verified / MIB,
            self.ambiguous_sectors,
            self.mixed_sectors
        )
    }
}

/// Most sectors a run works on: the last ones of the device.
const WINDOW: u64 = (64 << 20) / SECTOR as u64;

/// Runs `config.ops` requests, the edges of the disk among them, and reads everything back at the end.
///
/// The model is returned for [`resume`], or for a look at the image once the server is gone.
///
/// # Errors
/// The first thing that was wrong.
pub fn run(config: &Config) -> Result<(Report, Model), Error> {
    let (client, queues) = connect(config)?;
    let model = Model::new(window(&client.properties())?, config.initial);
    let report = run_queues(config, &client.properties(), &model, queues)?;
    Ok((report, model))
}

/// The same on a disk that was worked on before, by another connection or another server.
/// `config.initial` is ignored.
///
/// # Errors
/// The first thing that was wrong.
pub fn resume(config: &Config, model: &Model) -> Result<Report, Error> {
    let (client, queues) = connect(config)?;
    let properties = client.properties();
    if window(&properties)? != model.range() {
        return Err(Error::Config(format!(
            "the device now states a capacity of {} bytes",
            properties.capacity
        )));
    }
    run_queues(config, &properties, model, queues)
}

fn connect(config: &Config) -> Result<(Client, Vec<Queue>), Error> {
    if config.queues == 0 || config.max_depth == 0 {
        return Err(Error::Config("queues and depth are at least 1".into()));
    }
    let slot = plan::MAX_LEN + worker::GUARD;
    Client::start(&Options {
        socket: config.socket.clone(),
        queues: config.queues,
        queue_size: config.queue_size,
        poll: false,
        read_only: config.read_only,
        memory: (slot * config.max_depth.max(worker::READ_DEPTH)).next_multiple_of(4096),
    })
}

fn window(properties: &Properties) -> Result<Range<u64>, Error> {
    let Properties {
        capacity, block, ..
    } = *properties;
    if !block.is_power_of_two() || !(SECTOR..=plan::MAX_LEN).contains(&block) {
        return Err(Error::Config(format!(
            "the device states blocks of {block} bytes"
        )));
    }
    if !capacity.is_multiple_of(block as u64) || capacity < 64 * block as u64 {
        return Err(Error::Config(format!(
            "a device of {capacity} bytes is too small, or not a whole number of blocks"
        )));
    }
    let end = capacity / SECTOR as u64;
    Ok(end.saturating_sub(WINDOW)..end)
}

fn run_queues(
    config: &Config,
    properties: &Properties,
    model: &Model,
    queues: Vec<Queue>,
) -> Result<Report, Error> {
    let started = Instant::now();
    let count = queues.len();
    let mut workers: Vec<_> = queues
        .into_iter()
        .map(|queue| {
            let index = queue.index();
            let space = Space::new(properties, model.range(), index, count, config.read_only);
            Worker::new(queue, model, space, config.seed.wrapping_add(index as u64))
        })
        .collect();
    if let Some(worker) = workers.first_mut() {
        worker.edges()?;
    }
    let ops = config.ops / count as u64;
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| scope.spawn(move || worker.random(ops, config.max_depth)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    if let Some(worker) = workers.first_mut() {
        worker.read_all()?;
    }
    let mut report = Report::default();
    for worker in &workers {
        report.add(worker.report());
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Checks that a read-only device refuses a driver that wants to write.
///
/// # Errors
/// The device lets it start, or the connection fails in another way.
pub fn refuses_writers(socket: &Path) -> Result<(), Error> {
    let result = Client::start(&Options {
        socket: socket.into(),
        queues: 1,
        queue_size: 16,
        poll: false,
        read_only: false,
        memory: 4096,
    });
    match result {
        Err(Error::Driver { source, .. }) if source.errno() == blkio::Errno::ROFS => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Err(Error::Config(
            "the device does not say that it is read-only".into(),
        )),
    }
}

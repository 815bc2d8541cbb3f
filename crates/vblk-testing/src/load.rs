// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Load on a server's socket: how many I/Os per second, and what they cost.

use std::path::Path;
use std::time::{Duration, Instant};

use blkio::ReqFlags;
use serde::Serialize;

use crate::client::{Client, Options, Queue};
use crate::{Error, cpu};

/// Bytes of an I/O.
pub const BLOCK: usize = 4096;
/// Bytes from one I/O of a fresh load to the next: a cluster of qcow2, as QEMU makes it.
pub const STRIDE: u64 = 64 << 10;
/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 256;

/// One in so many I/Os of a load with discards is one.
const DISCARD_EACH: u64 = 100;

/// Discards among the I/Os of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Discards {
    /// None.
    #[default]
    None,
    /// One in a hundred I/Os discards [`BLOCK`] bytes: a part of a cluster, which frees nothing.
    Parts,
    /// One in a hundred I/Os discards [`STRIDE`] bytes, a cluster, which a later write allocates again.
    Clusters,
}

/// What to do: I/Os, random ones but for [`Load::fresh`], of [`BLOCK`] bytes, always as many in flight as `depth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Writes instead of reads.
    pub write: bool,
    /// I/Os in flight on each queue, at most [`QUEUE_SIZE`].
    pub depth: usize,
    /// The client looks for completions all the time instead of sleeping until the server signals.
    pub poll: bool,
    /// Not at random: each in the next [`STRIDE`] bytes, where nothing was written before. The load ends with the disk.
    pub fresh: bool,
    /// Discards among them.
    pub discards: Discards,
    /// Queues, with a thread of the client for each. A fresh load gives each a part of the disk.
    pub queues: usize,
}

impl Load {
    /// Random reads on one queue.
    pub const fn reads(depth: usize, poll: bool) -> Self {
        Self {
            write: false,
            depth,
            poll,
            fresh: false,
            discards: Discards::None,
            queues: 1,
        }
    }

    /// Random writes on one queue.
    pub const fn writes(depth: usize, poll: bool) -> Self {
        Self {
            write: true,
            ..Self::reads(depth, poll)
        }
    }

    /// Writes where nothing was written before, on one queue.
    pub const fn fresh(depth: usize, poll: bool) -> Self {
        Self {
            fresh: true,
            ..Self::writes(depth, poll)
        }
    }
}

/// What was seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// I/Os per second.
    pub iops: f64,
    /// Nanoseconds of CPU time of the server per I/O: all threads, user and system.
    pub server_ns: f64,
    /// The same of the client.
    pub client_ns: f64,
    /// CPUs kept busy by everything else on this machine. What is far from 0 distorts.
    pub others: f64,
}

/// Puts a load on the server with process `pid` that listens on `socket`, for a quarter of the time
/// before it measures.
///
/// # Errors
/// The connection or a request fails, the server is gone, or the disk is too small for the load.
pub fn run(socket: &Path, pid: u32, load: Load, time: Duration) -> Result<Measured, Error> {
    let options = Options {
        socket: socket.to_owned(),
        queues: load.queues,
        queue_size: QUEUE_SIZE,
        poll: load.poll,
        read_only: false,
        memory: load.depth * BLOCK,
    };
    let (client, mut queues) = Client::start(&options)?;
    let blocks = client.properties().capacity / BLOCK as u64;
    if blocks < STRIDE / BLOCK as u64 || load.depth == 0 || load.depth > QUEUE_SIZE.into() {
        return Err(Error::Config(format!(
            "a depth of 1 to {QUEUE_SIZE} and a disk of {STRIDE} bytes at least are needed"
        )));
    }
    if queues.is_empty() {
        return Err(Error::Config("the driver set up no queue".into()));
    }
    let strides = client.properties().capacity / STRIDE / queues.len() as u64;
    let mut workers: Vec<Worker<'_>> = (queues.iter_mut().zip(0..))
        .map(|(queue, number)| Worker {
            queue,
            load,
            blocks,
            next: number * strides,
            end: (number + 1) * strides,
            ios: 0,
            in_flight: 0,
            random: fastrand::Rng::with_seed(1 + number),
            done: Vec::with_capacity(Queue::BATCH),
        })
        .collect();
    for worker in &mut workers {
        for slot in 0..load.depth {
            worker.submit(slot);
        }
    }
    // A disk that is soon full leaves most of it to what is measured.
    work(&mut workers, time / 4, strides / 8)?;
    let before = Clocks::read(pid)?;
    let ios = work(&mut workers, time, u64::MAX)? as f64;
    let after = Clocks::read(pid)?;
    for worker in &mut workers {
        worker.end()?;
    }
    if ios == 0.0 {
        return Err(Error::Config(format!("{load:?} did nothing")));
    }

    let wall = (after.wall - before.wall).as_secs_f64();
    let server = (after.server - before.server).as_nanos() as f64;
    let client = (after.client - before.client).as_nanos() as f64;
    let all = (after.all.saturating_sub(before.all)).as_secs_f64();
    Ok(Measured {
        iops: ios / wall,
        server_ns: server / ios,
        client_ns: client / ios,
        others: ((all - (server + client) / 1e9) / wall).max(0.0),
    })
}

/// Has all workers keep their load up for some time, or for so many I/Os. Returns how many I/Os completed.
fn work(workers: &mut [Worker<'_>], time: Duration, most: u64) -> Result<u64, Error> {
    if let [one] = workers {
        return one.work(time, most);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (workers.iter_mut())
            .map(|worker| scope.spawn(move || worker.work(time, most)))
            .collect();
        let gone = || Error::Config("a thread of the client panicked".into());
        (threads.into_iter())
            .map(|thread| thread.join().map_err(|_| gone())?)
            .sum()
    })
}

/// All clocks at one moment.
struct Clocks {
    wall: Instant,
    server: Duration,
    client: Duration,
    all: Duration,
}

impl Clocks {
    fn read(pid: u32) -> Result<Self, Error> {
        Ok(Self {
            wall: Instant::now(),
            server: cpu::of_process(pid)?,
            client: cpu::of_process(std::process::id())?,
            all: cpu::of_machine()?,
        })
    }
}

struct Worker<'a> {
    queue: &'a mut Queue,
    load: Load,
    blocks: u64,
    /// Of a fresh load: the next part of the disk, and the one where it ends.
    next: u64,
    end: u64,
    /// I/Os submitted.
    ios: u64,
    in_flight: usize,
    random: fastrand::Rng,
    done: Vec<crate::client::Completion>,
}

impl Worker<'_> {
    /// Submits another I/O, unless the disk is full.
    fn submit(&mut self, slot: usize) {
        let (driver, none) = (self.queue.driver(), ReqFlags::empty());
        if self.load.fresh && self.next == self.end {
            return;
        }
        self.ios += 1;
        self.in_flight += 1;
        let len = match self.load.discards {
            Discards::None => None,
            Discards::Parts => Some(BLOCK as u64),
            Discards::Clusters => Some(STRIDE),
        };
        if let Some(len) = len.filter(|_| self.ios.is_multiple_of(DISCARD_EACH)) {
            let parts = self.blocks * BLOCK as u64 / len;
            return driver.discard(self.random.u64(..parts) * len, len, slot, none);
        }
        let start = if self.load.fresh {
            self.next += 1;
            (self.next - 1) * STRIDE
        } else {
            self.random.u64(..self.blocks) * BLOCK as u64
        };
        let buffer = self.queue.memory().at(slot * BLOCK, BLOCK);
        let driver = self.queue.driver();
        if self.load.write {
            driver.write(start, buffer, BLOCK, slot, none);
        } else {
            driver.read(start, buffer, BLOCK, slot, none);
        }
    }

    /// Takes the completions that are there, at least one, and checks them.
    fn wait(&mut self) -> Result<(), Error> {
        self.done.clear();
        self.queue.wait(self.in_flight, &mut self.done)?;
        self.in_flight -= self.done.len();
        match self.done.iter().find(|done| done.ret != 0) {
            None => Ok(()),
            Some(bad) => Err(Error::Status {
                what: format!("{:?}", self.load),
                got: bad.ret,
                expected: 0,
            }),
        }
    }

    /// Keeps the load up for some time, or for so many I/Os. Returns how many completed.
    fn work(&mut self, time: Duration, most: u64) -> Result<u64, Error> {
        let mut ios = 0;
        let end = Instant::now() + time;
        while Instant::now() < end && ios < most {
            // The clock is read once for some I/Os only, so that the client stays light.
            for _ in 0..16 {
                if self.in_flight == 0 {
                    return Ok(ios);
                }
                self.wait()?;
                ios += self.done.len() as u64;
                for index in 0..self.done.len() {
                    let slot = self.done[index].slot;
                    self.submit(slot);
                }
            }
        }
        Ok(ios)
    }

    /// Lets everything in flight complete.
    fn end(&mut self) -> Result<(), Error> {
        while self.in_flight > 0 {
            self.wait()?;
        }
        Ok(())
    }
}

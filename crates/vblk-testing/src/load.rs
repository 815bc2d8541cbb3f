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

/// What to do: I/Os, random ones but for [`Load::fresh`], of [`BLOCK`] bytes on one queue, always as many in flight as `depth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Writes instead of reads.
    pub write: bool,
    /// I/Os in flight, at most [`QUEUE_SIZE`].
    pub depth: usize,
    /// The client looks for completions all the time instead of sleeping until the server signals.
    pub poll: bool,
    /// Not at random: each in the next [`STRIDE`] bytes, where nothing was before.
    pub fresh: bool,
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
/// The connection or a request fails, or the server is gone.
pub fn run(socket: &Path, pid: u32, load: Load, time: Duration) -> Result<Measured, Error> {
    let options = Options {
        socket: socket.to_owned(),
        queues: 1,
        queue_size: QUEUE_SIZE,
        poll: load.poll,
        read_only: false,
        memory: load.depth * BLOCK,
    };
    let (client, mut queues) = Client::start(&options)?;
    let queue = queues
        .first_mut()
        .ok_or_else(|| Error::Config("the driver set up no queue".into()))?;
    let blocks = client.properties().capacity / BLOCK as u64;
    if blocks == 0 || load.depth == 0 || load.depth > QUEUE_SIZE.into() {
        return Err(Error::Config(format!(
            "a depth of 1 to {QUEUE_SIZE} and a disk of {BLOCK} bytes at least are needed"
        )));
    }
    let mut worker = Worker {
        queue,
        load,
        blocks,
        next: 0,
        random: fastrand::Rng::with_seed(1),
        done: Vec::with_capacity(Queue::BATCH),
    };
    for slot in 0..load.depth {
        worker.submit(slot);
    }
    worker.work(time / 4)?;
    let before = Clocks::read(pid)?;
    let ios = worker.work(time)? as f64;
    let after = Clocks::read(pid)?;
    worker.end()?;

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
    next: u64,
    random: fastrand::Rng,
    done: Vec<crate::client::Completion>,
}

impl Worker<'_> {
    fn submit(&mut self, slot: usize) {
        let start = if self.load.fresh {
            self.next += 1;
            (self.next - 1) * STRIDE % (self.blocks * BLOCK as u64)
        } else {
            self.random.u64(..self.blocks) * BLOCK as u64
        };
        let buffer = self.queue.memory().at(slot * BLOCK, BLOCK);
        let (driver, none) = (self.queue.driver(), ReqFlags::empty());
        if self.load.write {
            driver.write(start, buffer, BLOCK, slot, none);
        } else {
            driver.read(start, buffer, BLOCK, slot, none);
        }
    }

    /// Takes the completions that are there, at least one, and checks them.
    fn wait(&mut self, in_flight: usize) -> Result<(), Error> {
        self.done.clear();
        self.queue.wait(in_flight, &mut self.done)?;
        match self.done.iter().find(|done| done.ret != 0) {
            None => Ok(()),
            Some(bad) => Err(Error::Status {
                what: format!("{:?}", self.load),
                got: bad.ret,
                expected: 0,
            }),
        }
    }

    /// Keeps the load up for some time. Returns how many I/Os completed.
    fn work(&mut self, time: Duration) -> Result<u64, Error> {
        let mut ios = 0;
        let end = Instant::now() + time;
        while Instant::now() < end {
            // The clock is read once for some I/Os only, so that the client stays light.
            for _ in 0..16 {
                self.wait(self.load.depth)?;
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
        let mut in_flight = self.load.depth;
        while in_flight > 0 {
            self.wait(in_flight)?;
            in_flight -= self.done.len();
        }
        Ok(())
    }
}

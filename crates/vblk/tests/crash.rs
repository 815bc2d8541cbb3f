// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! kill -9 of `vblk` under load, again and again. The client keeps the in-flight area, its memory and its
//! rings, and continues with the next server: every request is answered exactly once (the driver notices
//! a second answer), and every byte is what the last completed write made it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/crash.rs"]
mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fastrand::Rng;

use common::{BLOCK, QUEUE_SIZE, config, connect, sector, written};
use vblk_testing::frontend::{Client, Guest, InFlight, PATIENCE, Queue};
use vblk_testing::server::{Disk, Server};
use virtio_blk_driver::request::{Request, Token};

const QUEUES: usize = 3;
/// Blocks that each queue has to itself.
const BLOCKS: u64 = 96;
const ROUNDS: u64 = 60;

/// What version `version` of a block holds; zeroes at first.
fn content(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    written(block, version)
}

#[derive(Clone, Copy, PartialEq)]
enum Job {
    Read(u64),
    Write(u64),
    Flush,
}

/// One queue's load. At most one request at a time touches a block, so that each has one right content.
struct Load {
    queue: Queue,
    first: u64,
    versions: Vec<u64>,
    busy: HashMap<Token, Job>,
    completed: u64,
    overtaken: u64,
    order: std::collections::VecDeque<Token>,
}

impl Load {
    fn is_free(&self, block: u64) -> bool {
        let touches = |job: &Job| matches!(job, Job::Read(b) | Job::Write(b) if *b == block);
        !self.busy.values().any(touches)
    }

    /// Fills the queue.
    fn submit(&mut self, rng: &mut Rng) {
        while self.busy.len() < 16 {
            let block = self.first + rng.u64(..BLOCKS);
            let job = match rng.u64(..10) {
                0 => Job::Flush,
                1..=3 if self.is_free(block) => Job::Read(block),
                _ if self.is_free(block) => Job::Write(block),
                _ => continue,
            };
            let driver = &mut self.queue.driver;
            let token = match job {
                Job::Flush => driver.submit(&Request::flush()),
                Job::Read(block) => driver.submit(&Request::read(sector(block), BLOCK as u32)),
                Job::Write(block) => {
                    let version = &mut self.versions[(block - self.first) as usize];
                    *version += 1;
                    let data = content(block, *version);
                    driver.submit(&Request::write(sector(block), &data))
                }
            }
            .unwrap();
            assert!(self.busy.insert(token, job).is_none());
            self.order.push_back(token);
        }
        self.queue.publish().unwrap();
    }

    /// Takes and checks answers that are there.
    fn collect(&mut self) {
        while let Some(done) = self.queue.driver.poll().unwrap() {
            let job = self.busy.remove(&done.token).expect("answered once");
            assert!(done.is_ok(), "{done:?}");
            if self.order.front() != Some(&done.token) {
                self.overtaken += 1;
            }
            self.order.retain(|token| *token != done.token);
            if let Job::Read(block) = job {
                let mut data = vec![0; BLOCK];
                self.queue
                    .driver
                    .read_data(done.token, 0, &mut data)
                    .unwrap();
                let version = self.versions[(block - self.first) as usize];
                assert!(
                    data == content(block, version),
                    "block {block} version {version}"
                );
            }
            self.completed += 1;
        }
    }
}

fn attach(server: &Server, guest: &Guest, area: Option<&InFlight>, loads: &[Load]) -> Client {
    let mut client = connect(server);
    if let Some(area) = area {
        client.set_in_flight(area).unwrap();
    }
    client.set_memory(guest).unwrap();
    for (index, load) in loads.iter().enumerate() {
        // What the server finds in the area and the ring counts, not the base.
        client.start(index, &load.queue, 0).unwrap();
    }
    client
}

fn crashes(engine: Option<&str>, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let len = QUEUES as u64 * BLOCKS * BLOCK as u64;
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    let disk = Disk::Raw {
        path: path.clone(),
        engine: engine.map(Into::into),
    };
    let config = config(disk, QUEUES);
    let mut server = Server::start(&config).unwrap();
    let mut rng = Rng::with_seed(seed);
    let mut guest = Guest::new(&[(0, 4 << 20)]).unwrap();
    let mut loads: Vec<Load> = (0..QUEUES)
        .map(|index| Load {
            // Near the end of the index space, which wraps during the run.
            queue: guest
                .queue(QUEUE_SIZE, BLOCK as u32, 0u16.wrapping_sub(2000))
                .unwrap(),
            first: index as u64 * BLOCKS,
            versions: vec![0; BLOCKS as usize],
            busy: HashMap::new(),
            completed: 0,
            overtaken: 0,
            order: std::collections::VecDeque::new(),
        })
        .collect();
    let area = Client::connect(&server.socket())
        .unwrap()
        .get_in_flight(QUEUES as u16, QUEUE_SIZE)
        .unwrap();
    let mut client = attach(&server, &guest, Some(&area), &loads);
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        // Each server gets something done, then dies at any moment.
        let progress: Vec<u64> = loads.iter().map(|load| load.completed).collect();
        let started = Instant::now();
        let life = Duration::from_micros(rng.u64(..6000));
        while started.elapsed() < life
            || loads
                .iter()
                .zip(&progress)
                .any(|(load, before)| load.completed <= *before)
        {
            for load in &mut loads {
                load.submit(&mut rng);
                load.collect();
            }
            assert!(started.elapsed() < PATIENCE, "no progress in round {round}");
        }
        // What it dies over.
        for load in &mut loads {
            load.submit(&mut rng);
        }
        server.crash(&config).unwrap();
        interrupted += loads
            .iter()
            .filter(|load| load.queue.driver.in_flight() != 0)
            .count();
        drop(client);
        client = attach(&server, &guest, Some(&area), &loads);
    }
    for (index, load) in loads.iter_mut().enumerate() {
        while !load.busy.is_empty() {
            let done = load.queue.driver.in_flight();
            load.collect();
            if load.queue.driver.in_flight() == done {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        client.stop(index).unwrap();
        let (ring, memory) = load.queue.driver.ring_mut();
        ring.audit(memory).unwrap();
    }
    drop(client);
    server.stop().unwrap();
    // Nothing was done after its turn: the image holds the last version of each block.
    let image = std::fs::read(&path).unwrap();
    for load in &loads {
        for (block, version) in (load.first..).zip(&load.versions) {
            let at = block as usize * BLOCK;
            assert!(
                image[at..at + BLOCK] == content(block, *version),
                "block {block}"
            );
        }
    }
    let total: u64 = loads.iter().map(|load| load.completed).sum();
    let overtaken: u64 = loads.iter().map(|load| load.overtaken).sum();
    println!("{total} requests, {overtaken} out of order, {interrupted} queues interrupted");
    assert!(
        interrupted as u64 >= ROUNDS,
        "the load was there: {interrupted}"
    );
    if engine.is_none() {
        assert!(overtaken > 0, "completions come out of order");
    }
}

#[test]
fn a_killed_server_loses_and_repeats_nothing() {
    crashes(None, 1);
}

#[test]
fn a_killed_server_without_io_uring() {
    crashes(Some("sync"), 2);
}

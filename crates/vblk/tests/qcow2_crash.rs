// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! kill -9 of `vblk` over a qcow2 image, again and again: no completed flush is lost, and `qemu-img check`
//! finds nothing but clusters that belong to nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/crash.rs"]
mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;

use common::{QUEUE_SIZE, config};
use vblk_testing::frontend::{Client, Guest, PATIENCE, Queue};
use vblk_testing::kills::{BLOCK, SECTORS, connect, sector, written};
use vblk_testing::server::{Disk, Server};
use virtio_blk_driver::request::{Request, Token};
use virtio_blk_driver::wire::Range;

const QUEUES: usize = 2;
/// Blocks that each queue has to itself.
const BLOCKS: u64 = 512;
const ROUNDS: u64 = 30;

/// Versions that are made by a discard.
fn is_zero(version: u64) -> bool {
    version.is_multiple_of(7)
}

/// What a version of a block holds; zeroes at first.
fn content(block: u64, version: u64) -> Vec<u8> {
    if is_zero(version) {
        return vec![0; BLOCK];
    }
    written(block, version)
}

/// What is known of a block.
#[derive(Clone, Copy, Default)]
struct Block {
    /// The last version that was submitted, completed, and covered by a flush.
    latest: u64,
    completed: u64,
    stable: u64,
    busy: bool,
}

enum Job {
    Change(usize),
    /// The versions it covers.
    Flush(Vec<u64>),
}

/// One queue's load on blocks of its own, one change at a time on each.
struct Load {
    queue: Queue,
    blocks: Vec<Block>,
    first: u64,
    jobs: HashMap<Token, Job>,
    flushes: u64,
}

impl Load {
    fn submit(&mut self, rng: &mut Rng) {
        while self.jobs.len() < 16 {
            let index = rng.u64(..self.blocks.len() as u64) as usize;
            let block = self.first + index as u64;
            let sector = sector(block);
            let driver = &mut self.queue.driver;
            let (token, job) = if rng.u64(..24) == 0 {
                let covered = self.blocks.iter().map(|b| b.completed).collect();
                (driver.submit(&Request::flush()), Job::Flush(covered))
            } else if self.blocks[index].busy {
                continue;
            } else {
                let known = &mut self.blocks[index];
                known.busy = true;
                known.latest += 1;
                let version = known.latest;
                let token = if is_zero(version) {
                    driver.submit(&Request::discard(&[Range {
                        sector,
                        num_sectors: SECTORS,
                        flags: 0,
                    }]))
                } else {
                    driver.submit(&Request::write(sector, &content(block, version)))
                };
                (token, Job::Change(index))
            };
            self.jobs.insert(token.unwrap(), job);
        }
        self.queue.publish().unwrap();
    }

    fn collect(&mut self) {
        while let Some(done) = self.queue.driver.poll().unwrap() {
            assert!(done.is_ok(), "{done:?}");
            match self.jobs.remove(&done.token).expect("answered once") {
                Job::Change(index) => {
                    let block = &mut self.blocks[index];
                    block.completed = block.latest;
                    block.busy = false;
                }
                Job::Flush(covered) => {
                    self.flushes += 1;
                    for (block, version) in self.blocks.iter_mut().zip(covered) {
                        block.stable = block.stable.max(version);
                    }
                }
            }
        }
    }

    /// Reads everything after a crash: each block holds a version that is as new as what had completed.
    fn verify(&mut self) {
        for index in 0..self.blocks.len() {
            let request = Request::read(sector(self.first + index as u64), BLOCK as u32);
            let token = self.queue.driver.submit(&request).unwrap();
            self.queue.publish().unwrap();
            let started = Instant::now();
            let done = loop {
                if let Some(done) = self.queue.driver.poll().unwrap() {
                    break done;
                }
                assert!(started.elapsed() < PATIENCE, "no answer");
                std::thread::yield_now();
            };
            assert!(done.is_ok() && done.token == token, "{done:?}");
            let mut data = vec![0; BLOCK];
            self.queue.driver.read_data(token, 0, &mut data).unwrap();
            let number = self.first + index as u64;
            let block = &mut self.blocks[index];
            let found = (block.completed..=block.latest).find(|v| content(number, *v) == data);
            let Some(found) = found else {
                panic!(
                    "block {number}: {:x?}, not version {} to {}",
                    &data[..8],
                    block.stable,
                    block.latest
                );
            };
            // It is in the file: the next kill can't lose it.
            block.stable = found;
            block.completed = found;
            block.busy = false;
        }
    }
}

/// Whether an image is sound, by a copy, as the idle server has it locked. Returns whether clusters are lost.
fn check(image: &Path) -> bool {
    let path = image.with_extension("copy");
    std::fs::copy(image, &path).unwrap();
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output()
        .unwrap_or_else(|error| panic!("can't run qemu-img ({error}): apt-get install qemu-utils"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // 3: clusters that belong to nobody, and nothing worse.
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.status.code() == Some(3)
}

fn attach(server: &Server, blocks: &mut Vec<Vec<Block>>) -> (Client, Vec<Load>, Guest) {
    let mut client = connect(server).unwrap();
    let mut guest = Guest::new(&[(0, 4 << 20)]).unwrap();
    let mut loads: Vec<Load> = blocks
        .drain(..)
        .enumerate()
        .map(|(index, blocks)| Load {
            queue: guest.queue(QUEUE_SIZE, BLOCK as u32, 0).unwrap(),
            first: index as u64 * BLOCKS,
            blocks,
            jobs: HashMap::new(),
            flushes: 0,
        })
        .collect();
    client.set_memory(&guest).unwrap();
    for (index, load) in loads.iter_mut().enumerate() {
        client.start(index, &load.queue, 0).unwrap();
    }
    (client, loads, guest)
}

#[test]
fn a_killed_server_leaves_a_sound_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let len = QUEUES as u64 * BLOCKS * BLOCK as u64;
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"])
        .arg(&path)
        .arg(len.to_string())
        .status()
        .unwrap_or_else(|error| panic!("can't run qemu-img ({error}): apt-get install qemu-utils"));
    assert!(made.success());
    let disk = Disk::Qcow2 {
        path: path.clone(),
        engine: None,
        direct: false,
        backing: false,
    };
    let config = config(disk, QUEUES);
    let mut server = Server::start(&config).unwrap();
    let mut rng = Rng::with_seed(1);
    let mut blocks = vec![vec![Block::default(); BLOCKS as usize]; QUEUES];
    let (mut flushes, mut leaks) = (0, 0);
    for round in 0..ROUNDS {
        let (client, mut loads, guest) = attach(&server, &mut blocks);
        loads.iter_mut().for_each(Load::verify);
        let started = Instant::now();
        let life = Duration::from_micros(rng.u64(..30_000));
        while started.elapsed() < life || loads.iter().any(|load| load.flushes == 0) {
            for load in &mut loads {
                load.submit(&mut rng);
                load.collect();
            }
            assert!(started.elapsed() < PATIENCE, "no progress in round {round}");
        }
        server.crash(&config).unwrap();
        flushes += loads.iter().map(|load| load.flushes).sum::<u64>();
        drop(client);
        blocks.extend(loads.into_iter().map(|load| load.blocks));
        drop(guest);
        // The new server has opened the image when it takes the next client.
        drop(connect(&server).unwrap());
        leaks += u64::from(check(&path));
    }
    let (mut client, mut loads, _guest) = attach(&server, &mut blocks);
    loads.iter_mut().for_each(Load::verify);
    for index in 0..QUEUES {
        client.stop(index).unwrap();
    }
    drop(client);
    server.stop().unwrap();
    check(&path);
    println!("{ROUNDS} kills over {flushes} flushes, {leaks} with lost clusters");
}

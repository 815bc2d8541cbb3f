// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several queues write next to each other, in the same clusters and subclusters but never to the same sector: each finds
//! what it wrote, also when the image has grown meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{directory, read, run, write};
use files::{Setup, long, path};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, IoQueue, OpKind};
use virtio_blk_disks::Engine;

const QUEUES: usize = 4;
const SIZE: usize = 2 << 20;
/// Bytes of a part that belongs to one queue. It has no boundary in common with most clusters and subclusters.
const PART: usize = 3 * 512;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = (self.0.wrapping_mul(6364136223846793005)).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }
}

/// What a queue does to its own parts, of which `model` has the content: every `QUEUES`th part is its own.
fn work(queue: &mut dyn IoQueue, number: usize, seed: u64, turns: usize, model: &mut [u8]) {
    let mut random = Random(seed);
    // Where clusters are shared by as many as possible.
    let parts = SIZE / PART / QUEUES;
    let near = [64, parts][random.below(2)];
    for turn in 0..turns {
        let part = (random.below(near) * QUEUES + number) * PART;
        let first = random.below(3) * 512;
        let len = (1 + random.below((PART - first) / 512)) * 512;
        let (at, end) = (part + first, part + first + len);
        let offset = at as u64;
        match random.below(16) {
            0 => run(queue, OpKind::Flush, IoBuf::new()).result.unwrap(),
            1..=3 => {
                let kind = OpKind::WriteZeroes {
                    offset,
                    len: len as u64,
                    unmap: random.below(2) == 0,
                    fua: random.below(16) == 0,
                };
                match run(queue, kind, IoBuf::new()).result {
                    Ok(()) => model[at..end].fill(0),
                    // Version 2.
                    Err(error) => assert!(matches!(error, DiskError::Unsupported), "{error}"),
                }
            }
            4..=7 => {
                let found = read(queue, offset, len).unwrap();
                assert!(
                    found == model[at..end],
                    "queue {number}, turn {turn}, {at:#x}"
                );
            }
            _ => {
                let byte = random.below(255) as u8 + 1;
                write(queue, offset, vec![byte; len]).unwrap();
                model[at..end].fill(byte);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Nothing,
    Backing,
    Compressed,
    Snapshots,
    DataFile,
}

fn neighbours(setup: &str, below: Below, engine: Engine, seed: u64) {
    let directory = directory();
    let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
    let (base_name, name) = (base.to_str().unwrap(), image.to_str().unwrap());
    let mut model: Vec<u8> = vec![0; SIZE];
    let mut setup = setup.to_owned();
    match below {
        Below::Nothing | Below::Snapshots => {}
        Below::Backing => setup += ",backing_file=base.img,backing_fmt=raw",
        Below::DataFile => setup += &format!(",data_file={}", path(&directory, "data").display()),
        Below::Compressed => {}
    }
    if matches!(below, Below::Backing | Below::Compressed) {
        model = (0..SIZE).map(|at| (at / 700) as u8).collect();
        std::fs::write(&base, &model).unwrap();
    }
    if below == Below::Compressed {
        qemu::ok(&[
            "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", &setup, base_name, name,
        ]);
    } else {
        qemu::create(&image, &setup, SIZE);
    }
    let turns = if long() { 5000 } else { 200 };
    let mut snapshots = Vec::new();
    for round in 0..3_u64 {
        let disk: Arc<dyn Disk> = Arc::new(
            Setup::new(&image)
                .backing(true)
                .engine(engine)
                .open()
                .unwrap(),
        );
        let end = AtomicBool::new(false);
        let own: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let (disk, model, end) = (&disk, &model, &end);
            let threads: Vec<_> = (0..QUEUES)
                .map(|number| {
                    let mut queue = disk.open_queue(4).unwrap();
                    let mut own = model.clone();
                    let seed = seed * 1000 + round * 10 + number as u64;
                    scope.spawn(move || {
                        work(&mut *queue, number, seed, turns, &mut own);
                        own
                    })
                })
                .collect();
            if below == Below::Nothing {
                scope.spawn(move || {
                    while !end.load(Ordering::Relaxed) {
                        let size = disk.caps().capacity_bytes();
                        disk.resize(size + (1 << 20)).unwrap();
                        std::thread::yield_now();
                    }
                });
            }
            let own = threads.into_iter().map(|thread| thread.join());
            let own = own.collect::<Vec<_>>();
            end.store(true, Ordering::Relaxed);
            own.into_iter().map(Result::unwrap).collect()
        });
        for (index, part) in model.chunks_mut(PART).enumerate() {
            part.copy_from_slice(&own[index % QUEUES][index * PART..][..part.len()]);
        }
        let mut queue = disk.open_queue(1).unwrap();
        let found = read(&mut *queue, 0, SIZE).unwrap();
        let wrong = found.iter().zip(&model).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{setup}, round {round}");
        let size = disk.caps().capacity_bytes() as usize;
        drop((queue, disk));
        qemu::check(&image);
        let mut whole = model.clone();
        whole.resize(size, 0);
        qemu::compare(&image, &whole);
        if below == Below::Snapshots {
            let tag = format!("after {round}");
            qemu::ok(&["snapshot", "-q", "-c", &tag, name]);
            snapshots.push((tag, model.clone()));
        }
    }
    for (tag, content) in snapshots {
        qemu::ok(&["snapshot", "-q", "-a", &tag, name]);
        qemu::compare(&image, &content);
    }
}

#[test]
fn in_subclusters() {
    let setup = "cluster_size=64k,extended_l2=on";
    neighbours(setup, Below::Backing, Engine::Auto, 1);
    if long() {
        neighbours(setup, Below::Snapshots, Engine::Sync, 2);
        neighbours(setup, Below::Nothing, Engine::IoUring, 3);
    }
}

#[test]
fn in_the_smallest_subclusters() {
    let setup = "cluster_size=16k,extended_l2=on";
    neighbours(setup, Below::DataFile, Engine::Auto, 4);
    if long() {
        neighbours(setup, Below::Compressed, Engine::Auto, 5);
    }
}

#[test]
fn in_clusters() {
    neighbours("cluster_size=4k", Below::Compressed, Engine::IoUring, 6);
    if long() {
        neighbours("cluster_size=4k", Below::Snapshots, Engine::Sync, 7);
        neighbours("cluster_size=64k", Below::Backing, Engine::Auto, 8);
        neighbours("cluster_size=64k", Below::DataFile, Engine::Auto, 9);
    }
}

#[test]
fn in_the_smallest_clusters() {
    neighbours("cluster_size=512", Below::Snapshots, Engine::Auto, 10);
    if long() {
        neighbours("cluster_size=512", Below::Nothing, Engine::Auto, 11);
        let setup = "cluster_size=512,compat=0.10";
        neighbours(setup, Below::Backing, Engine::Sync, 12);
    }
}

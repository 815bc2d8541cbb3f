// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several queues in the same clusters at once: no data ever appears where it was not written, and the image stays sound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;

use common::{directory, wait};
use files::{Setup, path};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_disks::Engine;

const QUEUES: u64 = 4;
const DEPTH: usize = 16;
const SIZE: usize = 8 << 20;
const BLOCK: usize = 4096;

/// A block that says where it belongs.
fn stamp(block: u64) -> Vec<u8> {
    (block + 1).to_le_bytes().repeat(BLOCK / 8)
}

/// Each sector is zero, what the image held first, or belongs where it is.
fn check(data: &[u8], first: u64, old: u8) {
    for (index, sector) in data.chunks(512).enumerate() {
        let own = (first + (index * 512 / BLOCK) as u64 + 1).to_le_bytes();
        let is_own = sector.chunks(8).all(|word| word == own);
        let is_old = sector.iter().all(|byte| *byte == old);
        let is_zero = sector.iter().all(|byte| *byte == 0);
        assert!(
            is_own || is_old || is_zero,
            "block {}: {:x?}",
            first + (index * 512 / BLOCK) as u64,
            &sector[..16]
        );
    }
}

fn work(queue: &mut dyn IoQueue, seed: u64, turns: u64, old: u8) {
    let blocks = (SIZE / BLOCK) as u64;
    let mut random = seed;
    let mut reads = std::collections::HashMap::new();
    let mut flight = 0;
    let mut done: Vec<Completion> = Vec::new();
    for turn in 0..turns {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let pick = random >> 33;
        // Most of it in a part where the queues meet.
        let block = if pick.is_multiple_of(4) {
            pick / 4 % blocks
        } else {
            pick / 4 % 256
        };
        let offset = block * BLOCK as u64;
        let (kind, buf) = match random >> 56 & 15 {
            0 => (OpKind::Flush, IoBuf::new()),
            1..=3 => {
                let offset = offset & !0xffff;
                let len = 0x10000;
                (OpKind::Discard { offset, len }, IoBuf::new())
            }
            4 => {
                let (len, unmap) = (BLOCK as u64, pick.is_multiple_of(2));
                let fua = pick % 16 == 1;
                (
                    OpKind::WriteZeroes {
                        offset,
                        len,
                        unmap,
                        fua,
                    },
                    IoBuf::new(),
                )
            }
            5..=7 => {
                reads.insert(Token(turn), block);
                (OpKind::Read { offset }, IoBuf::zeroed(BLOCK))
            }
            _ => {
                let fua = pick.is_multiple_of(64);
                (OpKind::Write { offset, fua }, IoBuf::from_vec(stamp(block)))
            }
        };
        let op = Op {
            token: Token(turn),
            kind,
            buf,
        };
        match queue.submit(op) {
            Submit::Done(completion) => done.push(completion),
            Submit::Queued => flight += 1,
            Submit::Full(_) => panic!("full"),
        }
        while flight >= DEPTH || turn + 1 == turns && flight > 0 {
            queue.flush_batch().unwrap();
            let before = done.len();
            if queue.reap(&mut done).unwrap() == 0 {
                wait(queue);
            }
            flight -= done.len() - before;
        }
        for completion in done.drain(..) {
            completion.result.unwrap();
            if let Some(block) = reads.remove(&completion.token) {
                check(&completion.buf.to_vec(), block, old);
            }
        }
    }
}

fn stress(setup: &str, backing: bool, engine: Engine, seed: u64) {
    stress_on(setup, backing, engine, false, seed);
}

fn stress_on(setup: &str, backing: bool, engine: Engine, direct: bool, seed: u64) {
    let directory = directory();
    let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
    let old = if backing { 0xee } else { 0 };
    let mut setup = setup.to_owned();
    if backing {
        std::fs::write(&base, vec![old; SIZE]).unwrap();
        setup += ",backing_file=base.img,backing_fmt=raw";
    }
    qemu::create(&image, &setup, SIZE);
    let options = Setup::new(&image)
        .backing(true)
        .engine(engine)
        .direct(direct);
    for round in 0..3 {
        let disk: Arc<dyn Disk> = Arc::new(options.open().unwrap());
        std::thread::scope(|scope| {
            for number in 0..QUEUES {
                let mut queue = disk.open_queue(DEPTH as u16).unwrap();
                let seed = seed * 1000 + round * 10 + number;
                scope.spawn(move || work(&mut *queue, seed, 1500, old));
            }
        });
        let mut queue = disk.open_queue(1).unwrap();
        check(&common::read(&mut *queue, 0, SIZE).unwrap(), 0, old);
        drop((queue, disk));
        qemu::check(&image);
    }
}

#[test]
fn large_clusters() {
    stress("cluster_size=64k", false, Engine::Auto, 1);
}

#[test]
fn small_clusters() {
    stress("cluster_size=4k", false, Engine::IoUring, 2);
}

#[test]
fn past_the_page_cache() {
    stress_on("cluster_size=64k", true, Engine::Auto, true, 6);
}

#[test]
fn the_smallest_clusters() {
    stress("cluster_size=512", false, Engine::Sync, 3);
}

#[test]
fn large_clusters_over_a_backing_file() {
    stress("cluster_size=64k", true, Engine::Auto, 4);
}

#[test]
fn subclusters_over_a_backing_file() {
    stress("cluster_size=64k,extended_l2=on", true, Engine::Auto, 5);
}

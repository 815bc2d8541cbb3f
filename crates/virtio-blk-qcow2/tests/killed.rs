// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! kill -9 at random moments under writes, discards and flushes on several queues and L2 tables: the image is sound each
//! time, and has everything that had completed.
//!
//! The process that is killed is this program once more. It tells what it submits and what completed through a pipe, whose
//! content outlives it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{directory, read, wait, write};
use fastrand::Rng;
use files::{RawFiles, Setup, path};
use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_qcow2::{Access, Files, OpenError, Qcow2Disk, Repair, check};

const QUEUES: u64 = 4;
const DEPTH: usize = 8;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;
const SIZE: usize = BLOCKS as usize * BLOCK;
/// What the image's path is told to the process that is killed in, and the number of the round.
const IMAGE: &str = "VBLK_KILLED_IMAGE";
const ROUND: &str = "VBLK_KILLED_ROUND";
/// Versions of a round, and the largest number of records until the kill.
const VERSIONS: u64 = 1 << 20;
const MOST: u64 = 3000;
/// In a record: it completed.
const COMPLETED: u64 = 1 << 63;
const BLOCK_BITS: u32 = 16;

/// What a version of a block makes of it.
fn kind(block: u64, version: u64) -> OpKind {
    let (offset, len) = (block * BLOCK as u64, BLOCK as u64);
    match version % 8 {
        0 | 1 => OpKind::Discard { offset, len },
        2 => OpKind::WriteZeroes {
            offset,
            len,
            unmap: version % 16 == 2,
            fua: false,
        },
        other => OpKind::Write {
            offset,
            fua: other == 7 && version % 64 == 7,
        },
    }
}

/// The name of an image that is opened for direct I/O.
const DIRECT: &str = "direct.qcow2";

/// A sector of a version of a block.
fn sector(block: u64, version: u64) -> Vec<u8> {
    let stamp = match kind(block, version) {
        OpKind::Write { .. } => version << BLOCK_BITS | block,
        _ => 0,
    };
    stamp.to_le_bytes().repeat(64)
}

/// What is done until the kill.
fn work(queue: &mut dyn IoQueue, number: u64, round: u64, told: &mut File) {
    let mut rng = Rng::with_seed(round * QUEUES + number);
    let mut version = round * VERSIONS;
    let mut flight: HashMap<Token, u64> = HashMap::new();
    let mut busy = HashSet::new();
    let (mut next, mut done) = (0, Vec::new());
    let mut tell = |record: u64| told.write_all(&record.to_le_bytes()).unwrap();
    loop {
        while busy.len() < DEPTH {
            // Neighbours belong to different queues. Most of it is in a part where clusters are used again.
            let blocks = if rng.u64(..4) == 0 {
                BLOCKS
            } else {
                BLOCKS / 8
            };
            let block = rng.u64(..blocks / QUEUES) * QUEUES + number;
            if !busy.insert(block) {
                continue;
            }
            version += 1;
            let kind = kind(block, version);
            let buf = match kind {
                OpKind::Write { .. } => IoBuf::from_vec(sector(block, version).repeat(8)),
                _ => IoBuf::new(),
            };
            let record = version << BLOCK_BITS | block;
            tell(record);
            next += 1;
            let token = Token(next);
            flight.insert(token, record);
            match queue.execute_or_submit(Op { token, kind, buf }) {
                Submit::Done(completion) => done.push(completion),
                Submit::Queued => {}
                Submit::Full(_) => panic!("full"),
            }
            if rng.u64(..24) == 0 {
                let (token, buf) = (Token(0), IoBuf::new());
                let kind = OpKind::Flush;
                match queue.execute_or_submit(Op { token, kind, buf }) {
                    Submit::Done(completion) => done.push(completion),
                    Submit::Queued => {}
                    // There may be many of them.
                    Submit::Full(_) => {}
                }
            }
        }
        queue.flush_batch().unwrap();
        if queue.reap(&mut done).unwrap() == 0 && done.is_empty() {
            wait(queue);
        }
        for completion in done.drain(..) {
            completion.result.unwrap();
            if let Some(record) = flight.remove(&completion.token) {
                tell(record | COMPLETED);
                busy.remove(&(record & ((1 << BLOCK_BITS) - 1)));
            }
        }
    }
}

/// The process that is killed.
fn child(image: &Path, round: u64) {
    let disk = open(image);
    std::thread::scope(|scope| {
        for number in 0..QUEUES {
            let mut queue = disk.open_queue(4 * DEPTH as u16).unwrap();
            let told = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
            scope.spawn(move || work(&mut *queue, number, round, &mut told.into()));
        }
    });
}

/// Opens the image, past the page cache if its name says so. The lock of who was killed may outlive him for a moment.
fn open(image: &Path) -> Qcow2Disk {
    let started = Instant::now();
    loop {
        let direct = image.ends_with(DIRECT);
        match Setup::new(image).backing(true).direct(direct).open() {
            Ok(disk) => return disk,
            Err(OpenError::File { source, .. }) if started.elapsed().as_secs() < 30 => {
                assert!(source.to_string().contains("use"), "{source}");
            }
            Err(error) => panic!("{error}"),
        }
        std::thread::yield_now();
    }
}

/// What a block may hold: the last version that completed, and those that were submitted after it.
type Allowed = Vec<Vec<u64>>;

/// Runs the process and kills it.
fn round(image: &Path, round: u64, rng: &mut Rng, allowed: &mut Allowed) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(IMAGE, image)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = child.stdout.take().unwrap();
    let (most, mut count, mut completed) = (1 + rng.u64(..MOST), 0, 0);
    let mut record = [0; 8];
    while told.read_exact(&mut record).is_ok() {
        let record = u64::from_le_bytes(record);
        let block = (record & ((1 << BLOCK_BITS) - 1)) as usize;
        let version = (record & !COMPLETED) >> BLOCK_BITS;
        if record & COMPLETED == 0 {
            allowed[block].push(version);
        } else {
            allowed[block].retain(|other| *other >= version);
            completed += 1;
        }
        count += 1;
        if count == most {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(count >= most, "it ended by itself: {status}");
    completed
}

/// Looks whether the image has what it should have.
fn verify(image: &Path, allowed: &mut Allowed, old: u8) {
    let disk = open(image);
    let mut queue = disk.open_queue(1).unwrap();
    for (block, versions) in (0_u64..).zip(allowed) {
        let data = read(&mut *queue, block * BLOCK as u64, BLOCK).unwrap();
        let holds = |version: u64, found: &[u8]| match version {
            0 => found.iter().all(|byte| *byte == old),
            _ => found == sector(block, version),
        };
        for found in data.chunks(512) {
            assert!(
                versions.iter().any(|version| holds(*version, found)),
                "block {block}: {:x?}, not one of {versions:x?}",
                &found[..16]
            );
        }
        // It has to stay so from now on, unless the kill was in the middle of a block.
        let whole = |version: &u64| data.chunks(512).all(|found| holds(*version, found));
        if let Some(version) = versions.iter().copied().find(whole) {
            *versions = vec![version];
        }
    }
}

fn judge(image: &Path, repair: Repair) -> u64 {
    qemu::check_after_crash(image);
    let file = RawFiles::default().open(image, Access::Write).unwrap();
    let found = check(&file, image, repair, &mut |_, _| {}).unwrap();
    assert_eq!(found.corruptions, 0, "{:?}", found.told);
    found.leaks
}

fn kills(setup: &str, old: u8, snapshot: bool, direct: bool, rounds: u64) {
    let directory = directory();
    let name = if direct { DIRECT } else { "disk.qcow2" };
    let (base, image) = (path(&directory, "base.img"), path(&directory, name));
    let mut setup = setup.to_owned();
    if old != 0 && !snapshot {
        std::fs::write(&base, vec![old; SIZE]).unwrap();
        setup += ",backing_file=base.img,backing_fmt=raw";
    }
    qemu::create(&image, &setup, SIZE);
    if snapshot {
        let disk = open(&image);
        write(&mut *disk.open_queue(1).unwrap(), 0, vec![old; SIZE]).unwrap();
        drop(disk);
        let name = image.to_str().unwrap();
        qemu::ok(&["snapshot", "-q", "-c", "before", name]);
    }
    let mut allowed = vec![vec![0]; BLOCKS as usize];
    let mut rng = Rng::with_seed(rounds);
    let (mut completed, mut leaks) = (0, 0);
    for number in 1..=rounds {
        completed += round(&image, number, &mut rng, &mut allowed);
        let repair = match number % 8 {
            0 => Repair::Leaks,
            _ => Repair::Nothing,
        };
        leaks += judge(&image, repair);
        verify(&image, &mut allowed, old);
        qemu::check_after_crash(&image);
    }
    println!("{setup}: {rounds} kills over {completed} operations, {leaks} clusters lost");
    if snapshot {
        let name = image.to_str().unwrap();
        qemu::ok(&["snapshot", "-q", "-a", "before", name]);
        qemu::compare(&image, &vec![old; SIZE]);
    }
}

fn main() {
    if let Some(image) = std::env::var_os(IMAGE) {
        let round = std::env::var(ROUND).unwrap().parse().unwrap();
        return child(&PathBuf::from(image), round);
    }
    // As the usual harness has it: names that are to run.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let rounds = if files::long() { 200 } else { 4 };
    let subclusters = "cluster_size=64k,extended_l2=on";
    for (name, setup, old, snapshot, direct) in [
        ("small_clusters", "cluster_size=4k", 0, false, false),
        ("past_the_page_cache", "cluster_size=4k", 0, false, true),
        ("copies_past_it", "cluster_size=4k", 0xee, false, true),
        ("the_smallest_clusters", "cluster_size=512", 0, false, false),
        ("over_a_backing_file", "cluster_size=4k", 0xee, false, false),
        ("subclusters", subclusters, 0xee, false, false),
        ("a_snapshot", "cluster_size=4k", 0xee, true, false),
    ] {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            kills(setup, old, snapshot, direct, rounds);
        }
    }
}

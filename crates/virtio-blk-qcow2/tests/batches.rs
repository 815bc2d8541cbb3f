// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes that get new clusters on a path that finishes nothing inside a call: their entries are written beside the data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{directory, read, run, wait, write};
use files::gate::{Fate, Gate};
use files::{Setup, path};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_disks::Engine;
use virtio_blk_qcow2::Qcow2Disk;

const CLUSTER: usize = 4096;
const SIZE: usize = 256 * CLUSTER;
/// Bytes of a write of entries; the data of these tests is never as long.
const ENTRIES: usize = 512;
const DATA: usize = 1024;

/// An image in memory whose first cluster is written, so that table and reserve are there.
fn image(directory: &tempfile::TempDir) -> (Arc<Gate>, Qcow2Disk) {
    let image = path(directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(4 * SIZE, 0);
    let gate = Arc::new(Gate::new(bytes));
    let disk = Setup::over(gate.clone(), &Setup::new(&image)).unwrap();
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![1; CLUSTER]).unwrap();
    (gate, disk)
}

fn submit(queue: &mut dyn IoQueue, token: u64, offset: usize, value: u8) {
    let op = Op {
        token: Token(token),
        kind: OpKind::Write {
            offset: offset as u64,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![value; DATA]),
    };
    assert!(matches!(queue.submit(op), Submit::Queued));
}

/// Completions of `count` operations.
fn reap(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    while done.len() < count {
        queue.reap(&mut done).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(done.len(), count);
    done
}

/// What the image in the gate is to the guest, by qemu-img, which finds no fault with it.
fn compare(directory: &tempfile::TempDir, gate: &Gate, content: &[u8]) {
    let copy = path(directory, "copy.qcow2");
    std::fs::write(&copy, gate.content()).unwrap();
    qemu::check(&copy);
    qemu::compare(&copy, content);
}

#[test]
fn a_batch_takes_one_write_of_entries_and_completes_after_it() {
    let directory = directory();
    let (gate, disk) = image(&directory);
    let mut model = vec![0; SIZE];
    model[..CLUSTER].fill(1);
    let mut queue = disk.open_queue(16).unwrap();
    let writes = Arc::new(AtomicUsize::new(0));
    let seen = writes.clone();
    gate.close(move |kind, len| match kind {
        OpKind::Write { .. } if len == ENTRIES => {
            seen.fetch_add(1, Ordering::SeqCst);
            Fate::Hold
        }
        _ => Fate::Pass,
    });
    // Eight clusters, and a second write to one of them.
    let places: Vec<usize> = (1..=8).map(|number| number * CLUSTER).collect();
    for (token, place) in (0..).zip(places.iter().copied().chain([CLUSTER + DATA])) {
        submit(&mut *queue, token, place, token as u8 + 10);
        model[place..place + DATA].fill(token as u8 + 10);
    }
    queue.flush_batch().unwrap();
    gate.await_held();
    // One that comes later waits for them.
    let late = CLUSTER + 2 * DATA;
    submit(&mut *queue, 9, late, 19);
    model[late..late + DATA].fill(19);
    queue.flush_batch().unwrap();
    let mut done = Vec::new();
    for _ in 0..1000 {
        queue.reap(&mut done).unwrap();
    }
    assert!(done.is_empty(), "the entries are not there");
    gate.open();
    for completion in reap(&mut *queue, 10) {
        completion.result.unwrap();
    }
    assert_eq!(writes.load(Ordering::SeqCst), 1);
    assert!(read(&mut *queue, 0, SIZE).unwrap() == model);
    drop((queue, disk));
    compare(&directory, &gate, &model);
}

#[test]
fn entries_that_fail_fail_their_writes_and_nothing_else() {
    let directory = directory();
    let (gate, disk) = image(&directory);
    let mut model = vec![0; SIZE];
    model[..CLUSTER].fill(1);
    let mut queue = disk.open_queue(16).unwrap();
    gate.close(|kind, len| match kind {
        OpKind::Write { .. } if len == ENTRIES => Fate::Fail,
        _ => Fate::Pass,
    });
    for number in 1..5 {
        submit(&mut *queue, number as u64, number * CLUSTER, 7);
    }
    queue.flush_batch().unwrap();
    for completion in reap(&mut *queue, 4) {
        assert_eq!(completion.result.unwrap_err().errno(), Some(libc::EIO));
    }
    gate.open();
    assert!(read(&mut *queue, 0, SIZE).unwrap() == model);
    for number in 3..7 {
        write(&mut *queue, (number * CLUSTER) as u64, vec![8; DATA]).unwrap();
        model[number * CLUSTER..number * CLUSTER + DATA].fill(8);
    }
    let flush = run(&mut *queue, OpKind::Flush, IoBuf::new());
    flush.result.unwrap();
    assert!(read(&mut *queue, 0, SIZE).unwrap() == model);
    drop((queue, disk));
    compare(&directory, &gate, &model);
}

#[test]
fn a_queue_that_is_dropped_waits_for_its_entries() {
    let directory = directory();
    let (gate, disk) = image(&directory);
    let mut queue = disk.open_queue(16).unwrap();
    submit(&mut *queue, 1, CLUSTER, 7);
    submit(&mut *queue, 2, 2 * CLUSTER, 7);
    queue.flush_batch().unwrap();
    // One that was never started goes without a word.
    submit(&mut *queue, 3, 3 * CLUSTER, 7);
    drop(queue);
    let mut queue = disk.open_queue(16).unwrap();
    let found = read(&mut *queue, 0, 4 * CLUSTER).unwrap();
    assert!(found[3 * CLUSTER..].iter().all(|byte| *byte == 0));
    let mut model = vec![0; SIZE];
    model[..found.len()].copy_from_slice(&found);
    drop((queue, disk));
    compare(&directory, &gate, &model);
}

#[test]
fn long_and_short_writes_past_the_page_cache() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut model = vec![0; SIZE];
    let setup = Setup::new(&image).direct(true).engine(Engine::IoUring);
    let disk = setup.open().unwrap();
    let mut queue = disk.open_queue(64).unwrap();
    let random = &mut fastrand::Rng::with_seed(7);
    for round in 0..20_u8 {
        let (mut taken, mut done) = (Vec::new(), Vec::new());
        for token in 0..32_u64 {
            let len = [512, 4096, 3 * CLUSTER, 512 * 7][random.usize(..4)];
            let place = random.usize(..(SIZE - len) / 512) * 512;
            // Writes that overlap have no order.
            let overlaps = |other: &(usize, usize)| place < other.1 && other.0 < place + len;
            if taken.iter().any(overlaps) {
                continue;
            }
            taken.push((place, place + len));
            let value = round.wrapping_mul(32).wrapping_add(token as u8);
            model[place..place + len].fill(value);
            let op = Op {
                token: Token(token),
                kind: OpKind::Write {
                    offset: place as u64,
                    fua: false,
                },
                buf: IoBuf::from_vec(vec![value; len]),
            };
            match queue.submit(op) {
                Submit::Queued => {}
                Submit::Done(completion) => done.push(completion),
                Submit::Full(_) => panic!("there is room for more"),
            }
        }
        queue.flush_batch().unwrap();
        while done.len() < taken.len() {
            if queue.reap(&mut done).unwrap() == 0 {
                wait(&*queue);
            }
        }
        for completion in done {
            completion.result.unwrap();
        }
        assert!(read(&mut *queue, 0, SIZE).unwrap() == model, "{round}");
    }
    drop((queue, disk));
    qemu::check(&image);
    qemu::compare(&image, &model);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations beside each other, at the one moment that matters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use common::{directory, read, run, write};
use files::gate::{Fate, Gate};
use files::{Setup, open, path};
use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_qcow2::Qcow2Disk;

/// The image at `path` in memory, with at least `room` bytes, and the disk on it.
fn in_memory(path: &Path, room: usize) -> (Arc<Gate>, Qcow2Disk) {
    let mut bytes = std::fs::read(path).unwrap();
    // How many clusters the image was given depends on how quick its keeper was.
    bytes.resize(room.max(bytes.len()), 0);
    let gate = Arc::new(Gate::new(bytes));
    let disk = Setup::over(gate.clone(), &Setup::new(path)).unwrap();
    (gate, disk)
}

fn flush(queue: &mut dyn IoQueue) {
    run(queue, OpKind::Flush, IoBuf::new()).result.unwrap();
}

fn discard(queue: &mut dyn IoQueue, offset: u64, len: u64) {
    let kind = OpKind::Discard { offset, len };
    run(queue, kind, IoBuf::new()).result.unwrap();
}

/// A write that gives a subcluster its place shares another one with a write that goes in place.
#[test]
fn a_new_subcluster_leaves_what_is_written_to_its_neighbour_meanwhile() {
    const UNIT: u64 = 2048;
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k,extended_l2=on", 1 << 20);
    for behind in [false, true] {
        let (gate, disk) = in_memory(&image, 2 << 20);
        let (mut slow, mut quick) = (disk.open_queue(4).unwrap(), disk.open_queue(4).unwrap());
        // One unit has data, and the one before or behind it has none.
        let (own, other) = if behind { (4, 3) } else { (3, 4) };
        write(&mut *quick, own * UNIT, vec![1; UNIT as usize]).unwrap();
        let kind = OpKind::WriteZeroes {
            offset: other * UNIT,
            len: UNIT,
            unmap: true,
            fua: false,
        };
        run(&mut *quick, kind, IoBuf::new()).result.unwrap();
        gate.close(|kind, len| match kind {
            OpKind::Write { .. } if len > 512 => Fate::Hold,
            _ => Fate::Pass,
        });
        // The second half of the first, and the first half of the second.
        let op = Op {
            token: Token(1),
            kind: OpKind::Write {
                offset: 3 * UNIT + 1024,
                fua: false,
            },
            buf: IoBuf::from_vec(vec![2; 2048]),
        };
        assert!(matches!(slow.submit(op), Submit::Queued));
        slow.flush_batch().unwrap();
        gate.await_held();
        let at = if behind { 4 * UNIT + 1024 } else { 3 * UNIT };
        write(&mut *quick, at, vec![3; 512]).unwrap();
        gate.open();
        let mut done = Vec::new();
        while slow.reap(&mut done).unwrap() == 0 {
            std::thread::yield_now();
        }
        done.pop().unwrap().result.unwrap();
        let found = read(&mut *quick, at, 512).unwrap();
        assert!(found == [3; 512], "{:?}: {behind}", &found[..4]);
        let found = read(&mut *quick, 3 * UNIT + 1024, 2048).unwrap();
        assert!(found == [2; 2048]);
    }
}

/// The L1 table moves into clusters whose space is being given back.
#[test]
fn space_that_is_given_back_is_not_used_before() {
    const CLUSTER: u64 = 4096;
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", 1 << 20);
    // Everything else is made ready for data.
    let (gate, disk) = in_memory(&image, 48 * CLUSTER as usize);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![1; 8 * CLUSTER as usize]).unwrap();
    gate.close(|kind, _| match kind {
        OpKind::WriteZeroes { .. } => Fate::Hold,
        _ => Fate::Pass,
    });
    discard(&mut *queue, CLUSTER, 4 * CLUSTER);
    flush(&mut *queue);
    gate.await_held();
    std::thread::scope(|scope| {
        let (resized, is_resized) = channel();
        let disk = &disk;
        scope.spawn(move || resized.send(disk.resize(2 << 30)).unwrap());
        // It may have to wait for what is held.
        let early = is_resized.recv_timeout(Duration::from_millis(300));
        gate.open();
        early
            .unwrap_or_else(|_| is_resized.recv().unwrap())
            .unwrap();
    });
    flush(&mut *queue);
    drop((queue, disk));
    std::fs::write(&image, gate.content()).unwrap();
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    let found = read(&mut *queue, 0, CLUSTER as usize).unwrap();
    assert!(found == [1; CLUSTER as usize], "{:?}", &found[..4]);
    drop((queue, disk));
    qemu::check(&image);
}

/// The last cluster is in the backing file and ends with it, until the image grows.
#[test]
fn what_is_behind_a_backing_file_is_zero_after_growth() {
    let directory = directory();
    let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
    let size = 100 << 10;
    std::fs::write(&base, vec![7; size]).unwrap();
    qemu::create(
        &image,
        "cluster_size=64k,backing_file=base.img,backing_fmt=raw",
        size,
    );
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    assert!(read(&mut *queue, 64 << 10, size - (64 << 10)).unwrap() == vec![7; size - (64 << 10)]);
    disk.resize(1 << 20).unwrap();
    let found = read(&mut *queue, 96 << 10, 8192).unwrap();
    assert!(found[..4096] == [7; 4096] && found[4096..] == [0; 4096]);
    drop((queue, disk));
    qemu::check(&image);
}

/// A part of a table that could not be written is read again before it is written anew.
#[test]
fn a_table_that_could_not_be_written_is_read_as_it_should_be() {
    const CLUSTER: u64 = 4096;
    /// As many slices of 2 MiB share a part of the cache.
    const STRIDE: u64 = 16 * (2 << 20);
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", 40 << 30);
    let (gate, disk) = in_memory(&image, 4 << 20);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![1; CLUSTER as usize]).unwrap();
    write(&mut *queue, CLUSTER, vec![2; CLUSTER as usize]).unwrap();
    let mut failed = false;
    gate.close(move |kind, _| match kind {
        OpKind::Write { .. } if !failed => {
            failed = true;
            Fate::Fail
        }
        _ => Fate::Pass,
    });
    write(&mut *queue, 2 * CLUSTER, vec![3; CLUSTER as usize]).unwrap_err();
    gate.open();
    for number in 1..1200 {
        read(&mut *queue, number * STRIDE, 512).unwrap();
    }
    write(&mut *queue, 2 * CLUSTER, vec![4; CLUSTER as usize]).unwrap();
    flush(&mut *queue);
    drop((queue, disk));
    std::fs::write(&image, gate.content()).unwrap();
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    let found = read(&mut *queue, 2 * CLUSTER, CLUSTER as usize).unwrap();
    assert!(found == [4; CLUSTER as usize], "{:?}", &found[..4]);
    drop((queue, disk));
    qemu::check(&image);
}

/// An image whose last cluster lies partly behind the end of its device.
#[test]
fn nothing_is_written_behind_the_end_of_a_device() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k,extended_l2=on", 1 << 20);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![1; 2048]).unwrap();
    // Only its first subcluster has data.
    let kind = OpKind::WriteZeroes {
        offset: 2048,
        len: 62 << 10,
        unmap: true,
        fua: false,
    };
    run(&mut *queue, kind, IoBuf::new()).result.unwrap();
    drop((queue, disk));
    let l2_and_data = std::fs::read(&image).unwrap();
    let last = l2_and_data
        .chunks(65536)
        .position(|cluster| cluster[..2048] == [1; 2048])
        .unwrap();
    let (gate, disk) = in_memory(&image, (last << 16) + 8192);
    let mut queue = disk.open_queue(4).unwrap();
    match write(&mut *queue, 32 << 10, vec![2; 4096]) {
        Ok(()) => {
            let found = read(&mut *queue, 32 << 10, 4096).unwrap();
            assert!(found == [2; 4096], "{:?}", &found[..4]);
        }
        Err(error) => assert!(error.is_no_space(), "{error}"),
    }
    drop((queue, disk, gate));
}

/// What comes back late of an operation that was given up is not taken for the next one.
#[test]
fn what_was_given_up_is_not_taken_for_another() {
    const TABLE: u64 = 64 << 9;
    const TABLES: u64 = 24;
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=512", 1 << 20);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    for number in 0..TABLES {
        write(&mut *queue, number * TABLE, vec![number as u8 + 1; 512]).unwrap();
    }
    drop((queue, disk));
    let (gate, disk) = in_memory(&image, 4 << 20);
    let mut queue = disk.open_queue(1).unwrap();
    // More often than there are threads.
    for number in 0..TABLES {
        // The first read, that of a table, is held.
        let is_held = Arc::new(AtomicBool::new(false));
        let told = is_held.clone();
        gate.close(move |kind, _| {
            if matches!(kind, OpKind::Read { .. }) && !told.swap(true, Ordering::SeqCst) {
                return Fate::Hold;
            }
            Fate::Pass
        });
        let op = Op {
            token: Token(number),
            kind: OpKind::Read {
                offset: number * TABLE,
            },
            buf: IoBuf::zeroed(512),
        };
        assert!(matches!(queue.submit(op), Submit::Queued));
        while !is_held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        if number == 0 {
            gate.fail_reap();
        } else {
            gate.open();
        }
        let mut done = Vec::new();
        while queue.reap(&mut done).unwrap() == 0 {
            std::thread::yield_now();
        }
        let completion = done.pop().unwrap();
        assert_eq!(completion.result.is_err(), number == 0);
        if number > 0 {
            assert!(
                completion.buf.to_vec() == [number as u8 + 1; 512],
                "{number}"
            );
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An operation that found its place keeps it, however long it takes: the cluster gets no other meaning before; and who
//! needs a cluster while that is so waits for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::sync::Arc;

use common::{directory, read, run, write};
use files::gate::{Fate, Gate};
use files::{Setup, path};
use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait};

const CLUSTER: usize = 4096;
const SIZE: usize = 64 * CLUSTER;
/// Bytes of the operations that are held.
const HELD: usize = 1536;

#[test]
fn a_write_that_is_on_its_way_hits_nobody_else() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    // Room for a table and half of the data: what is given up has to be used again.
    bytes.resize(40 * CLUSTER, 0);
    let gate = Arc::new(Gate::new(bytes));
    let disk = Setup::over(gate.clone(), &Setup::new(&image)).unwrap();
    let mut slow = disk.open_queue(4).unwrap();
    write(&mut *slow, 0, vec![1; CLUSTER]).unwrap();
    // What is below tells nobody when it is finished.
    assert!(matches!(slow.wait(), Wait::Poll));
    gate.close(|_, len| {
        if len == HELD {
            return Fate::Hold;
        }
        Fate::Pass
    });
    let op = Op {
        token: Token(1),
        kind: OpKind::Write {
            offset: 0,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![2; HELD]),
    };
    assert!(matches!(slow.submit(op), Submit::Queued));
    // Meanwhile its cluster is given up, stably, and everything is used that can be.
    let mut quick = disk.open_queue(4).unwrap();
    let discard = OpKind::Discard {
        offset: 0,
        len: CLUSTER as u64,
    };
    run(&mut *quick, discard, IoBuf::new()).result.unwrap();
    let mut written = Vec::new();
    for number in 1..64_u64 {
        let flush = run(&mut *quick, OpKind::Flush, IoBuf::new());
        flush.result.unwrap();
        let offset = number * CLUSTER as u64;
        match write(&mut *quick, offset, vec![number as u8 + 8; CLUSTER]) {
            Ok(()) => written.push(number),
            Err(error) => assert!(error.is_no_space(), "{error}"),
        }
    }
    assert!((20..40).contains(&written.len()), "{}", written.len());
    gate.open();
    let mut done = Vec::new();
    slow.reap(&mut done).unwrap();
    assert!(done.pop().unwrap().result.is_ok());
    for number in &written {
        let found = read(&mut *quick, number * CLUSTER as u64, CLUSTER).unwrap();
        assert!(found == vec![*number as u8 + 8; CLUSTER], "{number}");
    }
    // Now it can be used.
    let unused = (1..64).find(|number| !written.contains(number)).unwrap();
    let mut tries = 0;
    while let Err(error) = write(&mut *quick, unused * CLUSTER as u64, vec![3; CLUSTER]) {
        assert!(error.is_no_space() && tries < 1000, "{error}");
        tries += 1;
        run(&mut *quick, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
    }
}

/// A disk on `gate`, full but for what the test gives up, with all of the guest's `written` clusters in it.
fn fill(queue: &mut dyn IoQueue, from: u64, to: u64) -> Vec<u64> {
    let mut written = Vec::new();
    for number in from..to {
        match write(queue, number * CLUSTER as u64, vec![number as u8; CLUSTER]) {
            Ok(()) => written.push(number),
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                break;
            }
        }
    }
    written
}

/// What was given up is as good as free, also while somebody still reads it: only that has to end.
#[test]
fn clusters_that_become_free_soon_are_waited_for() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(40 * CLUSTER, 0);
    let gate = Arc::new(Gate::new(bytes));
    let disk = Setup::over(gate.clone(), &Setup::new(&image)).unwrap();
    let mut quick = disk.open_queue(4).unwrap();
    let written = fill(&mut *quick, 0, 64);
    let full = *written.last().unwrap();
    assert!(full < 60, "{full}");
    let mut slow = disk.open_queue(4).unwrap();
    gate.close(|_, len| match len {
        HELD => Fate::Hold,
        _ => Fate::Pass,
    });
    let op = Op {
        token: Token(1),
        kind: OpKind::Read { offset: 0 },
        buf: IoBuf::zeroed(HELD),
    };
    assert!(matches!(slow.submit(op), Submit::Queued));
    let discard = OpKind::Discard {
        offset: CLUSTER as u64,
        len: CLUSTER as u64,
    };
    run(&mut *quick, discard, IoBuf::new()).result.unwrap();
    let op = Op {
        token: Token(2),
        kind: OpKind::Write {
            offset: (full + 1) * CLUSTER as u64,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![7; CLUSTER]),
    };
    assert!(matches!(quick.submit(op), Submit::Queued));
    quick.flush_batch().unwrap();
    let (before, mut done) = (gate.resizes(), Vec::new());
    while gate.resizes() < before + 5 {
        quick.reap(&mut done).unwrap();
        assert!(done.is_empty(), "{:?}", done.pop().unwrap().result);
        std::thread::yield_now();
    }
    gate.let_go();
    while slow.reap(&mut done).unwrap() == 0 {}
    done.pop().unwrap().result.unwrap();
    while quick.reap(&mut done).unwrap() == 0 {}
    done.pop().unwrap().result.unwrap();
    let found = read(&mut *quick, (full + 1) * CLUSTER as u64, CLUSTER).unwrap();
    assert!(found == vec![7; CLUSTER]);
}

/// One write that copies up as many clusters as it gives up needs one in reserve, and not all of them: what its first
/// part gives up serves the next.
#[test]
fn a_write_that_copies_goes_on_with_what_it_gives_up() {
    let directory = directory();
    let (image, base) = (path(&directory, "disk.qcow2"), path(&directory, "base.raw"));
    const COUNT: usize = 24;
    std::fs::write(
        &base,
        (0..COUNT * CLUSTER)
            .map(|at| (at / 700) as u8)
            .collect::<Vec<u8>>(),
    )
    .unwrap();
    let (base, name) = (base.to_str().unwrap(), image.to_str().unwrap());
    qemu::ok(&[
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=4k",
        base,
        name,
    ]);
    let mut bytes = std::fs::read(&image).unwrap();
    let be64 =
        |bytes: &[u8], at: u64| u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap());
    // As if the clusters had been a snapshot's, which is gone: they are not to be written in place, and counted once.
    let l2 = be64(&bytes, be64(&bytes, 40)) & 0x00ff_ffff_ffff_fe00;
    for number in 0..COUNT {
        bytes[l2 as usize + number * 8] &= 0x7f;
    }
    let clusters = bytes.len() / CLUSTER;
    bytes.resize((clusters + 1) * CLUSTER, 0);
    let gate = Arc::new(Gate::new(bytes));
    let disk = Setup::over(gate, &Setup::new(&image)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    // All but the first byte of each.
    let len = COUNT * CLUSTER - 1024;
    write(&mut *queue, 512, vec![3; len]).unwrap();
    let found = read(&mut *queue, 0, COUNT * CLUSTER).unwrap();
    assert!(found[512..512 + len] == vec![3; len]);
    let model = std::fs::read(base).unwrap();
    assert!(found[..512] == model[..512] && found[512 + len..] == model[512 + len..]);
}

/// A table that is being read is nobody's data meanwhile, no matter who reads it.
#[test]
fn a_table_that_is_read_is_not_used_again() {
    const TABLE: u64 = 64 << 10;
    // A table has slices of 4 KiB: the second one is read, and the table given up for the first.
    for (setup, entry, reader) in [
        ("cluster_size=64k", 8, 0),
        ("cluster_size=64k", 8, 1),
        ("cluster_size=64k,extended_l2=on", 16, 2),
    ] {
        let directory = directory();
        let image = path(&directory, "disk.qcow2");
        let second = 4096 / entry * TABLE;
        qemu::create(&image, setup, 1 << 30);
        let disk = Setup::new(&image).open().unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, 0, vec![1; TABLE as usize]).unwrap();
        write(&mut *queue, second, vec![1; TABLE as usize]).unwrap();
        drop((queue, disk));
        let mut bytes = std::fs::read(&image).unwrap();
        let be64 =
            |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let l1 = be64(&bytes, 40) as usize;
        let table = be64(&bytes, l1) & 0x00ff_ffff_ffff_fe00;
        // It is said to be shared, though nobody shares it.
        bytes[l1] &= 0x7f;
        bytes.resize(bytes.len() + 12 * TABLE as usize, 0);
        let gate = Arc::new(Gate::new(bytes));
        let disk = Setup::over(gate.clone(), &Setup::new(&image)).unwrap();
        let mut queue = disk.open_queue(4).unwrap();
        gate.close(move |kind, len| match kind {
            OpKind::Read { offset } if (*offset, len) == (table + 4096, 4096) => Fate::Hold,
            _ => Fate::Pass,
        });
        let in_table = |gate: &Gate| gate.content()[table as usize..][..TABLE as usize].to_vec();
        let before = in_table(&gate);
        std::thread::scope(|scope| {
            let read = scope.spawn(|| match reader {
                0 => drop(Disk::extents(&disk, second..second + TABLE, 9).unwrap()),
                part => {
                    let mut queue = disk.open_queue(1).unwrap();
                    let kind = OpKind::WriteZeroes {
                        offset: second + 2048,
                        len: if part == 1 { 512 } else { 2048 },
                        unmap: false,
                        fua: false,
                    };
                    run(&mut *queue, kind, IoBuf::new()).result.unwrap();
                }
            });
            gate.await_held();
            let mut last = Ok(());
            for number in 0..100_u64 {
                let flushed = run(&mut *queue, OpKind::Flush, IoBuf::new()).result;
                let written = write(&mut *queue, number * TABLE, vec![9; TABLE as usize]);
                last = flushed.and(written);
                if last.is_err() {
                    break;
                }
            }
            let after = in_table(&gate);
            gate.let_go();
            read.join().unwrap();
            let full = last.unwrap_err();
            assert!(full.is_no_space(), "{full}");
            assert!(
                after == before,
                "{setup}: it is data, and is read as a table"
            );
        });
    }
}

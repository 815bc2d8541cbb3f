// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An operation that found its place keeps it, however long it takes: the cluster gets no other meaning before.
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
use virtio_blk_core::disk::{Disk, IoBuf, Op, OpKind, Submit, Token, Wait};

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

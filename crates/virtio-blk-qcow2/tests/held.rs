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
use std::sync::atomic::{AtomicBool, Ordering};

use common::{directory, read, run, write};
use files::{Setup, path};
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait,
};
use virtio_blk_disks::MemoryDisk;

const CLUSTER: usize = 4096;
const SIZE: usize = 64 * CLUSTER;
/// Bytes of the operations that are held.
const HELD: usize = 1536;

/// A disk of a fixed size that holds operations of one length while it is told to.
struct Gate {
    inner: MemoryDisk,
    closed: Arc<AtomicBool>,
}

struct GateQueue {
    inner: Box<dyn IoQueue>,
    closed: Arc<AtomicBool>,
    held: Vec<Op>,
}

impl Disk for Gate {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(GateQueue {
            inner: self.inner.open_queue(depth)?,
            closed: self.closed.clone(),
            held: Vec::new(),
        }))
    }
}

impl IoQueue for GateQueue {
    fn submit(&mut self, op: Op) -> Submit {
        if op.buf.len() == HELD && self.closed.load(Ordering::SeqCst) {
            self.held.push(op);
            return Submit::Queued;
        }
        self.inner.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        let before = done.len();
        if !self.closed.load(Ordering::SeqCst) {
            for op in self.held.drain(..) {
                let Submit::Done(completion) = self.inner.submit(op) else {
                    panic!("memory does not wait");
                };
                done.push(completion);
            }
        }
        Ok(done.len() - before)
    }

    fn wait(&self) -> Wait<'_> {
        Wait::Poll
    }
}

#[test]
fn a_write_that_is_on_its_way_hits_nobody_else() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let mut bytes = std::fs::read(&image).unwrap();
    // Room for a table and half of the data: what is given up has to be used again.
    bytes.resize(40 * CLUSTER, 0);
    let inner = MemoryDisk::new(bytes.len() as u64).unwrap();
    write(&mut *inner.open_queue(1).unwrap(), 0, bytes).unwrap();
    let closed = Arc::new(AtomicBool::new(false));
    let gate = Gate {
        inner,
        closed: closed.clone(),
    };
    let disk = Setup::over(Arc::new(gate), &Setup::new(&image)).unwrap();
    let mut slow = disk.open_queue(4).unwrap();
    write(&mut *slow, 0, vec![1; CLUSTER]).unwrap();
    // What is below tells nobody when it is finished.
    assert!(matches!(slow.wait(), Wait::Poll));
    closed.store(true, Ordering::SeqCst);
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
    closed.store(false, Ordering::SeqCst);
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

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token};

use super::*;
use crate::MemoryDisk;
use crate::fault::{FaultDisk, FaultPlan, Kind, Rule};

fn op(token: u64, kind: OpKind, len: usize) -> Op {
    Op {
        token: Token(token),
        kind,
        buf: IoBuf::zeroed(len),
    }
}

fn write(offset: u64) -> OpKind {
    OpKind::Write { offset, fua: false }
}

fn memory() -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::new(1 << 20).unwrap())
}

#[test]
fn each_kind_is_counted_with_its_bytes_and_errors() {
    let plan = FaultPlan::new(1).rule(Rule::errno(5).kind(Kind::Write).bytes(4096..8192));
    let disk = MeterDisk::new(Arc::new(FaultDisk::new(memory(), plan)));
    let mut queue = disk.open_queue(8).unwrap();
    let zero = OpKind::WriteZeroes {
        offset: 0,
        len: 65536,
        unmap: true,
        fua: false,
    };
    let discard = OpKind::Discard {
        offset: 0,
        len: 1024,
    };
    let ops = [
        (OpKind::Read { offset: 0 }, 512),
        (OpKind::Read { offset: 0 }, 1024),
        (write(0), 2048),
        (write(4096), 512),
        (OpKind::Flush, 0),
        (zero, 0),
        (discard, 0),
    ];
    for (token, (kind, len)) in (40..).zip(ops) {
        let Submit::Done(done) = queue.submit(op(token, kind, len)) else {
            panic!("not at once");
        };
        assert_eq!(done.token, Token(token));
    }
    let total = disk.total();
    let found = OpClass::ALL.map(|class| {
        let stats = total.class(class);
        (stats.count(), stats.bytes, stats.errors)
    });
    assert_eq!(
        found,
        [
            (2, 1536, 0),
            (2, 2048, 1),
            (1, 0, 0),
            (1, 1024, 0),
            (1, 65536, 0),
            (0, 0, 0)
        ]
    );
    assert_eq!(total.depth, 0);
    assert_eq!(OpClass::ALL.map(|class| class as usize), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn the_short_way_is_measured_too() {
    let disk = MeterDisk::new(memory());
    let mut queue = disk.open_queue(8).unwrap();
    let buf = IoBuf::zeroed(512);
    queue
        .execute(&write(0), &buf, None)
        .done()
        .unwrap()
        .unwrap();
    queue
        .execute(&write(1 << 20), &buf, None)
        .done()
        .unwrap()
        .unwrap_err();
    let total = disk.total();
    let writes = total.class(OpClass::Write);
    assert_eq!((writes.count(), writes.bytes, writes.errors), (2, 512, 1));
}

#[test]
fn latency_depth_and_waiting_are_those_of_the_operation() {
    const DELAY: Duration = Duration::from_millis(20);
    let plan = FaultPlan::new(1).delay_time(DELAY..=DELAY);
    let disk = MeterDisk::new(Arc::new(FaultDisk::new(memory(), plan)));
    let mut queue = disk.open_queue(1).unwrap();
    assert!(matches!(queue.submit(op(8, write(0), 512)), Submit::Queued));
    assert_eq!(disk.total().depth, 1);
    let Submit::Full(second) = queue.submit(op(9, write(512), 512)) else {
        panic!("there is room");
    };
    assert_eq!(second.token, Token(9));
    let mut done: Vec<Completion> = Vec::new();
    let mut reap = |queue: &mut Box<dyn IoQueue>, token| {
        let started = Instant::now();
        while queue.reap(&mut done).unwrap() == 0 {
            assert!(started.elapsed() < Duration::from_secs(60));
        }
        assert_eq!(done.pop().unwrap().token, Token(token));
    };
    reap(&mut queue, 8);
    assert_eq!(disk.total().depth, 0);
    assert!(matches!(queue.submit(second), Submit::Queued));
    reap(&mut queue, 9);
    let stats = disk.total().class(OpClass::Write).clone();
    assert_eq!(stats.count(), 2);
    // The second waited for the first, then for itself.
    assert!(stats.queued >= DELAY / 2);
    assert!(stats.latency.max() >= DELAY + stats.queued);
    assert!(stats.in_service() >= 2 * DELAY);
    assert!(stats.latency.quantile(0.5) >= DELAY);
    assert!(matches!(queue.submit(op(1, write(0), 512)), Submit::Queued));
    drop(queue);
    assert_eq!(disk.total().depth, 0);
}

#[test]
fn queues_are_apart_and_go_on_after_being_opened_again() {
    let disk = MeterDisk::new(memory());
    let buf = IoBuf::zeroed(512);
    let mut first = disk.open_queue(8).unwrap();
    let mut second = disk.open_queue(8).unwrap();
    first
        .execute(&write(0), &buf, None)
        .done()
        .unwrap()
        .unwrap();
    second
        .execute(&write(0), &buf, None)
        .done()
        .unwrap()
        .unwrap();
    drop(first);
    let before = disk.total();
    let mut third = disk.open_queue(8).unwrap();
    third
        .execute(&write(0), &buf, None)
        .done()
        .unwrap()
        .unwrap();
    let counts: Vec<_> = disk
        .queues()
        .iter()
        .map(|queue| queue.class(OpClass::Write).count())
        .collect();
    assert_eq!(counts, [2, 1]);
    let new = disk.total().since(&before);
    assert_eq!(new.class(OpClass::Write).count(), 1);
    assert_eq!(new.class(OpClass::Write).bytes, 512);
}

#[test]
fn tokens_and_cancels_pass_through() {
    let plan = FaultPlan::new(3).delay_reaps(5..=5);
    let disk = MeterDisk::new(Arc::new(FaultDisk::new(memory(), plan)));
    let mut queue = disk.open_queue(4).unwrap();
    for token in [7, 0] {
        assert!(matches!(
            queue.submit(op(token, write(0), 512)),
            Submit::Queued
        ));
    }
    queue.cancel(Token(0));
    let mut done = Vec::new();
    assert_eq!(queue.reap(&mut done).unwrap(), 1);
    assert_eq!(done[0].token, Token(0));
    assert_eq!(disk.total().depth, 1);
}

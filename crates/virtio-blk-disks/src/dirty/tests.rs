// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token};

use super::*;
use crate::fault::{FaultDisk, FaultPlan, Kind, Rule};
use crate::{MemoryDisk, NullDisk};

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;

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

fn run(queue: &mut dyn IoQueue, op: Op) -> Completion {
    match queue.submit(op) {
        Submit::Done(completion) => completion,
        Submit::Queued => {
            let mut done = Vec::new();
            queue.flush_batch().unwrap();
            while done.is_empty() {
                queue.reap(&mut done).unwrap();
            }
            done.remove(0)
        }
        Submit::Full(_) => panic!("full"),
    }
}

#[test]
fn each_kind_of_change_is_marked_and_nothing_else() {
    let disk = DirtyDisk::new(Arc::new(MemoryDisk::new(SIZE).unwrap()));
    let bitmap = disk.start("a", BLOCK).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    let zero = OpKind::WriteZeroes {
        offset: 8 * BLOCK,
        len: 2 * BLOCK,
        unmap: false,
        fua: false,
    };
    let discard = OpKind::Discard {
        offset: 20 * BLOCK,
        len: BLOCK,
    };
    for (token, (kind, len)) in [
        (write(512), 1024),
        (write(BLOCK - 512), 1024),
        (OpKind::Read { offset: 5 * BLOCK }, 4096),
        (OpKind::Flush, 0),
        (zero, 0),
        (discard, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let done = run(&mut *queue, op(token as u64 + 70, kind, len));
        assert_eq!(done.token, Token(token as u64 + 70));
        done.result.unwrap();
    }
    let wanted = vec![(0, 2 * BLOCK), (8 * BLOCK, 2 * BLOCK), (20 * BLOCK, BLOCK)];
    assert_eq!(bitmap.changes().ranges, wanted);
    assert_eq!(bitmap.dirty_bytes(), 5 * BLOCK);
    assert_eq!(bitmap.take().ranges, wanted);
    assert_eq!(bitmap.take(), Changes::default());
    // The short way.
    let buf = IoBuf::zeroed(512);
    queue.execute(&write(0), &buf).unwrap().unwrap();
    queue
        .execute(&OpKind::Read { offset: BLOCK }, &buf)
        .unwrap()
        .unwrap();
    assert_eq!(bitmap.take().ranges, [(0, BLOCK)]);
}

#[test]
fn bitmaps_are_apart_and_come_and_go() {
    let disk = DirtyDisk::new(Arc::new(MemoryDisk::new(SIZE).unwrap()));
    let mut queue = disk.open_queue(8).unwrap();
    run(&mut *queue, op(0, write(0), 512));
    let fine = disk.start("fine", 512).unwrap();
    run(&mut *queue, op(0, write(BLOCK), 512));
    let coarse = disk.start("coarse", 64 << 10).unwrap();
    run(&mut *queue, op(0, write(SIZE - 512), 512));
    assert_eq!(fine.changes().ranges, [(BLOCK, 512), (SIZE - 512, 512)]);
    assert_eq!(coarse.changes().ranges, [(SIZE - (64 << 10), 64 << 10)]);
    assert_eq!(disk.names(), ["fine", "coarse"]);
    assert_eq!(
        disk.start("fine", 512).err(),
        Some(BitmapError::Exists("fine".into()))
    );
    disk.stop("fine").unwrap();
    assert!(disk.stop("fine").is_none());
    assert!(disk.bitmap("fine").is_none());
    run(&mut *queue, op(0, write(0), 512));
    assert_eq!(fine.take().ranges.len(), 2, "it ended");
    assert_eq!(coarse.take().ranges.len(), 2);
    disk.attach("fine", fine.clone()).unwrap();
    run(&mut *queue, op(0, write(0), 512));
    assert_eq!(fine.take().ranges, [(0, 512)]);
}

#[test]
fn failed_late_and_cancelled_operations_are_marked_when_they_end() {
    let plan = FaultPlan::new(1)
        .rule(
            Rule::errno(5)
                .kind(Kind::Write)
                .bytes(0..BLOCK)
                .after_effect(),
        )
        .delay_reaps(2..=2);
    let inner = FaultDisk::new(Arc::new(MemoryDisk::new(SIZE).unwrap()), plan);
    let disk = DirtyDisk::new(Arc::new(inner));
    let mut queue = disk.open_queue(8).unwrap();
    assert!(matches!(queue.submit(op(7, write(0), 512)), Submit::Queued));
    let bitmap = disk.start("late", BLOCK).unwrap();
    assert_eq!(bitmap.take(), Changes::default());
    let mut done = Vec::new();
    queue.cancel(Token(7));
    queue.cancel(Token(0));
    queue.reap(&mut done).unwrap();
    assert_eq!(done.len(), 1, "the right one was cancelled");
    assert_eq!(done[0].token, Token(7));
    assert!(done[0].result.is_err());
    assert_eq!(bitmap.take().ranges, [(0, BLOCK)]);
    assert!(matches!(
        queue.submit(op(8, write(BLOCK), 512)),
        Submit::Queued
    ));
    assert_eq!(bitmap.take(), Changes::default());
    drop(queue);
    assert_eq!(bitmap.take().ranges, [(BLOCK, BLOCK)]);
}

#[test]
fn a_full_disk_below_hands_the_operation_back_as_it_was() {
    let plan = FaultPlan::new(3).delay_reaps(1..=1);
    let inner = FaultDisk::new(Arc::new(NullDisk::new(SIZE).unwrap()), plan);
    let disk = DirtyDisk::new(Arc::new(inner));
    let bitmap = disk.start("a", BLOCK).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    assert!(matches!(queue.submit(op(5, write(0), 512)), Submit::Queued));
    let Submit::Full(back) = queue.submit(op(6, write(BLOCK), 512)) else {
        panic!("there is room");
    };
    assert_eq!(back.token, Token(6));
    let mut done = Vec::new();
    while done.is_empty() {
        queue.reap(&mut done).unwrap();
    }
    assert_eq!(bitmap.take().ranges, [(0, BLOCK)]);
}

#[test]
fn a_disk_that_grew_is_dirty_behind_its_old_end() {
    let bitmap = DirtyBitmap::new(SIZE, BLOCK).unwrap();
    bitmap.mark(SIZE - 512, 1024);
    let changes = bitmap.take();
    assert_eq!(changes.ranges, [(SIZE - BLOCK, BLOCK)]);
    assert!(changes.beyond);
    assert_eq!(bitmap.changes(), Changes::default());
    bitmap.restore(&changes);
    assert_eq!(bitmap.changes(), changes);
    bitmap.mark(u64::MAX, u64::MAX);
    bitmap.mark(SIZE, 0);
    assert_eq!(bitmap.take().ranges.len(), 1);
}

#[test]
fn what_is_no_saved_bitmap_is_refused() {
    let bitmap = DirtyBitmap::new(3 * 512 + 1, 512).unwrap();
    bitmap.mark(512, 1);
    let good = bitmap.save();
    assert_eq!(DirtyBitmap::load(&good).unwrap().save(), good);
    for len in 0..good.len() {
        assert!(DirtyBitmap::load(&good[..len]).is_err(), "{len}");
    }
    let bad = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        DirtyBitmap::load(&bytes)
    };
    for (at, value) in [
        (0, 0),
        (8, 2),
        (12, 2),
        (16, 1),
        (17, 0),
        (31, 0xff),
        (32, 0x10),
        (39, 1),
    ] {
        assert!(bad(at, value).is_err(), "byte {at}");
    }
    assert!(bad(32, 0x0f).is_ok());
    assert!(matches!(
        DirtyBitmap::new(u64::MAX, 512),
        Err(BitmapError::TooLarge { .. })
    ));
    assert!(DirtyBitmap::new(1 << 20, 1000).is_err());
    assert!(DirtyBitmap::new(0, 512).unwrap().take().ranges.is_empty());
}

/// A counter in each block stands for its content: whoever takes a mark sees the value that was there when
/// it was set, or a newer one whose mark comes later.
#[test]
fn no_racing_write_is_lost() {
    const BLOCKS: usize = 64;
    let bitmap = DirtyBitmap::new(BLOCKS as u64 * BLOCK, BLOCK).unwrap();
    let content: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    let copy: Mutex<Vec<u64>> = Mutex::new(vec![0; BLOCKS]);
    let stop = AtomicBool::new(false);
    let collect = || {
        let mut copy = copy.lock().unwrap();
        for (offset, len) in bitmap.take().ranges {
            for block in offset / BLOCK..(offset + len) / BLOCK {
                copy[block as usize] = content[block as usize].load(Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                collect();
            }
        });
        for value in 1..=100_000_u64 {
            let block = (value * 7 % BLOCKS as u64) as usize;
            content[block].store(value, Ordering::Relaxed);
            bitmap.mark(block as u64 * BLOCK, BLOCK);
        }
        stop.store(true, Ordering::Relaxed);
    });
    collect();
    let content: Vec<_> = content.iter().map(|c| c.load(Ordering::Relaxed)).collect();
    assert_eq!(*copy.lock().unwrap(), content);
}

proptest! {
    #[test]
    fn marks_agree_with_a_model(
        capacity in 1_u64..200 * 512,
        marks in proptest::collection::vec((0_u64..220 * 512, 0_u64..80 * 512), 0..12),
    ) {
        let bitmap = DirtyBitmap::new(capacity, 512).unwrap();
        let mut model = vec![false; capacity.div_ceil(512) as usize];
        let mut beyond = false;
        for &(offset, len) in &marks {
            bitmap.mark(offset, len);
            beyond |= len > 0 && offset + len > capacity;
            for (block, marked) in (0..).zip(&mut model) {
                let end = capacity.min((block + 1) * 512);
                *marked |= len > 0 && offset < end && offset + len > block * 512;
            }
        }
        let changes = DirtyBitmap::load(&bitmap.save()).unwrap().take();
        prop_assert_eq!(changes.beyond, beyond);
        let mut found = vec![false; model.len()];
        let mut last = None;
        for (offset, len) in changes.ranges {
            prop_assert!(len > 0 && offset % 512 == 0 && last.is_none_or(|last| offset > last));
            prop_assert!(offset + len == capacity || len % 512 == 0);
            last = Some(offset + len);
            for block in offset / 512..(offset + len).div_ceil(512) {
                found[block as usize] = true;
            }
        }
        prop_assert_eq!(found, model);
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use virtio_blk_core::disk::{Caps, Completion, DiskListener, IoBuf, Op, OpKind, Submit, Token};

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

/// Takes for good.
fn taken(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    let take = bitmap.take();
    bitmap.commit(take.token).unwrap();
    take.changes.ranges
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
    assert_eq!(taken(&bitmap), wanted);
    assert_eq!(taken(&bitmap), []);
    // The short way.
    let buf = IoBuf::zeroed(512);
    queue
        .execute(&write(0), &buf, None)
        .done()
        .unwrap()
        .unwrap();
    queue
        .execute(&OpKind::Read { offset: BLOCK }, &buf, None)
        .done()
        .unwrap()
        .unwrap();
    assert_eq!(taken(&bitmap), [(0, BLOCK)]);
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
        disk.start("fine", 512).unwrap_err().to_string(),
        BitmapError::Exists("fine".into()).to_string()
    );
    disk.stop("fine").unwrap();
    assert!(disk.stop("fine").is_none());
    assert!(disk.bitmap("fine").is_none());
    run(&mut *queue, op(0, write(0), 512));
    assert_eq!(taken(&fine).len(), 2, "it ended");
    assert_eq!(taken(&coarse).len(), 2);
    disk.attach("fine", fine.clone()).unwrap();
    run(&mut *queue, op(0, write(0), 512));
    assert_eq!(taken(&fine), [(0, 512)]);
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
    assert_eq!(taken(&bitmap), []);
    let mut done = Vec::new();
    queue.cancel(Token(7));
    queue.cancel(Token(0));
    queue.reap(&mut done).unwrap();
    assert_eq!(done.len(), 1, "the right one was cancelled");
    assert_eq!(done[0].token, Token(7));
    assert!(done[0].result.is_err());
    assert_eq!(taken(&bitmap), [(0, BLOCK)]);
    assert!(matches!(
        queue.submit(op(8, write(BLOCK), 512)),
        Submit::Queued
    ));
    assert_eq!(taken(&bitmap), []);
    drop(queue);
    assert_eq!(taken(&bitmap), [(BLOCK, BLOCK)]);
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
    assert_eq!(taken(&bitmap), [(0, BLOCK)]);
}

#[test]
fn what_a_disk_grew_by_is_listed_and_counted() {
    let memory = Arc::new(MemoryDisk::new(SIZE + 512).unwrap());
    let disk = DirtyDisk::new(memory.clone() as Arc<dyn Disk>);
    let bitmap = disk.start("a", BLOCK).unwrap();
    assert_eq!((bitmap.size(), bitmap.dirty_bytes()), (SIZE + 512, 0));
    memory.resize((2 * SIZE) / 512).unwrap();
    // The block in which the end was belongs to it.
    let grown = (SIZE, SIZE);
    assert_eq!(bitmap.changes().ranges, [grown]);
    assert_eq!(bitmap.dirty_bytes(), SIZE);
    let take = bitmap.take();
    assert_eq!(
        (take.changes.ranges, take.changes.size),
        (vec![grown], 2 * SIZE)
    );
    bitmap.abort(take.token).unwrap();
    assert_eq!(taken(&bitmap), [grown]);
    // From now on it is like the rest.
    let mut queue = disk.open_queue(1).unwrap();
    run(&mut *queue, op(0, write(2 * SIZE - 512), 512));
    run(&mut *queue, op(0, write(0), 512));
    let both = [(0, BLOCK), (2 * SIZE - BLOCK, BLOCK)];
    assert_eq!(bitmap.changes().ranges, both);
    // Smaller, and larger again: what was there is gone.
    memory.resize((SIZE) / 512).unwrap();
    assert_eq!(bitmap.changes().ranges, [(0, BLOCK)]);
    assert_eq!(bitmap.changes().size, SIZE);
    memory.resize((4 * SIZE) / 512).unwrap();
    assert_eq!(taken(&bitmap), [(0, BLOCK), (SIZE, 3 * SIZE)]);
    // A bitmap that was made for a smaller disk.
    let small = Arc::new(DirtyBitmap::new(512, BLOCK).unwrap());
    disk.attach("b", small.clone()).unwrap();
    assert_eq!(small.changes().ranges, [(0, 4 * SIZE)]);
    assert_eq!(small.dirty_bytes(), 4 * SIZE);
}

/// A disk that gets another size while somebody looks at it.
#[derive(Default)]
struct Restless {
    sectors: AtomicU64,
    listeners: Mutex<Vec<DiskListener>>,
    /// The next look at it is one of those.
    armed: AtomicBool,
    change: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Shared, as it changes itself on another thread.
#[derive(Clone, Default)]
struct Shared(Arc<Restless>);

impl Disk for Shared {
    fn caps(&self) -> Caps {
        let before = self.0.sectors.load(Ordering::SeqCst);
        if self.0.armed.swap(false, Ordering::SeqCst) {
            let (this, (tell, told)) = (self.clone(), std::sync::mpsc::channel());
            let change = std::thread::spawn(move || {
                this.0.sectors.store(2 * before, Ordering::SeqCst);
                for listener in this.0.listeners.lock().unwrap().iter() {
                    let capacity = 2 * before;
                    listener(DiskEvent::Resized { capacity });
                }
                let _ = tell.send(());
            });
            *self.0.change.lock().unwrap() = Some(change);
            // It may have to wait for us.
            let _ = told.recv_timeout(std::time::Duration::from_millis(300));
        }
        Caps::basic(before)
    }

    fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Err(DiskError::Unsupported)
    }

    fn listen(&self, listener: DiskListener) {
        self.0.listeners.lock().unwrap().push(listener);
    }
}

#[test]
fn a_new_size_is_not_lost_while_a_bitmap_starts() {
    let base = Shared::default();
    base.0.sectors.store(SIZE / 512, Ordering::SeqCst);
    let disk = DirtyDisk::new(Arc::new(base.clone()));
    let bitmap = Arc::new(DirtyBitmap::new(SIZE, BLOCK).unwrap());
    base.0.armed.store(true, Ordering::SeqCst);
    disk.attach("a", bitmap.clone()).unwrap();
    let change = base.0.change.lock().unwrap().take();
    change.unwrap().join().unwrap();
    assert_eq!(bitmap.changes().ranges, [(SIZE, SIZE)]);
}

/// Blocks that there are no bits for count as changed, each time.
#[test]
fn a_disk_that_outgrows_its_bits_is_dirty_from_there_on() {
    let bitmap = DirtyBitmap::new(SIZE, 512).unwrap();
    let huge = 1 << 60;
    bitmap.resize(huge);
    bitmap.mark(huge - 512, 512);
    bitmap.mark(u64::MAX, u64::MAX);
    bitmap.mark(0, 512);
    for _ in 0..2 {
        let changes = bitmap.take().changes;
        assert_eq!(changes.ranges.last(), Some(&(SIZE, huge - SIZE)));
        assert_eq!(bitmap.dirty_bytes(), 512 + huge - SIZE);
    }
    bitmap.resize(2 * SIZE);
    assert_eq!(taken(&bitmap), [(0, 512), (SIZE, SIZE)]);
}

#[test]
fn what_was_taken_comes_back_unless_it_is_committed() {
    let bitmap = DirtyBitmap::new(SIZE, BLOCK).unwrap();
    bitmap.mark(0, 1);
    let first = bitmap.take();
    assert_eq!(first.changes.ranges, [(0, BLOCK)]);
    bitmap.mark(BLOCK, 1);
    // Nobody looks at less than what could be missing from a copy.
    assert_eq!(bitmap.changes().ranges, [(0, 2 * BLOCK)]);
    assert_eq!(bitmap.dirty_bytes(), 2 * BLOCK);
    assert_eq!(bitmap.pending(), Some(first.token));
    // The client has vanished; the next one takes both.
    let second = bitmap.take();
    assert_eq!(second.changes.ranges, [(0, 2 * BLOCK)]);
    assert!(matches!(
        bitmap.commit(first.token),
        Err(BitmapError::Token(_))
    ));
    bitmap.abort(second.token).unwrap();
    assert!(bitmap.abort(second.token).is_err());
    assert_eq!(bitmap.changes().ranges, [(0, 2 * BLOCK)]);
    let third = bitmap.take();
    bitmap.mark(2 * BLOCK, 1);
    let before = third.changes.generation;
    let after = bitmap.commit(third.token).unwrap();
    assert_eq!((before.id, before.number + 1), (after.id, after.number));
    assert!(bitmap.commit(third.token).is_err());
    assert_eq!(bitmap.changes().ranges, [(2 * BLOCK, BLOCK)]);
    assert_eq!(bitmap.changes().generation, after);
    // Tokens are written and read.
    assert_eq!(
        third.token.to_string().parse::<TakeToken>().unwrap(),
        third.token
    );
    for text in ["", "-", "1", "x-1", "1-x", "1-1-1", "11111111111111111-1"] {
        assert!(text.parse::<TakeToken>().is_err(), "{text}");
    }
}

#[test]
fn a_bitmap_that_cant_vouch_says_so_until_all_was_taken() {
    let disk = DirtyDisk::open(Arc::new(MemoryDisk::new(SIZE).unwrap()), "a", BLOCK, None).unwrap();
    let bitmap = disk.bitmap("a").unwrap();
    assert_eq!(bitmap.is_incomplete(), Some(NEW));
    assert_eq!(bitmap.changes().ranges, [(0, SIZE)]);
    assert_eq!(bitmap.dirty_bytes(), SIZE);
    let take = bitmap.take();
    assert_eq!(take.changes.ranges, [(0, SIZE)]);
    assert_eq!(take.changes.incomplete, Some(NEW));
    bitmap.mark(0, 1);
    // The copy failed.
    bitmap.abort(take.token).unwrap();
    assert_eq!(bitmap.changes().ranges, [(0, SIZE)]);
    let take = bitmap.take();
    assert!(
        bitmap.is_incomplete().is_some(),
        "not before it is committed"
    );
    bitmap.mark(BLOCK, 1);
    bitmap.commit(take.token).unwrap();
    assert_eq!(bitmap.is_incomplete(), None);
    assert_eq!(bitmap.changes().ranges, [(BLOCK, BLOCK)]);
    bitmap.doubt("test").unwrap();
    assert_eq!(bitmap.changes().incomplete, Some("test"));
    let before = bitmap.changes().generation;
    bitmap.clear().unwrap();
    assert_eq!(bitmap.changes().ranges, []);
    assert_ne!(bitmap.changes().generation, before);
}

#[test]
fn saved_marks_are_loaded_with_what_the_disk_grew_by() {
    let old = DirtyBitmap::new(SIZE, BLOCK).unwrap();
    old.mark(BLOCK, 1);
    let pending = old.take();
    old.mark(5 * BLOCK, 1);
    let saved = old.save("a");
    old.abort(pending.token).unwrap();
    let new = DirtyBitmap::incomplete(2 * SIZE, 512, "test").unwrap();
    new.mark(0, 1);
    new.load(&saved).unwrap();
    let wanted = [(0, 512), (BLOCK, BLOCK), (5 * BLOCK, BLOCK), (SIZE, SIZE)];
    assert_eq!(new.changes().ranges, wanted);
    assert_eq!(new.is_incomplete(), None);
    // What was not complete then is not now.
    old.doubt("test").unwrap();
    new.load(&old.save("a")).unwrap();
    assert!(new.is_incomplete().is_some());
}

#[test]
fn what_is_no_saved_bitmap_is_refused() {
    let bitmap = DirtyBitmap::new(3 * 512 + 1, 512).unwrap();
    bitmap.mark(512, 1);
    let good = bitmap.save("name");
    assert!(bitmap.load(&good).is_ok());
    let other = || DirtyBitmap::new(3 * 512 + 1, 512).unwrap();
    for len in 0..good.len() {
        assert!(other().load(&good[..len]).is_err(), "{len}");
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let bitmap = other();
        assert!(bitmap.load(&bytes).is_err(), "byte {at}");
        assert_eq!(bitmap.changes().ranges, [], "byte {at}");
    }
    let mut long = good.clone();
    long.extend([0; 8]);
    assert!(other().load(&long).is_err());
    assert!(matches!(
        DirtyBitmap::new(u64::MAX, 512),
        Err(BitmapError::TooLarge { .. })
    ));
    assert!(DirtyBitmap::new(1 << 20, 1000).is_err());
    assert_eq!(taken(&DirtyBitmap::new(0, 512).unwrap()), []);
}

/// A counter in each block stands for its content: with a mark one sees the value that was there when
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
        for (offset, len) in taken(&bitmap) {
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
        for &(offset, len) in &marks {
            bitmap.mark(offset, len);
            for (block, marked) in (0..).zip(&mut model) {
                let end = capacity.min((block + 1) * 512);
                *marked |= len > 0 && offset < end && offset + len > block * 512;
            }
        }
        let loaded = DirtyBitmap::new(capacity, 512).unwrap();
        loaded.load(&bitmap.save("a")).unwrap();
        let changes = loaded.take().changes;
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

#[test]
fn runs_of_a_range_are_the_changes_of_the_disk() {
    let size = (1 << 20) + 512;
    let bitmap = DirtyBitmap::new(size, 512).unwrap();
    for (offset, len) in [
        (0, 1),
        (512 * 63, 1024),
        (512 * 200, 512 * 130),
        (size - 512, 512),
    ] {
        bitmap.mark(offset, len);
    }
    let token = bitmap.take().token;
    bitmap.mark(512 * 100, 512);
    let check = |bitmap: &DirtyBitmap| {
        let mut at = 0;
        let mut found = Vec::new();
        while at < bitmap.size() {
            // A few at a time, each time from where the last ended.
            let runs = bitmap.runs(at..bitmap.size(), 2);
            assert!((1..=2).contains(&runs.len()));
            for Run { len, dirty } in runs {
                assert_ne!(len, 0);
                if dirty {
                    found.push((at, len));
                }
                at += len;
            }
        }
        assert_eq!(at, bitmap.size());
        assert_eq!(found, bitmap.changes().ranges);
        found.len()
    };
    assert_eq!(check(&bitmap), 5);
    bitmap.commit(token).unwrap();
    assert_eq!(check(&bitmap), 1);
    // What the disk has grown by counts as changed.
    bitmap.resize(2 << 20);
    assert_eq!(check(&bitmap), 2);
    let run = |len, dirty| Run { len, dirty };
    assert_eq!(
        bitmap.runs(512 * 100 - 100..512 * 101 + 100, 9),
        [run(100, false), run(512, true), run(100, false)]
    );
    assert_eq!(bitmap.runs(77..77, 9), []);
    bitmap.doubt("a test").unwrap();
    assert_eq!(bitmap.runs(512..1024, 9), [run(512, true)]);
}

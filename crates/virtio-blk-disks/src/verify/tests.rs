// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token};

use super::*;
use crate::MemoryDisk;
use crate::fault::{FaultDisk, FaultPlan, Kind, Rule};

const SIZE: u64 = 64 << 20;

/// A disk over memory that the test can reach, too.
struct Rig {
    below: Arc<dyn Disk>,
    disk: VerifyDisk,
    queue: Box<dyn IoQueue>,
}

impl Rig {
    fn new(plan: FaultPlan) -> Self {
        let below: Arc<dyn Disk> = Arc::new(MemoryDisk::new(SIZE).unwrap());
        let disk = VerifyDisk::new(Arc::new(FaultDisk::new(below.clone(), plan)) as Arc<dyn Disk>);
        let queue = disk.open_queue(16).unwrap();
        Self { below, disk, queue }
    }

    /// Writes past the layer.
    fn tamper(&self, sector: u64) {
        let mut queue = self.below.open_queue(1).unwrap();
        act(&mut *queue, write(sector), vec![0xbb; 512]).unwrap();
    }

    fn act(&mut self, kind: OpKind, data: Vec<u8>) -> Result<(), DiskError> {
        act(&mut *self.queue, kind, data)
    }
}

fn op(token: u64, kind: OpKind, data: Vec<u8>) -> Op {
    Op {
        token: Token(token),
        kind,
        buf: IoBuf::from_vec(data),
    }
}

fn act(queue: &mut dyn IoQueue, kind: OpKind, data: Vec<u8>) -> Result<(), DiskError> {
    match queue.submit(op(99, kind, data)) {
        Submit::Done(Completion { token, result, .. }) => {
            assert_eq!(token, Token(99));
            result
        }
        other => panic!("{other:?}"),
    }
}

fn write(sector: u64) -> OpKind {
    OpKind::Write {
        offset: sector * 512,
        fua: false,
    }
}

fn read(sector: u64) -> OpKind {
    OpKind::Read {
        offset: sector * 512,
    }
}

fn zero(sector: u64, count: u64) -> OpKind {
    OpKind::WriteZeroes {
        offset: sector * 512,
        len: count * 512,
        unmap: true,
        fua: false,
    }
}

fn discard(sector: u64) -> OpKind {
    OpKind::Discard {
        offset: sector * 512,
        len: 512,
    }
}

#[test]
fn an_honest_disk_is_believed() {
    let mut rig = Rig::new(FaultPlan::new(1));
    for round in 0..200_u64 {
        let sector = round * 7 % 32;
        rig.act(write(sector), vec![round as u8; 1024]).unwrap();
        rig.act(read(sector / 2), vec![0; 4096]).unwrap();
        if round % 9 == 0 {
            rig.act(zero(sector, 3), Vec::new()).unwrap();
            rig.act(discard(sector + 5), Vec::new()).unwrap();
            rig.act(OpKind::Flush, Vec::new()).unwrap();
        }
    }
    assert_eq!(rig.disk.mismatch(), None);
}

#[test]
fn the_first_lie_is_reported_and_the_read_fails() {
    let mut rig = Rig::new(FaultPlan::new(1));
    rig.act(write(4), vec![1; 2048]).unwrap();
    rig.tamper(6);
    rig.act(read(4), vec![0; 1024]).unwrap();
    let error = rig.act(read(4), vec![0; 2048]).unwrap_err();
    assert!(error.to_string().contains("sector 6"), "{error}");
    rig.tamper(5);
    rig.act(read(4), vec![0; 2048]).unwrap_err();
    assert_eq!(rig.disk.mismatch(), Some(Mismatch { sector: 6 }));
    rig.act(write(4), vec![1; 2048]).unwrap();
    rig.act(read(4), vec![0; 2048]).unwrap();
}

#[test]
fn what_was_read_or_zeroed_must_stay_and_what_was_discarded_need_not() {
    let mut rig = Rig::new(FaultPlan::new(1));
    rig.act(read(1), vec![0; 512]).unwrap();
    rig.act(zero(2, 1), Vec::new()).unwrap();
    rig.act(discard(3), Vec::new()).unwrap();
    rig.act(read(3), vec![0; 512]).unwrap();
    for sector in 1..=4 {
        rig.tamper(sector);
    }
    rig.act(read(3), vec![0; 1024]).unwrap();
    assert_eq!(rig.disk.mismatch(), None);
    rig.act(read(2), vec![0; 512]).unwrap_err();
    rig.act(read(1), vec![0; 512]).unwrap_err();
    assert_eq!(rig.disk.mismatch(), Some(Mismatch { sector: 2 }));
}

#[test]
fn a_failed_write_leaves_either() {
    let rule = Rule::errno(5).kind(Kind::Write).times(1);
    let mut rig = Rig::new(FaultPlan::new(1).rule(rule.skip(1)));
    rig.act(write(0), vec![1; 512]).unwrap();
    rig.act(write(0), vec![2; 512]).unwrap_err();
    rig.tamper(0);
    rig.act(read(0), vec![0; 512]).unwrap();
    rig.act(read(0), vec![0; 512]).unwrap();
    assert_eq!(rig.disk.mismatch(), None);
}

#[test]
fn what_changes_while_it_is_read_or_written_is_passed_over() {
    let mut rig = Rig::new(FaultPlan::new(1).delay_reaps(0..=0));
    let mut done = Vec::new();
    // Two writes at a time: whichever came last.
    for value in [1, 2] {
        let submitted = rig
            .queue
            .submit(op(value, write(0), vec![value as u8; 512]));
        assert!(matches!(submitted, Submit::Queued));
    }
    let submitted = rig.queue.submit(op(3, read(0), vec![0; 512]));
    assert!(matches!(submitted, Submit::Queued));
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 3);
    rig.tamper(0);
    for _ in 0..2 {
        let submitted = rig.queue.submit(op(4, read(0), vec![0; 512]));
        assert!(matches!(submitted, Submit::Queued));
        assert_eq!(rig.queue.reap(&mut done).unwrap(), 1);
        assert!(done.pop().unwrap().result.is_ok());
    }
    // Now it is known.
    let mut queue = rig.below.open_queue(1).unwrap();
    act(&mut *queue, write(0), vec![0xcc; 512]).unwrap();
    assert!(matches!(
        rig.queue.submit(op(5, read(0), vec![0; 512])),
        Submit::Queued
    ));
    rig.queue.reap(&mut done).unwrap();
    assert!(done.pop().unwrap().result.is_err());
}

#[test]
fn erasing_is_bounded() {
    let mut rig = Rig::new(FaultPlan::new(1));
    let caps = rig.disk.caps();
    assert_eq!(caps.discard.unwrap().max_sectors, 32_768);
    assert_eq!(caps.write_zeroes.unwrap().max_sectors, 32_768);
    rig.act(zero(0, 32_768), Vec::new()).unwrap();
    assert!(matches!(
        rig.act(zero(0, 32_769), Vec::new()),
        Err(DiskError::Unsupported)
    ));
    let everything = OpKind::Discard {
        offset: 0,
        len: u64::MAX,
    };
    assert!(rig.act(everything, Vec::new()).is_err());
    assert!(rig.act(read(u64::MAX / 512), vec![0; 512]).is_err());
}

#[test]
fn lost_and_torn_writes_are_found() {
    for rule in [Rule::silent(), Rule::silent().torn()] {
        let plan = FaultPlan::new(5).rule(rule.kind(Kind::Write).skip(1));
        let mut rig = Rig::new(plan);
        rig.act(write(8), vec![1; 4096]).unwrap();
        rig.act(read(8), vec![0; 4096]).unwrap();
        rig.act(write(8), vec![2; 4096]).unwrap();
        rig.act(read(8), vec![0; 4096]).unwrap_err();
        let mismatch = rig.disk.mismatch().unwrap();
        assert!((8..16).contains(&mismatch.sector), "{mismatch}");
    }
}

#[test]
fn what_is_dropped_with_its_queue_is_checked_again_afterwards() {
    let mut rig = Rig::new(FaultPlan::new(1).delay_reaps(0..=0));
    assert!(matches!(
        rig.queue.submit(op(1, write(3), vec![1; 512])),
        Submit::Queued
    ));
    rig.queue = rig.disk.open_queue(16).unwrap();
    let mut look = || {
        assert!(matches!(
            rig.queue.submit(op(2, read(3), vec![0; 512])),
            Submit::Queued
        ));
        let mut done = Vec::new();
        while rig.queue.reap(&mut done).unwrap() == 0 {}
        done.pop().unwrap().result
    };
    look().unwrap();
    let mut below = rig.below.open_queue(1).unwrap();
    act(&mut *below, write(3), vec![0xbb; 512]).unwrap();
    look().unwrap_err();
}

#[test]
fn a_refusal_changes_nothing_of_what_is_known() {
    let plan = FaultPlan::new(1).delay_reaps(0..=0).full_per_mille(1000);
    let mut rig = Rig::new(plan);
    let mut done = Vec::new();
    let write_of = |token| op(token, write(3), vec![1; 512]);
    assert!(matches!(rig.queue.submit(write_of(1)), Submit::Queued));
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 1);
    // Something in flight, so that there is no room.
    assert!(matches!(
        rig.queue.submit(op(2, read(9), vec![0; 512])),
        Submit::Queued
    ));
    assert!(matches!(rig.queue.submit(write_of(3)), Submit::Full(_)));
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 1);
    rig.tamper(3);
    assert!(matches!(
        rig.queue.submit(op(4, read(3), vec![0; 512])),
        Submit::Queued
    ));
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 1);
    assert!(done.pop().unwrap().result.is_err());
}

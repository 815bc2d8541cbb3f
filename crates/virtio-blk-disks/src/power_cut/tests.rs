// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeSet;

use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token};

use super::*;
use crate::MemoryDisk;
use crate::fault::{FaultDisk, FaultPlan, Kind, Rule};

struct Rig {
    disk: PowerCutDisk,
    queue: Box<dyn IoQueue>,
    token: u64,
}

impl Rig {
    fn new(plan: Option<FaultPlan>) -> Self {
        let memory = Arc::new(MemoryDisk::new(64 << 10).unwrap());
        let inner: Arc<dyn Disk> = match plan {
            Some(plan) => Arc::new(FaultDisk::new(memory, plan)),
            None => memory,
        };
        let disk = PowerCutDisk::new(inner);
        let queue = disk.open_queue(16).unwrap();
        Self {
            disk,
            queue,
            token: 100,
        }
    }

    fn submit(&mut self, kind: OpKind, data: Vec<u8>) -> Submit {
        self.token += 1;
        self.queue.submit(Op {
            token: Token(self.token),
            kind,
            buf: IoBuf::from_vec(data),
        })
    }

    /// Does it at once.
    fn act(&mut self, kind: OpKind, data: Vec<u8>) -> Moment {
        match self.submit(kind, data) {
            Submit::Done(Completion { token, result, .. }) => {
                assert_eq!(token, Token(self.token));
                let _ = result;
            }
            other => panic!("{other:?}"),
        }
        self.disk.now()
    }

    fn write(&mut self, sector: u64, values: &[u8], fua: bool) -> Moment {
        let offset = sector * 512;
        let data = values.iter().flat_map(|&value| [value; 512]).collect();
        self.act(OpKind::Write { offset, fua }, data)
    }

    fn flush(&mut self) -> Moment {
        self.act(OpKind::Flush, Vec::new())
    }

    /// The first bytes that a sector may have after a cut.
    fn choices(&self, moment: Moment, sector: u64) -> Vec<u8> {
        let cut = self.disk.cut(moment);
        let Some(choice) = cut.sector(sector) else {
            return vec![0];
        };
        let mut found: Vec<u8> = choice.original.then_some(0).into_iter().collect();
        found.extend(choice.contents.iter().map(|content| match content {
            Content::Data(data) => data[0],
            Content::Zero => 0,
            Content::Any => 0xff,
        }));
        found
    }
}

#[test]
fn writes_are_lost_until_a_flush_has_completed() {
    let mut rig = Rig::new(None);
    let first = rig.write(3, &[1, 2], false);
    let second = rig.write(3, &[5], false);
    let flushed = rig.flush();
    let third = rig.write(4, &[9], false);
    assert_eq!(rig.choices(0, 3), [0]);
    assert_eq!(rig.choices(first, 3), [0, 1]);
    assert_eq!(rig.choices(second, 3), [0, 1, 5]);
    assert_eq!(rig.choices(flushed - 1, 3), [0, 1, 5], "it has not ended");
    assert_eq!(rig.choices(flushed, 3), [5]);
    assert_eq!(rig.choices(flushed, 4), [2]);
    assert_eq!(rig.choices(third, 4), [2, 9]);
    assert_eq!(rig.disk.cut(second).states(), 6);
}

#[test]
fn a_fua_write_is_stable_alone() {
    let mut rig = Rig::new(None);
    rig.write(0, &[1, 1], false);
    let at = rig.write(0, &[2], true);
    assert_eq!(rig.choices(at - 1, 0), [0, 1, 2]);
    assert_eq!(rig.choices(at, 0), [2]);
    assert_eq!(rig.choices(at, 1), [0, 1]);
    let zero = OpKind::WriteZeroes {
        offset: 0,
        len: 512,
        unmap: false,
        fua: true,
    };
    let at = rig.act(zero, Vec::new());
    assert_eq!(rig.choices(at, 0), [0]);
    assert!(!rig.disk.cut(at).sector(0).unwrap().original);
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_submitted() {
    let mut rig = Rig::new(Some(FaultPlan::new(1).delay_reaps(0..=0)));
    let write = |offset| OpKind::Write { offset, fua: false };
    let mut done = Vec::new();
    assert!(matches!(rig.submit(write(0), vec![1; 512]), Submit::Queued));
    assert!(matches!(
        rig.submit(OpKind::Flush, Vec::new()),
        Submit::Queued
    ));
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 2);
    assert_eq!(rig.choices(rig.disk.now(), 0), [0, 1]);
    assert!(matches!(
        rig.submit(OpKind::Flush, Vec::new()),
        Submit::Queued
    ));
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 1);
    assert_eq!(rig.choices(rig.disk.now(), 0), [1]);
}

#[test]
fn overlapping_writes_in_flight_may_end_in_any_order() {
    let mut rig = Rig::new(Some(FaultPlan::new(1).delay_reaps(0..=0)));
    for value in [1, 2] {
        let write = OpKind::Write {
            offset: 0,
            fua: value == 2,
        };
        assert!(matches!(
            rig.submit(write, vec![value; 512]),
            Submit::Queued
        ));
    }
    let mut done = Vec::new();
    assert_eq!(rig.queue.reap(&mut done).unwrap(), 2);
    assert_eq!(rig.choices(rig.disk.now(), 0), [1, 2]);
}

#[test]
fn a_failed_change_may_have_happened_and_a_failed_flush_promises_nothing() {
    let plan = FaultPlan::new(1)
        .rule(Rule::errno(5).kind(Kind::Write).skip(1).times(1))
        .rule(Rule::errno(5).kind(Kind::Flush).times(1));
    let mut rig = Rig::new(Some(plan));
    rig.write(0, &[1], false);
    let failed = rig.flush();
    assert_eq!(rig.choices(failed, 0), [0, 1]);
    rig.write(0, &[2], true);
    let flushed = rig.flush();
    assert_eq!(rig.choices(flushed, 0), [1, 2]);
    let written = rig.write(0, &[3], true);
    assert_eq!(rig.choices(written, 0), [3]);
}

#[test]
fn a_refused_operation_never_was() {
    let memory = Arc::new(MemoryDisk::new(64 << 10).unwrap());
    let slow = FaultDisk::new(memory, FaultPlan::new(1).delay_reaps(9..=9));
    let disk = PowerCutDisk::new(Arc::new(slow));
    let mut queue = disk.open_queue(1).unwrap();
    let write = |token, sector: u64| Op {
        token: Token(token),
        kind: OpKind::Write {
            offset: sector * 512,
            fua: false,
        },
        buf: IoBuf::zeroed(512),
    };
    assert!(matches!(queue.submit(write(7, 0)), Submit::Queued));
    let Submit::Full(back) = queue.submit(write(8, 1)) else {
        panic!("there is room");
    };
    assert_eq!(back.token, Token(8));
    assert!(disk.cut(disk.now()).sector(1).is_none());
    queue.cancel(Token(7));
    let mut done = Vec::new();
    assert_eq!(queue.reap(&mut done).unwrap(), 1);
    assert_eq!(done[0].token, Token(7));
}

#[test]
fn states_are_all_different_and_all_pass_the_check() {
    let mut rig = Rig::new(None);
    rig.write(1, &[1, 2], false);
    rig.write(2, &[3], false);
    rig.act(
        OpKind::Discard {
            offset: 5 * 512,
            len: 512,
        },
        Vec::new(),
    );
    let cut = rig.disk.cut(rig.disk.now());
    assert_eq!(cut.states(), 2 * 3 * 2);
    let mut seen = BTreeSet::new();
    for number in 0..cut.states() {
        let mut image = vec![0; 64 << 10];
        let mut name = Vec::new();
        for (sector, content) in cut.state(number) {
            let at = sector as usize * 512;
            if let Some(Content::Data(data)) = &content {
                image[at..at + 512].copy_from_slice(data);
            }
            name.push(format!("{:?}", content.map(|c| c.matches(&[3; 512]))));
            name.push(image[at].to_string());
        }
        seen.insert(name);
        let copy = |image: &[u8], at: u64, to: &mut [u8]| {
            to.copy_from_slice(&image[at as usize..at as usize + to.len()]);
        };
        let check = |image: &[u8]| cut.check(|at, to| copy(image, at, to), |_, to| to.fill(0));
        check(&image).unwrap();
        image[2 * 512] ^= 0x40;
        let broken = check(&image).unwrap_err();
        assert_eq!((broken.sector, broken.allowed), (2, 3));
    }
    assert_eq!(seen.len(), 12);
}

#[test]
fn what_is_dropped_with_its_queue_cannot_come_back_later() {
    let mut rig = Rig::new(Some(FaultPlan::new(1).delay_reaps(9..=9)));
    let write = |value| {
        let kind = OpKind::Write {
            offset: 0,
            fua: true,
        };
        (kind, vec![value; 512])
    };
    let (kind, data) = write(1);
    assert!(matches!(rig.submit(kind, data), Submit::Queued));
    rig.queue = rig.disk.open_queue(16).unwrap();
    assert_eq!(rig.choices(rig.disk.now(), 0), [0, 1]);
    let (kind, data) = write(2);
    assert!(matches!(rig.submit(kind, data), Submit::Queued));
    let mut done = Vec::new();
    while rig.queue.reap(&mut done).unwrap() == 0 {}
    assert_eq!(rig.choices(rig.disk.now(), 0), [2]);
}

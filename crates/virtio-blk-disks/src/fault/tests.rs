// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::fd::AsRawFd;
use std::time::Duration;

use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token, Wait};

use super::*;
use crate::MemoryDisk;

const WRITE: OpKind = OpKind::Write {
    offset: 0,
    fua: false,
};

fn disk(plan: FaultPlan) -> FaultDisk<MemoryDisk> {
    FaultDisk::new(Arc::new(MemoryDisk::new(1 << 20).unwrap()), plan)
}

fn op(number: u64, kind: OpKind) -> Op {
    let buf = match kind {
        OpKind::Read { .. } | OpKind::Write { .. } => IoBuf::from_vec(vec![number as u8; 512]),
        _ => IoBuf::new(),
    };
    Op {
        token: Token(number),
        kind,
        buf,
    }
}

fn now(queue: &mut dyn IoQueue, number: u64, kind: OpKind) -> Result<(), DiskError> {
    match queue.submit(op(number, kind)) {
        Submit::Done(completion) => completion.result,
        other => panic!("not at once: {other:?}"),
    }
}

fn readable(queue: &dyn IoQueue) -> bool {
    let Wait::Fd(fd) = queue.wait() else {
        panic!("no descriptor");
    };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

fn reap(queue: &mut dyn IoQueue) -> Vec<Completion> {
    let mut done = Vec::new();
    assert_eq!(queue.reap(&mut done).unwrap(), done.len());
    done
}

#[test]
fn an_empty_plan_changes_nothing() {
    let disk = disk(FaultPlan::new(1));
    let mut queue = disk.open_queue(1).unwrap();
    assert!(matches!(queue.wait(), Wait::Inline));
    now(&mut *queue, 1, WRITE).unwrap();
    assert_eq!((disk.errors(), disk.refusals()), (0, 0));
    assert_eq!(disk.caps(), disk.inner().caps());
}

#[test]
fn rules_choose_by_kind_range_and_count() {
    let rule = Rule::errno(libc::ENOSPC)
        .kind(Kind::Write)
        .bytes(1024..2048)
        .skip(1)
        .times(2);
    let disk = disk(FaultPlan::new(1).rule(rule));
    let mut queue = disk.open_queue(1).unwrap();
    let write = |offset| OpKind::Write { offset, fua: false };
    for _ in 0..9 {
        now(&mut *queue, 1, write(512)).unwrap();
        now(&mut *queue, 1, write(2048)).unwrap();
        now(&mut *queue, 1, OpKind::Read { offset: 1024 }).unwrap();
        now(&mut *queue, 1, OpKind::Flush).unwrap();
    }
    let results: Vec<bool> = (0..5)
        .map(|_| match now(&mut *queue, 1, write(1024)) {
            Ok(()) => true,
            Err(error) => {
                assert!(error.is_no_space());
                false
            }
        })
        .collect();
    assert_eq!(results, [true, false, false, true, true]);
    assert_eq!(disk.errors(), 2);
}

#[test]
fn an_error_comes_before_or_after_the_effect() {
    let rules = FaultPlan::new(1)
        .rule(Rule::unsupported().kind(Kind::Write).times(1))
        .rule(
            Rule::errno(libc::EIO)
                .kind(Kind::Write)
                .times(1)
                .after_effect(),
        );
    let disk = disk(rules);
    let mut queue = disk.open_queue(1).unwrap();
    let result = now(&mut *queue, 5, WRITE);
    assert!(matches!(result, Err(DiskError::Unsupported)));
    assert_eq!(disk.inner().allocated_bytes(), 0);
    assert!(matches!(now(&mut *queue, 5, WRITE), Err(DiskError::Io(_))));
    assert!(disk.inner().allocated_bytes() > 0);
    now(&mut *queue, 5, WRITE).unwrap();
}

#[test]
fn a_disarmed_disk_makes_no_errors() {
    let plan = FaultPlan::new(1)
        .rule(Rule::errno(libc::EIO))
        .break_after(0);
    let disk = disk(plan);
    disk.arm(false);
    let mut queue = disk.open_queue(1).unwrap();
    now(&mut *queue, 1, WRITE).unwrap();
    queue.flush_batch().unwrap();
    disk.arm(true);
    assert!(now(&mut *queue, 1, WRITE).is_err());
    assert!(queue.flush_batch().is_err());
    assert!(queue.reap(&mut Vec::new()).is_err());
}

#[test]
fn completions_come_after_the_given_number_of_reaps() {
    let disk = disk(FaultPlan::new(1).delay_reaps(2..=2));
    let mut queue = disk.open_queue(4).unwrap();
    assert!(!readable(&*queue));
    assert!(matches!(queue.submit(op(1, WRITE)), Submit::Queued));
    for _ in 0..2 {
        assert!(readable(&*queue));
        assert!(reap(&mut *queue).is_empty());
    }
    assert!(readable(&*queue));
    assert_eq!(reap(&mut *queue)[0].token, Token(1));
    assert!(!readable(&*queue));
    assert!(reap(&mut *queue).is_empty());
}

#[test]
fn cancelling_brings_a_completion_forward_once() {
    let disk = disk(FaultPlan::new(1).delay_reaps(1000..=1000));
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(queue.submit(op(1, WRITE)), Submit::Queued));
    queue.cancel(Token(2));
    assert!(reap(&mut *queue).is_empty());
    queue.cancel(Token(1));
    assert_eq!(reap(&mut *queue).len(), 1);
    queue.cancel(Token(1));
    assert!(reap(&mut *queue).is_empty());
}

#[test]
fn what_only_waits_for_a_time_has_a_deadline() {
    let hour = Duration::from_secs(3600);
    let disk = disk(FaultPlan::new(1).delay_time(hour..=hour).delay_reaps(1..=1));
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(queue.deadline(), None);
    assert!(matches!(queue.submit(op(1, WRITE)), Submit::Queued));
    assert!(readable(&*queue));
    assert!(reap(&mut *queue).is_empty());
    assert!(!readable(&*queue));
    assert!(queue.deadline().is_some());
    queue.cancel(Token(1));
    assert!(readable(&*queue));
    assert_eq!(reap(&mut *queue).len(), 1);
    assert_eq!(queue.deadline(), None);
    assert!(!readable(&*queue));
}

#[test]
fn a_time_holds_back_too() {
    let hour = Duration::from_secs(3600);
    let disk = disk(FaultPlan::new(1).delay_time(hour..=hour).poll());
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(queue.wait(), Wait::Poll));
    assert!(matches!(queue.submit(op(1, WRITE)), Submit::Queued));
    assert!(reap(&mut *queue).is_empty());
    queue.cancel(Token(1));
    assert_eq!(reap(&mut *queue).len(), 1);
}

/// Everything a seed decides, in one text.
fn trace(seed: u64) -> String {
    let plan = FaultPlan::new(seed)
        .rule(Rule::errno(libc::EIO).per_mille(300))
        .full_per_mille(200)
        .delay_reaps(0..=6)
        .reorder();
    let disk = disk(plan);
    let mut queue = disk.open_queue(16).unwrap();
    let (mut text, mut seen, mut sent) = (String::new(), 0, 0);
    while seen < 200 {
        for _ in 0..5 {
            if sent < 200 {
                match queue.submit(op(sent, WRITE)) {
                    Submit::Queued => sent += 1,
                    Submit::Full(op) => text.push_str(&format!("F{} ", op.token.0)),
                    Submit::Done(_) => panic!("everything goes through reap"),
                }
            }
        }
        for completion in reap(&mut *queue) {
            seen += 1;
            let ok = completion.result.is_ok();
            text.push_str(&format!(
                "{}{} ",
                completion.token.0,
                if ok { "" } else { "!" }
            ));
        }
    }
    assert!(reap(&mut *queue).is_empty());
    assert!(disk.errors() > 20 && disk.refusals() > 0);
    text
}

#[test]
fn a_seed_repeats_and_each_operation_completes_once() {
    let first = trace(7);
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
    let mut tokens: Vec<u64> = first
        .split_whitespace()
        .filter(|word| !word.starts_with('F'))
        .map(|word| word.trim_end_matches('!').parse().unwrap())
        .collect();
    assert!(!tokens.is_sorted());
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..200));
}

#[test]
fn an_empty_queue_is_never_full_and_the_depth_counts_what_is_held() {
    let disk = disk(FaultPlan::new(1).full_per_mille(1000).delay_reaps(0..=0));
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(queue.submit(op(1, WRITE)), Submit::Queued));
    assert!(matches!(queue.submit(op(2, WRITE)), Submit::Full(op) if op.token == Token(2)));
    assert_eq!(disk.refusals(), 1);
    assert_eq!(reap(&mut *queue).len(), 1);
    assert!(matches!(queue.submit(op(2, WRITE)), Submit::Queued));

    let disk = self::disk(FaultPlan::new(1).delay_reaps(5..=5));
    let mut queue = disk.open_queue(2).unwrap();
    assert!(matches!(queue.submit(op(1, WRITE)), Submit::Queued));
    assert!(matches!(queue.submit(op(2, WRITE)), Submit::Queued));
    assert!(matches!(queue.submit(op(3, WRITE)), Submit::Full(_)));
}

#[test]
fn it_goes_over_any_disk() {
    let inner: Arc<dyn Disk> = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(inner, FaultPlan::new(1)));
    disk.refresh().unwrap();
    disk.listen(Arc::new(|_| {}));
    assert_eq!(disk.caps().capacity, 2048);
}

/// The blocks of a content that was all zeroes where `value` arrived.
fn arrived(disk: &MemoryDisk, value: u8) -> Vec<usize> {
    let buf = IoBuf::zeroed(1 << 20);
    let mut queue = disk.open_queue(1).unwrap();
    let read = OpKind::Read { offset: 0 };
    queue.execute(&read, &buf, None).done().unwrap().unwrap();
    let content = buf.to_vec();
    let blocks = content.chunks(512).enumerate();
    let found = blocks.filter(|(_, block)| block.iter().all(|byte| *byte == value));
    found.map(|(index, _)| index).collect()
}

#[test]
fn a_torn_write_arrives_in_part_and_fails() {
    let rule = Rule::errno(libc::EIO).kind(Kind::Write).torn();
    let mut counts = std::collections::BTreeSet::new();
    for (seed, late) in (0..60).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut plan = FaultPlan::new(seed).rule(rule.clone());
        if late {
            plan = plan.delay_reaps(1..=2);
        }
        let disk = disk(plan);
        let mut queue = disk.open_queue(4).unwrap();
        let write = Op {
            token: Token(1),
            kind: OpKind::Write {
                offset: 4 * 512,
                fua: false,
            },
            buf: IoBuf::from_vec(vec![7; 8 * 512]),
        };
        let completion = match queue.submit(write) {
            Submit::Done(completion) => completion,
            _ => loop {
                if let Some(completion) = reap(&mut *queue).pop() {
                    break completion;
                }
            },
        };
        assert_eq!(completion.token, Token(1));
        assert!(completion.result.is_err());
        assert_eq!(completion.buf.to_vec(), vec![7; 8 * 512], "its own buffer");
        let found = arrived(disk.inner(), 7);
        assert!(found.len() < 8 && found.iter().all(|block| (4..12).contains(block)));
        assert!(found.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        counts.insert(found.len());
        assert_eq!(disk.errors(), 1);
    }
    assert_eq!(counts, (0..8).collect());
}

#[test]
fn zeroing_is_torn_too_and_what_is_one_block_is_not_split() {
    let full = OpKind::Write {
        offset: 0,
        fua: false,
    };
    let zero = OpKind::WriteZeroes {
        offset: 0,
        len: 1 << 20,
        unmap: false,
        fua: false,
    };
    let rule = Rule::errno(libc::EIO).torn().skip(1);
    let mut parts = 0;
    for seed in 0..20 {
        let disk = disk(FaultPlan::new(seed).rule(rule.clone()));
        let mut queue = disk.open_queue(4).unwrap();
        let all = Op {
            buf: IoBuf::from_vec(vec![7; 1 << 20]),
            ..op(1, full)
        };
        assert!(matches!(queue.submit(all), Submit::Done(done) if done.result.is_ok()));
        now(&mut *queue, 2, zero).unwrap_err();
        let zeroed = arrived(disk.inner(), 0).len();
        assert_eq!(zeroed + arrived(disk.inner(), 7).len(), 2048);
        parts += usize::from(zeroed != 0);
        now(&mut *queue, 9, WRITE).unwrap_err();
        now(&mut *queue, 9, OpKind::Flush).unwrap_err();
        assert!(arrived(disk.inner(), 9).is_empty());
    }
    assert!(parts > 10);
}

#[test]
fn a_refusal_below_gives_the_whole_operation_back() {
    let full = FaultPlan::new(1).delay_reaps(9..=9).full_per_mille(1000);
    let below = Arc::new(disk(full));
    let torn = FaultPlan::new(3).rule(Rule::errno(libc::EIO).kind(Kind::Write).torn());
    let disk = FaultDisk::new(below, torn);
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(
        queue.submit(op(0, OpKind::Read { offset: 0 })),
        Submit::Queued
    ));
    let mut refused = 0;
    for _ in 0..20 {
        let write = Op {
            buf: IoBuf::from_vec(vec![7; 4096]),
            ..op(1, WRITE)
        };
        if let Submit::Full(op) = queue.submit(write) {
            assert_eq!((op.token, op.kind), (Token(1), WRITE));
            assert_eq!(op.buf.to_vec(), vec![7; 4096]);
            refused += 1;
        }
    }
    assert!(refused > 5);
}

#[test]
fn a_silent_rule_lies() {
    let disk = disk(FaultPlan::new(1).rule(Rule::silent().kind(Kind::Write)));
    let mut queue = disk.open_queue(4).unwrap();
    now(&mut *queue, 5, WRITE).unwrap();
    assert!(arrived(disk.inner(), 5).is_empty());
    assert_eq!(disk.errors(), 1);
}

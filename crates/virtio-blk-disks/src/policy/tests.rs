// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_core::disk::{Completion, IoBuf, Op, Submit, Token, Wait};

use std::time::Instant;

use super::*;
use crate::fault::{Kind, Rule};
use crate::meter::OpClass;
use crate::{FaultDisk, FaultPlan, MemoryDisk};

/// A memory disk that fails by `plan`, and what was told of it.
struct Rig {
    disk: PolicyDisk,
    fault: Arc<FaultDisk>,
    memory: Arc<MemoryDisk>,
    told: Arc<Mutex<Vec<PolicyEvent>>>,
}

impl Rig {
    fn new(policy: ErrorPolicy, plan: FaultPlan) -> Self {
        let memory = Arc::new(MemoryDisk::new(1 << 20).unwrap());
        let fault = Arc::new(FaultDisk::new(memory.clone() as Arc<dyn Disk>, plan));
        let disk = PolicyDisk::new(fault.clone() as Arc<dyn Disk>, policy);
        let told = Arc::new(Mutex::new(Vec::new()));
        let ears = told.clone();
        disk.listen_events(Arc::new(move |event| {
            ears.lock().unwrap().push(event.clone());
        }));
        Self {
            disk,
            fault,
            memory,
            told,
        }
    }

    fn told(&self) -> Vec<PolicyEvent> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    /// Whether the sectors of these writes hold what was written.
    fn holds(&self, tokens: &[u64]) -> bool {
        let mut queue = self.memory.open_queue(1).unwrap();
        tokens.iter().all(|token| {
            let buf = IoBuf::zeroed(512);
            let offset = token * 512;
            queue
                .execute(&OpKind::Read { offset }, &buf, None)
                .done()
                .unwrap()
                .unwrap();
            buf.to_vec() == [*token as u8; 512]
        })
    }
}

const STOP: ErrorPolicy = ErrorPolicy {
    read: OnError::Stop,
    write: OnError::Stop,
};

fn failing(code: i32) -> FaultPlan {
    FaultPlan::new(1).rule(Rule::errno(code))
}

fn op(token: u64, kind: OpKind, len: usize) -> Op {
    Op {
        token: Token(token),
        kind,
        buf: IoBuf::from_vec(vec![token as u8; len]),
    }
}

fn write(token: u64) -> Op {
    let kind = OpKind::Write {
        offset: token * 512,
        fua: false,
    };
    op(token, kind, 512)
}

/// Submits, and returns the result if it is there.
fn submit(queue: &mut dyn IoQueue, op: Op) -> Option<Result<(), DiskError>> {
    match queue.submit(op) {
        Submit::Done(completion) => Some(completion.result),
        Submit::Queued => None,
        Submit::Full(op) => panic!("no room for {op:?}"),
    }
}

fn reap(queue: &mut dyn IoQueue) -> Vec<Completion> {
    let mut done = Vec::new();
    queue.flush_batch().unwrap();
    queue.reap(&mut done).unwrap();
    done
}

fn tokens(done: &[Completion]) -> Vec<u64> {
    done.iter().map(|completion| completion.token.0).collect()
}

#[test]
fn what_failed_is_kept_and_done_in_order_once_it_can_be() {
    let rig = Rig::new(STOP, failing(libc::EIO));
    let mut queue = rig.disk.open_queue(8).unwrap();
    for token in [3, 1, 2] {
        assert!(submit(&mut *queue, write(token)).is_none());
    }
    assert!(reap(&mut *queue).is_empty());
    assert_eq!(rig.disk.held(), 3);
    let told = rig.told();
    let [_, _, PolicyEvent::Held(last)] = told.as_slice() else {
        panic!("{told:?}");
    };
    let expected = (OpClass::Write, 1024, 512, Some(libc::EIO), 3);
    assert_eq!(
        (last.class, last.offset, last.len, last.errno, last.held),
        expected
    );
    assert_eq!(rig.disk.last_held().as_ref(), Some(last));
    assert!(
        last.to_string()
            .contains("a write of 512 bytes at byte 1024")
    );
    // Still broken: they are tried, and kept again.
    assert_eq!(rig.disk.resume(), 3);
    assert!(reap(&mut *queue).is_empty());
    assert_eq!(rig.disk.held(), 3);
    assert_eq!(rig.told()[0], PolicyEvent::Resumed { operations: 3 });
    // Mended, but nobody has said so.
    rig.fault.arm(false);
    assert!(reap(&mut *queue).is_empty());
    assert!(submit(&mut *queue, write(4)).unwrap().is_ok());
    assert_eq!(rig.disk.resume(), 3);
    let done = reap(&mut *queue);
    assert_eq!(tokens(&done), [3, 1, 2], "in the order of submission");
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(rig.disk.held(), 0);
    assert!(rig.holds(&[1, 2, 3, 4]));
    assert_eq!(rig.disk.resume(), 0);
    assert!(queue.deadline().is_none());
}

#[test]
fn each_policy_keeps_what_it_says() {
    use OnError::{Enospc, Report, Stop};
    let discard = OpKind::Discard {
        offset: 0,
        len: 512,
    };
    let zeroes = OpKind::WriteZeroes {
        offset: 0,
        len: 512,
        unmap: false,
        fua: false,
    };
    let read = OpKind::Read { offset: 0 };
    let plain = OpKind::Write {
        offset: 0,
        fua: false,
    };
    for (policy, code, kind, keeps) in [
        ((Report, Report), libc::EIO, plain, false),
        ((Report, Report), libc::EIO, read, false),
        ((Stop, Report), libc::EIO, read, true),
        ((Stop, Report), libc::EIO, plain, false),
        ((Report, Stop), libc::EIO, plain, true),
        ((Report, Stop), libc::EIO, discard, true),
        ((Report, Stop), libc::EIO, zeroes, true),
        ((Report, Stop), libc::EIO, read, false),
        ((Report, Enospc), libc::ENOSPC, plain, true),
        ((Report, Enospc), libc::EDQUOT, zeroes, true),
        ((Report, Enospc), libc::EIO, plain, false),
        ((Stop, Stop), libc::EIO, OpKind::Flush, false),
        ((Stop, Stop), libc::ENOSPC, OpKind::Flush, false),
    ] {
        let (on_read, on_write) = policy;
        let policy = ErrorPolicy {
            read: on_read,
            write: on_write,
        };
        let rig = Rig::new(policy, failing(code));
        let mut queue = rig.disk.open_queue(2).unwrap();
        let len = match kind {
            OpKind::Read { .. } | OpKind::Write { .. } => 512,
            _ => 0,
        };
        let case = format!("{policy:?} {code} {kind:?}");
        // The short way round does not report what is kept either.
        let short = queue.execute(&kind, &IoBuf::zeroed(len), None).done();
        assert!(short.is_none() || !keeps, "{case}");
        let result = submit(&mut *queue, op(1, kind, len));
        assert_eq!(result.is_none(), keeps, "{case}");
        assert_eq!(rig.disk.held(), u64::from(keeps), "{case}");
        assert!(result.is_none_or(|result| result.is_err()), "{case}");
    }
}

#[test]
fn what_no_waiting_mends_is_reported() {
    let rig = Rig::new(STOP, FaultPlan::new(1));
    let mut queue = rig.disk.open_queue(2).unwrap();
    let beyond = OpKind::Write {
        offset: 1 << 20,
        fua: false,
    };
    let result = submit(&mut *queue, op(1, beyond, 512));
    assert!(matches!(result, Some(Err(DiskError::OutOfRange))));
    let lost = DiskError::FlushLost { errno: libc::EIO };
    let fua = OpKind::Write {
        offset: 0,
        fua: true,
    };
    assert!(!rig.disk.shared().keeps(&fua, &lost));
    assert!(!rig.disk.shared().keeps(&fua, &DiskError::Cancelled));
}

#[test]
fn a_stop_fails_what_is_kept_and_keeps_nothing_more() {
    let rig = Rig::new(STOP, failing(libc::ENOSPC));
    let mut queue = rig.disk.open_queue(4).unwrap();
    submit(&mut *queue, write(1));
    submit(&mut *queue, write(2));
    rig.told();
    queue.release_held();
    assert_eq!(rig.told(), [PolicyEvent::Failed { operations: 2 }]);
    let done = reap(&mut *queue);
    assert_eq!(tokens(&done), [1, 2]);
    assert!(
        done.iter()
            .all(|completion| matches!(&completion.result, Err(error) if error.is_no_space()))
    );
    let later = submit(&mut *queue, write(3)).unwrap();
    assert!(later.unwrap_err().is_no_space());
    assert_eq!(rig.disk.held(), 0);
}

#[test]
fn what_is_kept_can_be_cancelled_or_dropped() {
    let rig = Rig::new(STOP, failing(libc::EIO));
    let mut queue = rig.disk.open_queue(4).unwrap();
    for token in 1..4 {
        submit(&mut *queue, write(token));
    }
    queue.cancel(Token(2));
    queue.cancel(Token(9));
    let done = reap(&mut *queue);
    assert_eq!(tokens(&done), [2]);
    assert!(matches!(done[0].result, Err(DiskError::Cancelled)));
    assert_eq!(rig.disk.held(), 2);
    drop(queue);
    assert_eq!(rig.disk.held(), 0);
}

#[test]
fn a_full_queue_hands_back_and_a_new_policy_tries_again() {
    let rig = Rig::new(STOP, failing(libc::EIO));
    let mut queue = rig.disk.open_queue(2).unwrap();
    submit(&mut *queue, write(1));
    submit(&mut *queue, write(2));
    assert!(matches!(queue.submit(write(3)), Submit::Full(op) if op.token == Token(3)));
    let soon = Instant::now() + RECHECK;
    assert!(queue.deadline().is_some_and(|at| at <= soon + RECHECK));
    rig.disk.set_policy(ErrorPolicy::default());
    let done = reap(&mut *queue);
    assert_eq!(tokens(&done), [1, 2]);
    assert!(done.iter().all(|completion| completion.result.is_err()));
    assert_eq!(rig.disk.policy(), ErrorPolicy::default());
}

/// A queue underneath that finishes later and has no room at times.
#[test]
fn each_operation_ends_once_whatever_is_underneath() {
    for seed in 0..50 {
        let plan = FaultPlan::new(seed)
            .rule(Rule::errno(libc::EIO).kind(Kind::Write).per_mille(400))
            .full_per_mille(300)
            .delay_reaps(0..=3)
            .reorder();
        let rig = Rig::new(STOP, plan);
        let mut queue = rig.disk.open_queue(8).unwrap();
        assert!(matches!(queue.wait(), Wait::Fd(_)));
        let (mut next, mut ended) = (0, Vec::new());
        let mut waiting = None;
        while ended.len() < 100 {
            while next < 100 || waiting.is_some() {
                let op = waiting.take().unwrap_or_else(|| {
                    next += 1;
                    write(next - 1)
                });
                match queue.submit(op) {
                    Submit::Full(op) => {
                        waiting = Some(op);
                        break;
                    }
                    Submit::Queued => {}
                    Submit::Done(completion) => {
                        completion.result.unwrap();
                        ended.push(completion.token.0);
                    }
                }
            }
            for completion in reap(&mut *queue) {
                completion.result.unwrap();
                ended.push(completion.token.0);
            }
            rig.disk.resume();
        }
        ended.sort_unstable();
        assert!(ended.into_iter().eq(0..100), "{seed}");
        assert_eq!(rig.disk.held(), 0);
        assert!(rig.holds(&Vec::from_iter(0..100)));
    }
}

/// Operations that the disk underneath had begun when they were cancelled, and that it then fails.
#[test]
fn what_fails_after_it_was_cancelled_is_cancelled_if_it_would_be_kept() {
    let plan = || failing(libc::EIO).delay_reaps(1..=1);
    let reported = ErrorPolicy::default();
    for (policy, stop, kept) in [
        (STOP, false, true),
        (STOP, true, false),
        (reported, false, false),
    ] {
        let rig = Rig::new(policy, plan());
        let mut queue = rig.disk.open_queue(4).unwrap();
        assert!(submit(&mut *queue, write(1)).is_none());
        queue.flush_batch().unwrap();
        queue.cancel(Token(1));
        if stop {
            queue.release_held();
        }
        let mut done = Vec::new();
        while done.is_empty() {
            done = reap(&mut *queue);
        }
        let [completion] = done.as_slice() else {
            panic!("{done:?}");
        };
        let is_cancelled = matches!(completion.result, Err(DiskError::Cancelled));
        assert_eq!(is_cancelled, kept, "{policy:?} {stop} {completion:?}");
        assert_eq!(rig.disk.held(), 0);
        assert_eq!(rig.told(), []);
    }
}

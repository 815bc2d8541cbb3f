// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_core::disk::{Completion, IoBuf, Op, OpKind, Submit, Token, Wait};

use super::*;
use crate::throttle::{Limits, Rate};
use crate::{FaultDisk, FaultPlan, MemoryDisk, MeterDisk, ThrottleDisk, ThrottleGroup};

const LEN: u64 = 1 << 20;

fn memory() -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::new(LEN).unwrap())
}

fn write(token: u64) -> Op {
    Op {
        token: Token(token),
        kind: OpKind::Write {
            offset: token * 512,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![token as u8; 512]),
    }
}

fn readable(queue: &dyn IoQueue) -> bool {
    let Wait::Fd(fd) = queue.wait() else {
        panic!("a queue that can move has a descriptor");
    };
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        fd,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
}

fn reap(queue: &mut dyn IoQueue) -> Vec<Completion> {
    let mut done = Vec::new();
    let count = queue.reap(&mut done).unwrap();
    assert_eq!(count, done.len());
    done
}

/// A throttle that lets one operation go, and then none for a day.
fn stuck(inner: Arc<dyn Disk>) -> Arc<ThrottleDisk> {
    let slow = Limits {
        bandwidth: Some(Rate::new(1)),
        ..Limits::default()
    };
    let group = ThrottleGroup::new(slow).unwrap();
    Arc::new(ThrottleDisk::new(inner, group))
}

#[test]
fn an_idle_queue_is_woken_and_moves() {
    let disk = SwitchDisk::new(memory()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(!readable(&*queue) && disk.is_settled());
    disk.switch(memory());
    assert!(readable(&*queue) && !disk.is_settled());
    assert!(reap(&mut *queue).is_empty());
    assert!(!readable(&*queue) && disk.is_settled());
}

#[test]
fn a_submission_moves_too() {
    let (first, second) = (memory(), memory());
    let disk = SwitchDisk::new(first).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    let meter = Arc::new(MeterDisk::new(second as Arc<dyn Disk>));
    disk.switch(meter.clone());
    assert!(matches!(queue.submit(write(1)), Submit::Done(_)));
    assert!(disk.is_settled());
    assert_eq!(meter.total().class(crate::meter::OpClass::Write).count(), 1);
}

#[test]
fn what_a_throttle_holds_back_goes_on_without_it() {
    let memory = memory();
    let disk = SwitchDisk::new(stuck(memory.clone())).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    assert!(matches!(queue.submit(write(0)), Submit::Done(_)));
    for token in 1..8 {
        assert!(matches!(queue.submit(write(token)), Submit::Queued));
    }
    assert!(reap(&mut *queue).is_empty());
    queue.cancel(Token(5));
    disk.switch(memory.clone());
    assert!(matches!(queue.submit(write(9)), Submit::Full(_)));
    let mut done = reap(&mut *queue);
    done.sort_by_key(|completion| completion.token);
    let tokens: Vec<_> = done.iter().map(|c| c.token.0).collect();
    assert_eq!(tokens, [1, 2, 3, 4, 5, 6, 7]);
    for completion in done {
        let cancelled = matches!(completion.result, Err(DiskError::Cancelled));
        assert_eq!(cancelled, completion.token == Token(5));
        let offset = completion.token.0 * 512;
        let buf = IoBuf::zeroed(512);
        let mut plain = memory.open_queue(1).unwrap();
        plain
            .execute(&OpKind::Read { offset }, &buf, None)
            .done()
            .unwrap()
            .unwrap();
        let expected = if cancelled {
            0
        } else {
            completion.token.0 as u8
        };
        assert_eq!(buf.to_vec(), [expected; 512]);
    }
    assert!(disk.is_settled());
    assert!(!readable(&*queue));
    assert_eq!(queue.deadline(), None);
}

#[test]
fn what_cannot_be_cancelled_is_waited_for() {
    let memory = memory();
    let late = FaultDisk::new(
        memory.clone() as Arc<dyn Disk>,
        // Cancelling brings a completion sooner; the first reap still has none.
        FaultPlan::new(1).delay_reaps(3..=3).poll(),
    );
    let disk = SwitchDisk::new(Arc::new(late)).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    assert!(matches!(queue.submit(write(1)), Submit::Queued));
    assert!(readable(&*queue), "a disk that has to be asked");
    disk.switch(memory);
    let mut done = Vec::new();
    while done.is_empty() {
        assert!(readable(&*queue));
        done = reap(&mut *queue);
    }
    assert_eq!(done.len(), 1);
    done.remove(0).result.unwrap();
    assert!(disk.is_settled());
}

#[test]
fn a_queue_that_cannot_follow_stays() {
    struct Closed(Arc<MemoryDisk>);
    impl Disk for Closed {
        fn caps(&self) -> Caps {
            self.0.caps()
        }
        fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
            Err(DiskError::from_errno(libc::ENOMEM))
        }
    }
    let memory = memory();
    let disk = SwitchDisk::new(memory.clone()).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    disk.switch(Arc::new(Closed(memory.clone())));
    assert!(matches!(queue.submit(write(1)), Submit::Done(_)));
    assert!(!disk.is_settled());
    assert!(disk.last_error().unwrap().contains("memory"));
    disk.switch(memory);
    assert!(reap(&mut *queue).is_empty());
    assert!(disk.is_settled() && disk.last_error().is_none());
}

#[test]
fn half_the_queues_are_kept_for_moving() {
    struct Few(u16);
    impl Disk for Few {
        fn caps(&self) -> Caps {
            Caps {
                max_queues: self.0,
                ..Caps::basic(8)
            }
        }
        fn open_queue(&self, _: u16) -> Result<Box<dyn IoQueue>, DiskError> {
            Err(DiskError::Unsupported)
        }
    }
    assert_eq!(
        SwitchDisk::new(Arc::new(Few(9))).unwrap().caps().max_queues,
        4
    );
    assert!(SwitchDisk::new(Arc::new(Few(1))).is_err());
}

#[test]
fn a_held_disk_keeps_what_comes_until_it_goes_on() {
    let memory = memory();
    let late = FaultPlan::new(1).delay_reaps(2..=2);
    let disk = SwitchDisk::new(Arc::new(FaultDisk::new(memory.clone(), late))).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(queue.submit(write(0)), Submit::Queued));
    let until = Instant::now() + std::time::Duration::from_secs(3600);
    disk.hold(until);
    assert!(!disk.is_settled(), "something is in flight");
    assert!(matches!(queue.submit(write(1)), Submit::Full(_)));
    let mut ended = Vec::new();
    while !disk.is_settled() {
        assert!(readable(&*queue));
        ended.extend(reap(&mut *queue));
    }
    assert_eq!(ended.len(), 1);
    for token in 1..=4 {
        assert!(matches!(queue.submit(write(token)), Submit::Queued));
    }
    assert!(matches!(queue.submit(write(5)), Submit::Full(_)));
    assert!(
        queue
            .execute(&write(5).kind, &IoBuf::zeroed(512), None)
            .done()
            .is_none()
    );
    assert!(reap(&mut *queue).is_empty() && !readable(&*queue));
    assert_eq!(queue.deadline(), Some(until));
    queue.cancel(Token(2));
    assert!(readable(&*queue));
    let cancelled = reap(&mut *queue);
    assert!(matches!(cancelled[0].result, Err(DiskError::Cancelled)));
    // Also who comes later holds still, and the disk can be exchanged.
    let mut other = disk.open_queue(4).unwrap();
    assert!(matches!(other.submit(write(7)), Submit::Queued));
    disk.switch(memory.clone());
    assert!(reap(&mut *queue).is_empty() && reap(&mut *other).is_empty());
    assert!(disk.is_settled());
    let buf = IoBuf::zeroed(512);
    let mut plain = memory.open_queue(1).unwrap();
    let mut holds = |token: u64| {
        let kind = OpKind::Read {
            offset: token * 512,
        };
        plain.execute(&kind, &buf, None).done().unwrap().unwrap();
        buf.to_vec() == [token as u8; 512]
    };
    assert!(!(1..=7).any(&mut holds));
    disk.resume().unwrap();
    assert!(readable(&*queue) && readable(&*other));
    let mut done = reap(&mut *queue);
    done.extend(reap(&mut *other));
    let mut tokens: Vec<_> = done.iter().map(|done| done.token.0).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [1, 3, 4, 7]);
    assert!(done.iter().all(|done| done.result.is_ok()));
    assert!([1, 3, 4, 7].into_iter().all(holds));
    assert!(disk.is_settled());
    assert_eq!(queue.deadline(), None);
}

#[test]
fn a_hold_ends_by_itself() {
    let disk = SwitchDisk::new(memory()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    disk.hold(Instant::now());
    assert!(matches!(queue.submit(write(1)), Submit::Done(_)));
    assert!(disk.is_settled());
}

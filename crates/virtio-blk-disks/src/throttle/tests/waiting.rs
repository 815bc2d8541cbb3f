// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations that wait for their turn.

use super::*;

#[test]
fn without_a_limit_no_lock_is_taken_and_nothing_waits() {
    let time = Time::new();
    let group = time.group(iops(1));
    let disk = ThrottleDisk::new(null(), group.clone());
    let mut queue = disk.open_queue(4).unwrap();
    let read = OpKind::Read { offset: 0 };
    let buf = IoBuf::zeroed(512);
    assert!(matches!(
        queue.execute(&read, &buf, None).done(),
        Some(Ok(()))
    ));
    assert!(
        queue.execute(&read, &buf, None).done().is_none(),
        "not its turn"
    );
    assert!(matches!(queue.submit(op(1, read)), Submit::Queued));
    group.set_limits(Limits::default()).unwrap();
    // What waits goes first.
    assert!(queue.execute(&read, &buf, None).done().is_none());
    assert_eq!(queue.reap(&mut Vec::new()).unwrap(), 1);
    std::thread::scope(|scope| {
        // A lock that is held by somebody else would be waited for.
        group.hold_lock(|| {
            let work = scope.spawn(|| {
                let buf = IoBuf::zeroed(512);
                assert!(matches!(
                    queue.execute(&read, &buf, None).done(),
                    Some(Ok(()))
                ));
                assert!(matches!(queue.submit(op(2, read)), Submit::Done(_)));
            });
            work.join().unwrap();
        });
    });
    group.set_limits(iops(1)).unwrap();
    assert!(matches!(
        queue.execute(&read, &buf, None).done(),
        Some(Ok(()))
    ));
    assert!(
        queue.execute(&read, &buf, None).done().is_none(),
        "limits hold again"
    );
}

#[test]
fn what_the_disk_does_not_execute_keeps_its_turn() {
    let time = Time::new();
    let late = crate::FaultPlan::new(1).delay_reaps(0..=0);
    let below = Arc::new(crate::FaultDisk::new(null(), late));
    let disk = ThrottleDisk::new(below, time.group(iops(1)));
    let mut queue = disk.open_queue(4).unwrap();
    let read = OpKind::Read { offset: 0 };
    assert!(
        queue
            .execute(&read, &IoBuf::zeroed(512), None)
            .done()
            .is_none()
    );
    assert!(matches!(queue.submit(op(1, read)), Submit::Queued));
    assert_eq!(disk.stats().waiting, 0, "it was not held back");
}

#[test]
fn what_waits_is_cancelled_once_and_gives_its_turn_back() {
    let time = Time::new();
    let disk = ThrottleDisk::new(null(), time.group(iops(10)));
    let mut queue = disk.open_queue(4).unwrap();
    let read = OpKind::Read { offset: 0 };
    assert!(matches!(queue.submit(op(0, read)), Submit::Done(_)));
    for token in 1..=4 {
        assert!(matches!(queue.submit(op(token, read)), Submit::Queued));
    }
    assert!(matches!(queue.submit(op(5, read)), Submit::Full(_)));
    let next = queue.deadline();
    for token in [1, 3, 3, 77] {
        queue.cancel(Token(token));
    }
    assert!(
        queue.deadline().unwrap() <= time.now(),
        "there is something to reap"
    );
    let mut done = Vec::new();
    assert_eq!(queue.reap(&mut done).unwrap(), 2);
    for (completion, token) in done.drain(..).zip([1, 3]) {
        assert_eq!(completion.token, Token(token));
        assert!(matches!(completion.result, Err(DiskError::Cancelled)));
    }
    // The second takes the place of the first.
    assert_eq!(queue.deadline(), next);
    time.go_to(next.unwrap());
    assert_eq!(queue.reap(&mut done).unwrap(), 1);
    assert_eq!(done[0].token, Token(2));
    assert_eq!(
        disk.stats(),
        ThrottleStats {
            waiting: 1,
            released: 1,
            time: SECOND / 10
        }
    );
    drop(queue);
    assert_eq!(disk.stats().waiting, 0);
    // The dropped one's turn is free, too.
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(queue.submit(op(9, read)), Submit::Queued));
    assert_eq!(queue.deadline(), Some(time.now() + SECOND / 10));
}

#[test]
fn flushes_and_the_unlimited_kind_pass() {
    let time = Time::new();
    let limits = Limits {
        write_iops: Some(Rate::new(1)),
        read_bandwidth: Some(Rate::new(1 << 20)),
        ..Limits::default()
    };
    let disk = ThrottleDisk::new(
        Arc::new(MemoryDisk::new(1 << 20).unwrap()),
        time.group(limits),
    );
    let mut queue = disk.open_queue(8).unwrap();
    let write = OpKind::WriteZeroes {
        offset: 0,
        len: 4096,
        unmap: true,
        fua: false,
    };
    let bare = |token, kind| Op {
        buf: IoBuf::new(),
        ..op(token, kind)
    };
    assert!(matches!(queue.submit(bare(0, write)), Submit::Done(_)));
    assert!(matches!(queue.submit(bare(1, write)), Submit::Queued));
    assert!(matches!(
        queue.submit(bare(2, OpKind::Flush)),
        Submit::Done(_)
    ));
    drop(queue);
    let mut queue = disk.open_queue(8).unwrap();
    let discard = OpKind::Discard {
        offset: 0,
        len: 4096,
    };
    assert!(matches!(queue.submit(bare(3, discard)), Submit::Queued));
    assert_eq!(disk.caps(), disk.inner().caps());
}

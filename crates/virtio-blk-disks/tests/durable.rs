// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A failed flush belongs to the medium: nobody's success may come from an error that somebody else was told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Barrier;

use common::{directory, image, read, run, wait, write};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_disks::inject::{Call, Injector, Plan};
use virtio_blk_disks::raw::{OpenError, io_uring_support};
use virtio_blk_disks::{Engine, RawDisk, RawOptions};

const MIB: usize = 1 << 20;

/// Runs `body` with an image on each engine, buffered and direct.
fn on_each_way(body: impl Fn(&RawOptions, &Injector)) {
    for engine in [Engine::Auto, Engine::Sync, Engine::IoUring] {
        if engine == Engine::IoUring && io_uring_support().is_err() {
            continue;
        }
        for direct in [false, true] {
            let directory = directory();
            let path = image(directory.path(), MIB);
            let options = RawOptions::new(&path).engine(engine).direct(direct);
            if matches!(RawDisk::open(&options), Err(OpenError::NoDirect { .. })) {
                continue;
            }
            let injector = Injector::new();
            body(&options.inject(&injector), &injector);
        }
    }
}

fn flush(queue: &mut dyn IoQueue) -> Result<(), DiskError> {
    run(queue, OpKind::Flush, IoBuf::new()).result
}

fn fua(queue: &mut dyn IoQueue) -> Result<(), DiskError> {
    let kind = OpKind::Write {
        offset: 0,
        fua: true,
    };
    run(queue, kind, IoBuf::zeroed(4096)).result
}

fn zero_fua(queue: &mut dyn IoQueue) -> Result<(), DiskError> {
    let kind = OpKind::WriteZeroes {
        offset: 0,
        len: 4096,
        unmap: true,
        fua: true,
    };
    run(queue, kind, IoBuf::new()).result
}

fn is_lost(result: &Result<(), DiskError>, errno: i32) -> bool {
    matches!(result, Err(DiskError::FlushLost { errno: found }) if *found == errno)
}

#[test]
fn after_a_failed_flush_none_succeeds_until_the_disk_is_opened_anew() {
    type Way = fn(&mut dyn IoQueue) -> Result<(), DiskError>;
    on_each_way(|options, injector| {
        for errno in [libc::EIO, libc::ENOSPC] {
            for way in [flush as Way, zero_fua] {
                let disk = RawDisk::open(options).unwrap();
                let mut one = disk.open_queue(4).unwrap();
                let mut two = disk.open_queue(4).unwrap();
                write(&mut *one, 0, vec![1; 4096]).unwrap();
                flush(&mut *two).unwrap();
                assert!(disk.flush_error().is_none());

                injector.arm(Plan::new(1, &[Call::Sync], errno));
                let error = way(&mut *one).unwrap_err();
                assert_eq!(error.errno(), Some(errno), "{error}");
                assert_eq!(injector.calls(Call::Sync) > 0, injector.struck() > 0);
                let mut later = disk.open_queue(4).unwrap();
                for queue in [&mut one, &mut two, &mut later] {
                    for way in [flush, fua, zero_fua] {
                        let result = way(&mut **queue);
                        assert!(is_lost(&result, errno), "{result:?}");
                    }
                    write(&mut **queue, 4096, vec![2; 4096]).unwrap();
                    assert_eq!(read(&mut **queue, 4096, 4096).unwrap(), [2; 4096]);
                }
                assert!(is_lost(&Err(disk.flush_error().unwrap()), errno));
                drop((one, two, later, disk));

                let disk = RawDisk::open(options).unwrap();
                let mut queue = disk.open_queue(4).unwrap();
                flush(&mut *queue).unwrap();
                fua(&mut *queue).unwrap();
            }
        }
    });
}

/// The error of a failed write-back is told once per open file description.
#[test]
fn a_failed_write_back_fails_the_flush_of_each_queue() {
    on_each_way(|options, injector| {
        let disk = RawDisk::open(options).unwrap();
        let mut queues: Vec<_> = (0..3).map(|_| disk.open_queue(8).unwrap()).collect();
        injector.arm(Plan::new(1, &[Call::WriteBack], libc::EIO));
        write(&mut *queues[0], 0, vec![1; 4096]).unwrap();
        assert_eq!(injector.struck(), 1);
        // All at once: no queue's failure is known before the others have asked.
        let mut open = queues.len();
        let mut done = Vec::new();
        for (number, queue) in queues.iter_mut().enumerate() {
            let op = Op {
                token: Token(number as u64),
                kind: OpKind::Flush,
                buf: IoBuf::new(),
            };
            match queue.submit(op) {
                Submit::Done(completion) => done.push(completion),
                Submit::Queued => queue.flush_batch().unwrap(),
                Submit::Full(_) => panic!("full"),
            }
        }
        // The last one is asked first.
        for queue in queues.iter_mut().rev() {
            while done.len() < open && queue.reap(&mut done).unwrap() == 0 && wait(&**queue) {}
            open -= usize::from(done.is_empty());
        }
        while done.len() < 3 {
            for queue in &mut queues {
                queue.reap(&mut done).unwrap();
            }
        }
        for completion in &done {
            assert!(completion.result.is_err(), "{:?}", completion.token);
        }
        assert!(disk.flush_error().is_some());
    });
}

#[test]
fn the_flushes_of_one_queue_share_an_error_too() {
    on_each_way(|options, injector| {
        let disk = RawDisk::open(options).unwrap();
        let mut queue = disk.open_queue(16).unwrap();
        injector.arm(Plan::new(1, &[Call::WriteBack], libc::EIO));
        write(&mut *queue, 0, vec![1; 4096]).unwrap();
        let mut done = Vec::new();
        for number in 0..8 {
            let kind = if number % 2 == 0 {
                OpKind::Flush
            } else {
                OpKind::WriteZeroes {
                    offset: 8192,
                    len: 4096,
                    unmap: false,
                    fua: true,
                }
            };
            let op = Op {
                token: Token(number),
                kind,
                buf: IoBuf::new(),
            };
            if let Submit::Done(completion) = queue.submit(op) {
                done.push(completion);
            }
        }
        queue.flush_batch().unwrap();
        while done.len() < 8 {
            if queue.reap(&mut done).unwrap() == 0 {
                wait(&*queue);
            }
        }
        assert!(done.iter().all(|completion| completion.result.is_err()));
    });
}

#[test]
fn flushes_that_wait_together_take_one_call() {
    if io_uring_support().is_err() {
        return;
    }
    let directory = directory();
    let injector = Injector::new();
    let options = RawOptions::new(image(directory.path(), MIB)).engine(Engine::IoUring);
    let disk = RawDisk::open(&options.inject(&injector)).unwrap();
    let mut queue = disk.open_queue(16).unwrap();
    for number in 0..16 {
        let op = Op {
            token: Token(number),
            kind: OpKind::Flush,
            buf: IoBuf::new(),
        };
        assert!(matches!(queue.submit(op), Submit::Queued));
    }
    queue.flush_batch().unwrap();
    let mut done = Vec::new();
    while done.len() < 16 {
        if queue.reap(&mut done).unwrap() == 0 {
            wait(&*queue);
        }
    }
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(injector.calls(Call::Sync), 1);
}

/// An error may have been told to a queue that has not looked yet when another queue is opened.
#[test]
fn a_queue_that_is_opened_late_does_not_miss_what_others_were_told() {
    on_each_way(|options, injector| {
        let disk = RawDisk::open(options).unwrap();
        let mut first = disk.open_queue(4).unwrap();
        injector.arm(Plan::new(1, &[Call::WriteBack], libc::EIO));
        write(&mut *first, 0, vec![1; 4096]).unwrap();
        let op = Op {
            token: Token(0),
            kind: OpKind::Flush,
            buf: IoBuf::new(),
        };
        let _unseen = first.submit(op);
        first.flush_batch().unwrap();
        let mut second = disk.open_queue(4).unwrap();
        assert!(flush(&mut *second).is_err());
    });
}

/// Where the file can't be opened once more, flushes take turns.
#[test]
fn without_descriptions_of_their_own_queues_take_turns() {
    on_each_way(|options, injector| {
        injector.arm(Plan::new(1, &[Call::Reopen], libc::EACCES).for_good());
        let disk = RawDisk::open(options).unwrap();
        let mut queues: Vec<_> = (0..4).map(|_| disk.open_queue(4).unwrap()).collect();
        assert!(injector.struck() > 0);
        for queue in &mut queues {
            fua(&mut **queue).unwrap();
            flush(&mut **queue).unwrap();
        }
        injector.arm(Plan::new(1, &[Call::WriteBack], libc::EIO));
        write(&mut *queues[0], 0, vec![1; 4096]).unwrap();
        let start = Barrier::new(queues.len());
        std::thread::scope(|scope| {
            for mut queue in queues {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    assert!(flush(&mut *queue).is_err());
                    assert!(fua(&mut *queue).is_err());
                });
            }
        });
    });
}

/// A queue that can't have a description uses the medium's.
#[test]
fn a_queue_without_a_description_of_its_own_still_learns_everything() {
    on_each_way(|options, injector| {
        let disk = RawDisk::open(options).unwrap();
        let mut one = disk.open_queue(4).unwrap();
        injector.arm(Plan::new(1, &[Call::Reopen], libc::EMFILE).for_good());
        let mut two = disk.open_queue(4).unwrap();
        injector.arm(Plan::new(1, &[Call::WriteBack], libc::EIO));
        write(&mut *one, 0, vec![1; 4096]).unwrap();
        assert!(flush(&mut *two).is_err());
        assert!(flush(&mut *one).is_err());
    });
}

/// io_uring without workers, or whose thread is gone, completes with `EAGAIN` or `ECANCELED` for ever.
#[test]
fn what_io_uring_can_not_do_is_done_by_the_plain_call() {
    if io_uring_support().is_err() {
        return;
    }
    let directory = directory();
    let path = image(directory.path(), MIB);
    for errno in [libc::EAGAIN, libc::ECANCELED] {
        let injector = Injector::new();
        let options = RawOptions::new(&path).engine(Engine::IoUring);
        let disk = RawDisk::open(&options.inject(&injector)).unwrap();
        let mut queue = disk.open_queue(4).unwrap();
        for (number, kind) in [Call::Read, Call::Write, Call::Sync, Call::Allocate]
            .into_iter()
            .enumerate()
        {
            // The first few fail, as often as the ring is tried.
            for _ in 0..2 {
                let before = injector.calls(kind);
                injector.arm(Plan::new(1, &[kind], errno).times(3));
                let result = match kind {
                    Call::Read => read(&mut *queue, 0, 4096).map(drop),
                    Call::Write => write(&mut *queue, 0, vec![3; 4096]),
                    Call::Sync => flush(&mut *queue),
                    _ => zero_fua(&mut *queue),
                };
                result.unwrap_or_else(|error| panic!("{errno} {number}: {error}"));
                assert_eq!(injector.calls(kind) - before, 4);
            }
        }
        assert!(disk.flush_error().is_none());
    }
}

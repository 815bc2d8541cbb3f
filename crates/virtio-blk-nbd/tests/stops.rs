// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops while a server is silent, slow or gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{read, wait, write};
use fake::{Act, Config, Fake, Gate, chunk};
use virtio_blk_core::disk::{
    Completion, Disk, DiskError, IoBuf, IoQueue, Op, OpKind, Submit, Token,
};
use virtio_blk_nbd::NbdDisk;
use virtio_blk_nbd::proto::{ChunkKind, Command, ExportFlags};

fn submit(queue: &mut dyn IoQueue, token: u64, kind: OpKind, buf: IoBuf) {
    let token = Token(token);
    let submitted = queue.submit(Op { token, kind, buf });
    assert!(matches!(submitted, Submit::Queued), "{submitted:?}");
    queue.flush_batch().unwrap();
}

fn next(queue: &mut dyn IoQueue) -> Completion {
    let mut done = Vec::new();
    while queue.reap(&mut done).unwrap() == 0 {
        wait(queue);
    }
    assert_eq!(done.len(), 1);
    done.pop().unwrap()
}

/// A server that never replies to reads of the first sector, to writes of the second and to flushes.
fn silent() -> Fake {
    Fake::start(Config {
        hook: Box::new(|_, request, _| match (request.command, request.offset) {
            (Command::READ, 0) | (Command::WRITE, 512) | (Command::FLUSH, _) => Act::Swallow,
            _ => Act::Serve,
        }),
        ..Config::default()
    })
}

#[test]
fn reads_and_flushes_end_at_once_when_they_are_cancelled() {
    let fake = silent();
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    submit(
        &mut *queue,
        1,
        OpKind::Read { offset: 0 },
        IoBuf::zeroed(512),
    );
    submit(&mut *queue, 2, OpKind::Flush, IoBuf::new());
    fake.wait_for(2, |_, _| true);
    for token in [1, 2] {
        queue.cancel(Token(token));
        // Once more changes nothing.
        queue.cancel(Token(token));
        let completion = next(&mut *queue);
        assert_eq!(completion.token, Token(token));
        assert!(matches!(completion.result, Err(DiskError::Cancelled)));
    }
    // The connection is as good as before.
    write(&mut *queue, 1024, vec![5; 512]).unwrap();
    assert_eq!(read(&mut *queue, 1024, 512).unwrap(), [5; 512]);
    assert_eq!(fake.connections(), 1);
}

#[test]
fn a_late_reply_to_a_cancelled_read_is_passed_over() {
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let fake = Fake::start(Config {
        hook: Box::new(move |_, request, _| match request.offset {
            0 => Act::Wait(shut.clone()),
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    submit(
        &mut *queue,
        1,
        OpKind::Read { offset: 0 },
        IoBuf::from_vec(vec![0xEE; 1 << 19]),
    );
    fake.wait_for(1, |_, _| true);
    queue.cancel(Token(1));
    let cancelled = next(&mut *queue);
    gate.open();
    assert_eq!(read(&mut *queue, 512, 512).unwrap(), [1; 512]);
    assert!(
        cancelled.buf.to_vec().iter().all(|byte| *byte == 0xEE),
        "the memory is not written to"
    );
    assert_eq!(fake.connections(), 1);
}

#[test]
fn the_end_of_a_queue_waits_a_second_at_most() {
    let fake = silent();
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    submit(
        &mut *queue,
        1,
        OpKind::Read { offset: 0 },
        IoBuf::zeroed(512),
    );
    let since = Instant::now();
    drop(queue);
    assert!(
        since.elapsed() < Duration::from_millis(700),
        "a read is not waited for"
    );
    let mut queue = disk.open_queue(4).unwrap();
    submit(
        &mut *queue,
        1,
        OpKind::Write {
            offset: 512,
            fua: false,
        },
        IoBuf::zeroed(512),
    );
    fake.wait_for(1, |_, request| request.command == Command::WRITE);
    queue.cancel(Token(1));
    let since = Instant::now();
    drop(queue);
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(3),
        "{took:?}"
    );
    // What may still be executed is waited for by what comes after it, and by nothing else.
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(read(&mut *queue, 1024, 512).unwrap(), [2; 512]);
    submit(
        &mut *queue,
        2,
        OpKind::Read { offset: 512 },
        IoBuf::zeroed(512),
    );
    assert_eq!(read(&mut *queue, 1024, 512).unwrap(), [2; 512]);
    let reads = fake
        .commands()
        .iter()
        .filter(|command| **command == Command::READ)
        .count();
    assert_eq!(reads, 3, "the read on its range was held");
    queue.release_held();
    assert_eq!(next(&mut *queue).token, Token(2));
}

#[test]
fn nothing_waits_for_a_connection_when_a_queue_is_to_stop() {
    let fake = Fake::start(Config {
        hook: Box::new(|_, _, _| Act::Close),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(3600)).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    fake.shared.refuses.store(true, Ordering::SeqCst);
    submit(
        &mut *queue,
        1,
        OpKind::Write {
            offset: 0,
            fua: false,
        },
        IoBuf::zeroed(512),
    );
    fake.wait_for(1, |_, _| true);
    let since = Instant::now();
    queue.release_held();
    assert!(next(&mut *queue).result.is_err());
    let again = queue.submit(Op {
        token: Token(2),
        kind: OpKind::Read { offset: 0 },
        buf: IoBuf::zeroed(512),
    });
    assert!(
        matches!(again, Submit::Done(Completion { result: Err(_), .. })),
        "{again:?}"
    );
    drop(queue);
    // A queue that was not told to stop ends as quickly.
    let mut queue = disk.open_queue(4).unwrap();
    submit(
        &mut *queue,
        1,
        OpKind::Read { offset: 0 },
        IoBuf::zeroed(512),
    );
    queue.cancel(Token(1));
    assert!(matches!(
        next(&mut *queue).result,
        Err(DiskError::Cancelled)
    ));
    submit(
        &mut *queue,
        2,
        OpKind::Read { offset: 0 },
        IoBuf::zeroed(512),
    );
    drop(queue);
    drop(disk);
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
}

/// A server that stops reading at the first read of sector 0.
fn stuck(flags: ExportFlags) -> (Fake, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let fake = Fake::start(Config {
        size: 32 << 20,
        flags,
        hook: Box::new(
            move |_, request, _| match (request.command, request.offset) {
                (Command::READ, 0) => Act::Wait(shut.clone()),
                _ => Act::Serve,
            },
        ),
        ..Config::default()
    });
    (fake, gate)
}

#[test]
fn a_write_that_was_sent_in_part_is_never_whole_if_its_queue_ends() {
    let (fake, gate) = stuck(fake::ALL);
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    submit(
        &mut *queue,
        1,
        OpKind::Read { offset: 0 },
        IoBuf::zeroed(512),
    );
    let data = IoBuf::from_vec(vec![0xAB; 16 << 20]);
    submit(
        &mut *queue,
        2,
        OpKind::Write {
            offset: 1 << 20,
            fua: false,
        },
        data,
    );
    let since = Instant::now();
    drop(queue);
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    gate.open();
    // The next connection is used; the server has seen the end of the old one by then, or never the rest of the data.
    let mut queue = disk.open_queue(4).unwrap();
    while read(&mut *queue, 512, 512).is_err() {
        assert!(since.elapsed() < Duration::from_secs(20));
    }
    assert!(
        fake.commands()
            .iter()
            .all(|command| *command != Command::WRITE)
    );
}

#[test]
fn a_write_that_was_sent_in_part_does_not_disturb_who_shares_the_connection() {
    let (fake, gate) = stuck(fake::ALL.without(ExportFlags::CAN_MULTI_CONN));
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    let mut two = disk.open_queue(4).unwrap();
    submit(&mut *one, 1, OpKind::Read { offset: 0 }, IoBuf::zeroed(512));
    let data = IoBuf::from_vec(vec![0xAB; 16 << 20]);
    submit(
        &mut *one,
        2,
        OpKind::Write {
            offset: 1 << 20,
            fua: false,
        },
        data,
    );
    submit(
        &mut *two,
        3,
        OpKind::Read { offset: 512 },
        IoBuf::zeroed(512),
    );
    drop(one);
    gate.open();
    let completion = next(&mut *two);
    completion.result.unwrap();
    assert_eq!(completion.buf.to_vec(), [1; 512]);
    // The write was whole, with its data.
    assert_eq!(
        read(&mut *two, (17 << 20) - 512, 1024).unwrap()[..512],
        [0xAB; 512]
    );
    assert_eq!(fake.connections(), 1);
}

/// The connection of a queue that has gone is received on all the same: others wait for what it still has.
#[test]
fn what_a_queue_left_with_the_server_is_waited_for_on_other_connections_until_it_is_over() {
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let fake = Fake::start(Config {
        hook: Box::new(
            move |_, request, _| match (request.command, request.length) {
                (Command::WRITE, 1024) => Act::Wait(shut.clone()),
                _ => Act::Serve,
            },
        ),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    let mut two = disk.open_queue(4).unwrap();
    let kind = OpKind::Write {
        offset: 512,
        fua: false,
    };
    submit(&mut *one, 1, kind, IoBuf::zeroed(1024));
    fake.wait_for(1, |_, request| request.command == Command::WRITE);
    drop(one);
    submit(
        &mut *two,
        2,
        OpKind::Read { offset: 512 },
        IoBuf::zeroed(512),
    );
    assert_eq!(read(&mut *two, 4096, 512).unwrap(), [8; 512]);
    gate.open();
    let completion = next(&mut *two);
    assert_eq!(completion.token, Token(2));
    completion.result.unwrap();
    assert_eq!(fake.connections(), 2, "none was lost");
}

/// The same, if the connection itself goes with the disk.
#[test]
fn what_a_queue_left_with_the_server_is_not_waited_for_when_its_connection_is_gone() {
    let fake = silent();
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    let mut two = disk.open_queue(4).unwrap();
    drop(disk);
    let kind = OpKind::Write {
        offset: 512,
        fua: false,
    };
    submit(&mut *one, 1, kind, IoBuf::zeroed(512));
    fake.wait_for(1, |_, request| request.command == Command::WRITE);
    drop(one);
    submit(
        &mut *two,
        2,
        OpKind::Read { offset: 512 },
        IoBuf::zeroed(512),
    );
    next(&mut *two).result.unwrap();
}

/// What is left of a long operation is not begun when its queue has gone.
#[test]
fn an_operation_of_several_requests_ends_with_the_one_that_the_server_has() {
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let fake = Fake::start(Config {
        hook: Box::new(move |_, request, mode| match request.command {
            Command::WRITE_ZEROES if request.offset == 0 => {
                shut.wait();
                Act::Say(chunk(request, mode, ChunkKind::NONE, true, &[]))
            }
            Command::WRITE_ZEROES => Act::Say(chunk(request, mode, ChunkKind::NONE, true, &[])),
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    // It is not of that size, which nobody looks at.
    fake.set(|config| config.size = 4 << 30);
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    let kind = OpKind::WriteZeroes {
        offset: 0,
        len: 2 << 30,
        unmap: true,
        fua: false,
    };
    submit(&mut *queue, 1, kind, IoBuf::new());
    drop(queue);
    gate.open();
    let mut queue = disk.open_queue(4).unwrap();
    // It waits for the range, and so for the reply.
    read(&mut *queue, 4096, 512).unwrap();
    let zeroes = (fake.commands().into_iter())
        .filter(|command| *command == Command::WRITE_ZEROES)
        .count();
    assert_eq!(zeroes, 1);
}

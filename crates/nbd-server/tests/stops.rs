// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Slow disks, disks that fail, and the end: of clients, and of the server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{PATIENCE, Reply, Serving, pattern, request};
use nbd_server::{ExportOptions, OperationError, ServerError, ServerOptions};
use virtio_blk_core::disk::{Caps, DiskError, EraseLimits, OpKind};
use virtio_blk_core::testdisk::{Mode, TestDisk, WaitKind};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_nbd::proto::*;

fn caps() -> Caps {
    Caps {
        flush: true,
        discard: Some(EraseLimits {
            max_sectors: 8,
            max_segments: 1,
            alignment: 1,
        }),
        ..Caps::basic(2048)
    }
}

fn wait(what: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
}

#[test]
fn replies_come_in_the_order_in_which_the_disk_finishes() {
    for kind in [WaitKind::Fd, WaitKind::Poll] {
        let disk = TestDisk::new(caps()).with_mode(Mode::Held, kind);
        // Less than the client sends at a time.
        disk.set_room(3);
        let serving = Serving::new(Arc::new(disk.clone()));
        let mut client = serving.client(ReplyMode::Structured);
        for cookie in 0..3 {
            let read = Request {
                cookie,
                ..request(Command::READ, 512 * cookie, 512)
            };
            client.send(&read, &[]);
        }
        wait(|| disk.held() == 3);
        for cookie in 3..20 {
            let read = Request {
                cookie,
                ..request(Command::READ, 512 * cookie, 512)
            };
            client.send(&read, &[]);
        }
        let mut seen = [false; 20];
        assert!(disk.release_at(2));
        assert_eq!(client.reply(0).0, 2);
        seen[2] = true;
        for _ in 1..20 {
            wait(|| disk.held() > 0);
            disk.release(1);
            let (cookie, reply) = client.reply(0);
            assert!(matches!(reply, Reply::Done(_)));
            assert!(!std::mem::replace(&mut seen[cookie as usize], true));
        }
    }
}

#[test]
fn a_trim_goes_to_the_disk_in_its_pieces_and_is_flushed() {
    let disk = TestDisk::new(caps()).with_mode(Mode::AtFlush, WaitKind::Fd);
    let serving = Serving::new(Arc::new(disk.clone()));
    let mut client = serving.client(ReplyMode::Structured);
    let trim = Request {
        flags: CommandFlags::FUA,
        ..request(Command::TRIM, 512, 10 << 10)
    };
    assert_eq!(client.ask(&trim, &[]), Reply::Done(vec![]));
    let piece = |offset, len| OpKind::Discard { offset, len };
    assert_eq!(
        disk.take_ops(),
        [
            piece(512, 4096),
            piece(4608, 4096),
            piece(8704, 2048),
            OpKind::Flush
        ]
    );
}

#[test]
fn an_error_is_told_to_the_client_and_to_the_listener() {
    let disk = TestDisk::new(caps()).with_mode(Mode::AtFlush, WaitKind::Fd);
    disk.set_fault(|kind| match kind {
        OpKind::Write { .. } => Some(DiskError::from_errno(libc::ENOSPC)),
        OpKind::Flush => Some(DiskError::FlushLost { errno: libc::EIO }),
        _ => None,
    });
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = heard.clone();
    let options = ExportOptions {
        on_error: Some(Box::new(move |error: &OperationError<'_>| {
            ears.lock()
                .unwrap()
                .push((error.operation, error.offset, error.len));
        })),
        ..ExportOptions::default()
    };
    let serving = Serving::with(Arc::new(disk), options, ServerOptions::default());
    let mut client = serving.client(ReplyMode::Structured);
    let Reply::Failed(errno, text) = client.ask(&request(Command::WRITE, 512, 512), &[1; 512])
    else {
        panic!("it fails");
    };
    assert_eq!(errno, Errno::NOSPC);
    assert!(text.contains("No space left"), "{text}");
    let Reply::Failed(errno, text) = client.ask(&request(Command::FLUSH, 0, 0), &[]) else {
        panic!("it fails");
    };
    assert_eq!(errno, Errno::IO);
    assert!(text.contains("completed writes may be lost"), "{text}");
    assert_eq!(
        *heard.lock().unwrap(),
        [("write", 512, 512), ("flush", 0, 0)]
    );
    assert_eq!(serving.export.counters().errors, 2);
    assert_eq!(client.read_at(0, 512), [0; 512]);
}

#[test]
fn a_stop_finishes_what_the_disk_has() {
    let disk = TestDisk::new(caps()).with_mode(Mode::Held, WaitKind::Fd);
    let serving = Serving::new(Arc::new(disk.clone()));
    let mut client = serving.client(ReplyMode::Structured);
    client.send(&request(Command::WRITE, 0, 512), &[7; 512]);
    wait(|| disk.held() == 1);
    let idle = serving.client(ReplyMode::Structured);
    let handle = serving.handle.clone();
    handle.stop();
    // The connection without requests is gone; the other one waits.
    wait(|| handle.connections() == 1);
    disk.release(1);
    assert_eq!(client.reply(0).1, Reply::Done(vec![]));
    assert!(client.is_closed());
    serving.stop().unwrap();
    assert_eq!(disk.content(0, 512), [7; 512]);
    drop(idle);
}

#[test]
fn a_stop_does_not_wait_for_a_disk_for_ever() {
    let disk = TestDisk::new(caps()).with_mode(Mode::Held, WaitKind::Fd);
    let options = ServerOptions {
        stop_time: Duration::from_millis(200),
        ..ServerOptions::default()
    };
    let serving = Serving::with(Arc::new(disk.clone()), ExportOptions::default(), options);
    let mut client = serving.client(ReplyMode::Structured);
    client.send(&request(Command::WRITE, 0, 512), &[7; 512]);
    wait(|| disk.held() == 1);
    let begun = Instant::now();
    let ended = serving.stop();
    assert!(begun.elapsed() < PATIENCE / 2);
    // The scripted disk lets go of what is cancelled or dropped; a real one may not.
    assert!(
        matches!(ended, Ok(()) | Err(ServerError::Unfinished(1))),
        "{ended:?}"
    );
    assert!(client.is_closed());
}

#[test]
fn a_client_that_is_gone_leaves_nothing_behind() {
    let disk = TestDisk::new(caps()).with_mode(Mode::Held, WaitKind::Fd);
    let serving = Serving::new(Arc::new(disk.clone()));
    let mut client = serving.client(ReplyMode::Structured);
    for _ in 0..5 {
        client.send(&request(Command::READ, 0, 512), &[]);
    }
    wait(|| disk.held() == 5);
    drop(client);
    serving.wait_connections(0);
    assert_eq!(serving.export.connections(), 0);
    disk.set_mode(Mode::Inline);
}

#[test]
fn a_disk_that_panics_ends_that_connection_alone() {
    let disk = TestDisk::new(caps()).with_mode(Mode::AtFlush, WaitKind::Fd);
    let serving = Serving::new(Arc::new(disk.clone()));
    let mut client = serving.client(ReplyMode::Structured);
    disk.set_panic();
    client.send(&request(Command::READ, 0, 512), &[]);
    assert!(client.is_closed());
    serving.wait_connections(0);
}

#[test]
fn twenty_clients_are_killed_under_load() {
    let disk = Arc::new(MemoryDisk::new(8 << 20).unwrap());
    let options = ServerOptions {
        connections: 64,
        ..ServerOptions::default()
    };
    let serving = Serving::with(disk, ExportOptions::default(), options);
    for round in 0..3 {
        let mut clients: Vec<_> = (0..20)
            .map(|_| serving.client(ReplyMode::Structured))
            .collect();
        for (seed, client) in (0..).zip(&mut clients) {
            for i in 0..16 {
                let data = pattern(seed, 64 << 10);
                let write = request(Command::WRITE, (seed % 8) << 20, data.len() as u64);
                client.send(&write, &data);
                client.send(&request(Command::READ, i << 16, 64 << 10), &[]);
            }
        }
        // While their replies are sent.
        drop(clients);
        serving.wait_connections(0);
        let mut client = serving.client(ReplyMode::Structured);
        for block in 0..8 {
            let read = client.read_at(block << 20, 64 << 10);
            let whole = (0..20).filter(|seed| seed % 8 == block);
            assert!(
                whole
                    .into_iter()
                    .any(|seed| read == pattern(seed, 64 << 10))
                    || round == 0 && read.iter().all(|byte| *byte == 0)
                    || mixed(&read, block),
                "{round} {block}"
            );
        }
        drop(client);
        serving.wait_connections(0);
    }
    serving.stop().unwrap();
}

/// Whether each sector is of one of the writes there: they were in flight at a time.
fn mixed(read: &[u8], block: u64) -> bool {
    let all: Vec<_> = (0..20)
        .filter(|seed| seed % 8 == block)
        .map(|seed| pattern(seed, 64 << 10))
        .collect();
    (0..read.len()).step_by(512).all(|at| {
        let sector = &read[at..at + 512];
        all.iter().any(|data| data[at..at + 512] == *sector)
    })
}

/// A client that sends without end, and is never waited for, does not keep a server from stopping.
#[test]
fn an_endless_option_does_not_delay_a_stop() {
    let serving = Serving::new(Arc::new(MemoryDisk::new(1 << 20).unwrap()));
    let mut client = common::Client::greet(serving.connect());
    let header = OptionHeader {
        kind: OptionKind::LIST,
        len: u32::MAX,
    };
    client.stream.write_all(&header.encode()).unwrap();
    let mut stream = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || while stream.write_all(&[0; 4096]).is_ok() {});
    wait(|| serving.handle.connections() == 1);
    let since = Instant::now();
    serving.stop().unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    sender.join().unwrap();
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lost connections, and servers that come again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod fake;
mod servers;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{read, run, wait, write};
use fake::{Act, Config, Fake, Gate};
use servers::Server;
use virtio_blk_core::disk::{
    Completion, Disk, DiskError, DiskEvent, IoBuf, IoQueue, Op, OpKind, Submit, Token,
};
use virtio_blk_nbd::proto::{Command, Errno, ExportFlags};
use virtio_blk_nbd::{NbdDisk, Unflushed};

fn submit(queue: &mut dyn IoQueue, token: u64, kind: OpKind, buf: IoBuf) {
    let token = Token(token);
    let submitted = queue.submit(Op { token, kind, buf });
    assert!(matches!(submitted, Submit::Queued), "{submitted:?}");
    queue.flush_batch().unwrap();
}

fn submit_write(queue: &mut dyn IoQueue, token: u64, offset: u64, byte: u8) {
    let kind = OpKind::Write { offset, fua: false };
    submit(queue, token, kind, IoBuf::from_vec(vec![byte; 512]));
}

/// Waits for `count` completions.
fn collect(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    while done.len() < count {
        if queue.reap(&mut done).unwrap() == 0 {
            wait(queue);
        }
    }
    assert_eq!(done.len(), count);
    done
}

fn flush(queue: &mut dyn IoQueue) -> Result<(), DiskError> {
    run(queue, OpKind::Flush, IoBuf::new()).result
}

#[test]
fn requests_in_flight_are_sent_again_in_order() {
    for tcp in [false, true] {
        let fake = Fake::start(Config {
            tcp,
            hook: Box::new(|number, request, _| match (number, request.offset / 512) {
                (0, 0..4) => Act::Swallow,
                (0, _) => Act::Close,
                _ => Act::Serve,
            }),
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
        let mut queue = disk.open_queue(8).unwrap();
        for at in 0..8 {
            submit_write(&mut *queue, at, at * 512, 0x40 + at as u8);
        }
        for completion in collect(&mut *queue, 8) {
            completion.result.unwrap();
        }
        let again: Vec<u64> = {
            let log = fake.shared.log.lock().unwrap();
            let again = log.iter().filter(|(number, _)| *number == 1);
            again.map(|(_, request)| request.offset / 512).collect()
        };
        assert_eq!(again, [0, 1, 2, 3, 4, 5, 6, 7]);
        for at in 0..8 {
            assert_eq!(
                read(&mut *queue, at * 512, 512).unwrap(),
                [0x40 + at as u8; 512]
            );
        }
    }
}

#[test]
fn newer_operations_wait_for_a_write_that_is_sent_again() {
    let gate = Arc::new(Gate::default());
    let (shut, first) = (gate.clone(), Arc::new(Mutex::new(true)));
    let fake = Fake::start(Config {
        hook: Box::new(move |_, request, _| {
            if request.command != Command::WRITE || request.offset != 512 || request.length != 1024
            {
                return Act::Serve;
            }
            if std::mem::take(&mut *first.lock().unwrap()) {
                return Act::Close;
            }
            Act::Wait(shut.clone())
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
    let mut one = disk.open_queue(8).unwrap();
    let mut two = disk.open_queue(8).unwrap();
    let old = IoBuf::from_vec(vec![0xAA; 1024]);
    submit(
        &mut *one,
        1,
        OpKind::Write {
            offset: 512,
            fua: false,
        },
        old,
    );
    fake.wait_for(1, |_, request| request.length == 1024);
    // The loss is noticed, and the write sent again.
    let mut done = Vec::new();
    let sent = |count| {
        let log = fake.shared.log.lock().unwrap();
        log.iter()
            .filter(|(_, request)| request.length == 1024)
            .count()
            == count
    };
    while !sent(2) {
        assert_eq!(one.reap(&mut done).unwrap(), 0);
    }
    // On the same connection as the write, and on another.
    submit_write(&mut *one, 2, 1024, 0xBB);
    submit_write(&mut *two, 3, 512, 0xCC);
    submit(
        &mut *two,
        4,
        OpKind::Read { offset: 512 },
        IoBuf::zeroed(512),
    );
    submit_write(&mut *two, 5, 8192, 0xDD);
    let elsewhere = collect(&mut *two, 1).pop().unwrap();
    assert_eq!(
        elsewhere.token,
        Token(5),
        "what does not overlap does not wait"
    );
    assert!(
        fake.shared
            .log
            .lock()
            .unwrap()
            .iter()
            .all(|(_, r)| r.offset == 8192 || r.length == 1024)
    );
    gate.open();
    for completion in collect(&mut *one, 2) {
        completion.result.unwrap();
    }
    for completion in collect(&mut *two, 2) {
        completion.result.unwrap();
    }
    assert_eq!(read(&mut *one, 512, 512).unwrap(), [0xCC; 512]);
    assert_eq!(read(&mut *one, 1024, 512).unwrap(), [0xBB; 512]);
}

#[test]
fn a_flush_does_not_hide_what_another_server_may_have_lost() {
    for (tcp, policy, flushed, good) in [
        (true, Unflushed::Fail, false, false),
        (true, Unflushed::Fail, true, true),
        (true, Unflushed::Trust, false, true),
        // The server's process is seen to be the same.
        (false, Unflushed::Fail, false, true),
    ] {
        let fake = Fake::start(Config {
            tcp,
            hook: Box::new(|number, request, _| match (number, request.command) {
                (0, Command::READ) => Act::Close,
                _ => Act::Serve,
            }),
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options().reconnect(20).unflushed(policy)).unwrap();
        let mut queue = disk.open_queue(8).unwrap();
        write(&mut *queue, 0, vec![1; 512]).unwrap();
        if flushed {
            flush(&mut *queue).unwrap();
        }
        // The connection is lost, and made anew.
        read(&mut *queue, 0, 512).unwrap();
        let case = format!("tcp {tcp}, {policy:?}, flushed {flushed}");
        for _ in 0..2 {
            let result = flush(&mut *queue);
            assert_eq!(result.is_ok(), good, "{case}: {result:?}");
            assert_eq!(disk.flush_error().is_none(), good, "{case}");
            if !good {
                assert!(
                    matches!(result, Err(DiskError::FlushLost { .. })),
                    "{result:?}"
                );
            }
        }
        let kind = OpKind::Write {
            offset: 0,
            fua: true,
        };
        let stable = run(&mut *queue, kind, IoBuf::zeroed(512)).result;
        assert_eq!(stable.is_ok(), good, "{case}");
        // The rest continues.
        write(&mut *queue, 0, vec![2; 512]).unwrap();
    }
}

/// A flush that was in flight when the connection was lost is no exception.
#[test]
fn a_flush_that_is_sent_again_does_not_hide_it_either() {
    let fake = Fake::start(Config {
        tcp: true,
        hook: Box::new(|number, request, _| match (number, request.command) {
            (0, Command::FLUSH) => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    write(&mut *queue, 0, vec![1; 512]).unwrap();
    let result = flush(&mut *queue);
    assert!(
        matches!(result, Err(DiskError::FlushLost { .. })),
        "{result:?}"
    );
}

/// What another connection had, which did not notice anything, is missed as well.
#[test]
fn the_loss_is_noticed_on_whichever_connection() {
    let fake = Fake::start(Config {
        tcp: true,
        hook: Box::new(|_, request, _| match (request.command, request.offset) {
            (Command::READ, 4096) => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut one = disk.open_queue(8).unwrap();
    let mut two = disk.open_queue(8).unwrap();
    write(&mut *one, 0, vec![1; 512]).unwrap();
    read(&mut *two, 4096, 512).unwrap_err();
    let since = Instant::now();
    while read(&mut *two, 0, 512).is_err() {
        assert!(since.elapsed() < Duration::from_secs(20));
    }
    assert!(flush(&mut *two).is_err());
    assert!(flush(&mut *one).is_err());
}

#[test]
fn operations_wait_for_the_window_and_fail_then() {
    let fake = Fake::start(Config {
        hook: Box::new(|number, _, _| match number {
            0 => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(1)).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    fake.shared.refuses.store(true, Ordering::SeqCst);
    let since = Instant::now();
    let error = read(&mut *queue, 0, 512).unwrap_err();
    assert!(
        since.elapsed() >= Duration::from_secs(1),
        "{error} after {:?}",
        since.elapsed()
    );
    // The window is over.
    let since = Instant::now();
    read(&mut *queue, 0, 512).unwrap_err();
    assert!(since.elapsed() < Duration::from_millis(500));
    // The server comes back, and is found.
    fake.shared.refuses.store(false, Ordering::SeqCst);
    while read(&mut *queue, 1024, 512).is_err() {
        assert!(since.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_a_window_operations_fail_at_once() {
    let fake = Fake::start(Config {
        hook: Box::new(|number, _, _| match number {
            0 => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    assert_eq!(
        read(&mut *queue, 0, 512).unwrap_err().errno(),
        Some(libc::ECONNRESET)
    );
}

#[test]
fn a_server_that_shuts_down_has_done_nothing() {
    let fake = Fake::start(Config {
        hook: Box::new(|number, _, _| match number {
            0 => Act::Fail(Errno::SHUTDOWN),
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    assert_eq!(read(&mut *queue, 512, 512).unwrap(), [1; 512]);
    assert_eq!(fake.connections(), 2);
}

#[test]
fn an_export_that_can_less_is_not_used() {
    let fake = Fake::start(Config {
        hook: Box::new(|_, request, _| match request.offset {
            0 => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    fake.set(|config| config.flags = config.flags | ExportFlags::READ_ONLY);
    read(&mut *queue, 0, 512).unwrap_err();
    let before = fake.connections();
    let since = Instant::now();
    while fake.connections() < before + 2 {
        assert!(since.elapsed() < Duration::from_secs(20));
        read(&mut *queue, 512, 512).unwrap_err();
    }
    fake.set(|config| config.flags = config.flags.without(ExportFlags::READ_ONLY));
    while read(&mut *queue, 512, 512).is_err() {
        assert!(since.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_new_size_is_told() {
    let fake = Fake::start(Config {
        hook: Box::new(|number, _, _| match number {
            0 => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let mine = events.clone();
    disk.listen(Arc::new(move |event| mine.lock().unwrap().push(event)));
    let mut queue = disk.open_queue(8).unwrap();
    let grow = |size: usize| {
        fake.shared.data.lock().unwrap().resize(size, 9);
        fake.set(|config| config.size = size);
    };
    grow(2 << 20);
    // Seen when the connection is made anew,
    read(&mut *queue, 0, 512).unwrap();
    assert_eq!(disk.caps().capacity, 4096);
    assert_eq!(read(&mut *queue, 2_096_640, 512).unwrap(), [9; 512]);
    // and when somebody asks.
    grow(3 << 20);
    disk.read_size().unwrap();
    assert_eq!(
        *events.lock().unwrap(),
        [
            DiskEvent::Resized { capacity: 4096 },
            DiskEvent::Resized { capacity: 6144 }
        ]
    );
}

/// Two queues write and read back what they wrote, while the server is killed again and again.
fn killed(mut server: Server, rounds: u32) {
    let options = server.options().reconnect(60).unflushed(Unflushed::Trust);
    let disk = NbdDisk::open(&options).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2_u64 {
            let mut queue = disk.open_queue(8).unwrap();
            let stop = &stop;
            scope.spawn(move || {
                let mut round = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let base = (round % 64 * 2 + number) * 4096;
                    for part in 0..8 {
                        submit_write(&mut *queue, part, base + part * 512, (round + part) as u8);
                    }
                    for completion in collect(&mut *queue, 8) {
                        completion.result.unwrap();
                    }
                    if round.is_multiple_of(16) {
                        flush(&mut *queue).unwrap();
                    }
                    let data = read(&mut *queue, base, 4096).unwrap();
                    for (part, bytes) in data.chunks(512).enumerate() {
                        assert!(
                            bytes
                                .iter()
                                .all(|byte| *byte == (round + part as u64) as u8)
                        );
                    }
                    round += 1;
                }
            });
        }
        for _ in 0..rounds {
            std::thread::sleep(Duration::from_millis(60));
            server.kill();
            server.run();
        }
        std::thread::sleep(Duration::from_millis(60));
        stop.store(true, Ordering::Relaxed);
    });
}

fn rounds() -> u32 {
    if fake::is_long() { 40 } else { 3 }
}

#[test]
fn nbdkit_is_killed_and_comes_again() {
    for tcp in [false, true] {
        killed(Server::nbdkit(1 << 20, tcp, &[], &[]), rounds());
    }
}

#[test]
fn qemu_nbd_is_killed_and_comes_again() {
    killed(Server::qemu_nbd(1 << 20, &["--shared=4"]), rounds());
    // One connection for both queues.
    killed(Server::qemu_nbd(1 << 20, &["--shared=1"]), rounds());
}

#[test]
fn what_the_server_fails_fails_here_and_nothing_else() {
    let errors = ["error-pwrite=ENOSPC", "error-pwrite-rate=50%", "rdelay=2ms"];
    let server = Server::nbdkit(1 << 20, false, &["error", "delay"], &errors);
    let disk = NbdDisk::open(&server.options()).unwrap();
    let mut queue = disk.open_queue(8).unwrap();
    let (mut good, mut bad) = (0, 0);
    while good < 20 || bad < 20 {
        match write(&mut *queue, 0, vec![good as u8; 512]) {
            Ok(()) => {
                good += 1;
                assert_eq!(read(&mut *queue, 0, 512).unwrap(), [good as u8 - 1; 512]);
            }
            Err(error) => {
                bad += 1;
                assert!(error.is_no_space(), "{error}");
            }
        }
    }
}

#[test]
fn a_connection_that_was_lost_while_nobody_used_it_fails_nothing() {
    let mut server = Server::qemu_nbd(1 << 20, &["--shared=1"]);
    let disk = NbdDisk::open(&server.options()).unwrap();
    for round in 0..3 {
        let mut queue = disk.open_queue(4).unwrap();
        write(&mut *queue, 0, vec![round; 512]).unwrap();
        flush(&mut *queue).unwrap();
        drop(queue);
        server.kill();
        server.run();
    }
    // What was flushed is not missed, and what was not is.
    let mut queue = disk.open_queue(4).unwrap();
    flush(&mut *queue).unwrap();
    write(&mut *queue, 0, vec![9; 512]).unwrap();
    drop(queue);
    server.kill();
    server.run();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(
        flush(&mut *queue),
        Err(DiskError::FlushLost { .. })
    ));
}

/// The end of one server and the next one, between two queues: what the first had is missed on the second, too, though
/// nobody has looked at the first connection since.
#[test]
fn a_queue_that_is_opened_later_finds_another_server() {
    let mut server = Server::qemu_nbd(1 << 20, &["--shared=4"]);
    let options = server.options().reconnect(20);
    let disk = NbdDisk::open(&options).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    write(&mut *one, 0, vec![1; 512]).unwrap();
    let mut two = disk.open_queue(4).unwrap();
    flush(&mut *two).unwrap();
    write(&mut *one, 0, vec![2; 512]).unwrap();
    server.kill();
    server.run();
    let mut three = disk.open_queue(4).unwrap();
    let result = flush(&mut *three);
    assert!(
        matches!(result, Err(DiskError::FlushLost { .. })),
        "{result:?}"
    );
    drop(disk);
    // With trust it is another one, and no loss.
    let disk = NbdDisk::open(&options.unflushed(Unflushed::Trust)).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    write(&mut *one, 0, vec![3; 512]).unwrap();
    server.kill();
    server.run();
    let mut two = disk.open_queue(4).unwrap();
    flush(&mut *two).unwrap();
    flush(&mut *one).unwrap();
}

/// One connection was made anew: what the other one's server says after that may be of before.
#[test]
fn nothing_is_believed_that_another_server_may_have_overtaken() {
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let fake = Fake::start(Config {
        tcp: true,
        hook: Box::new(move |number, request, _| match (number, request.offset) {
            (0, 8192) => Act::Close,
            (1, 0) => Act::Wait(shut.clone()),
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    let mut two = disk.open_queue(4).unwrap();
    // Its server has read it, and says so late.
    submit(&mut *two, 1, OpKind::Read { offset: 0 }, IoBuf::zeroed(512));
    fake.wait_for(1, |number, _| number == 1);
    // The first connection gets a successor, on which something new is written.
    read(&mut *one, 8192, 512).unwrap();
    write(&mut *one, 0, vec![0x77; 512]).unwrap();
    gate.open();
    let done = collect(&mut *two, 1).pop().unwrap();
    done.result.unwrap();
    assert_eq!(done.buf.to_vec(), [0x77; 512]);
}

/// An operation that waits for a write on another connection fails when its own window is over.
#[test]
fn what_is_held_does_not_wait_beyond_the_window() {
    let fake = Fake::start(Config {
        hook: Box::new(|number, request, _| match (number, request.command) {
            // The write gets no reply, also when it is sent again.
            (0, Command::WRITE) => Act::Close,
            (_, Command::WRITE) => Act::Swallow,
            (1, Command::READ) => Act::Close,
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().reconnect(1)).unwrap();
    let mut one = disk.open_queue(4).unwrap();
    let mut two = disk.open_queue(4).unwrap();
    submit_write(&mut *one, 1, 0, 1);
    fake.wait_for(1, |_, request| request.command == Command::WRITE);
    let mut done = Vec::new();
    let sent_again = |fake: &Fake| {
        let log = fake.shared.log.lock().unwrap();
        log.iter()
            .any(|(number, request)| *number == 2 && request.command == Command::WRITE)
    };
    while !sent_again(&fake) {
        assert_eq!(one.reap(&mut done).unwrap(), 0);
    }
    fake.shared.refuses.store(true, Ordering::SeqCst);
    submit_write(&mut *two, 2, 0, 2);
    submit(
        &mut *two,
        3,
        OpKind::Read { offset: 4096 },
        IoBuf::zeroed(512),
    );
    let since = Instant::now();
    for completion in collect(&mut *two, 2) {
        completion.result.unwrap_err();
    }
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn a_connection_whose_server_does_not_reply_is_given_up_in_time() {
    for (window, good) in [(20, true), (0, false)] {
        let fake = Fake::start(Config {
            hook: Box::new(|number, request, _| match (number, request.offset) {
                (0, 512) => Act::Swallow,
                _ => Act::Serve,
            }),
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options().reconnect(window).timeout(1)).unwrap();
        let mut queue = disk.open_queue(4).unwrap();
        submit_write(&mut *queue, 1, 512, 7);
        fake.wait_for(1, |_, _| true);
        // Others have their replies meanwhile, which does not help this one.
        let since = Instant::now();
        let mut done = Vec::new();
        while done.is_empty() {
            assert!(since.elapsed() < Duration::from_secs(20));
            if since.elapsed() < Duration::from_millis(500) {
                submit(
                    &mut *queue,
                    2,
                    OpKind::Read { offset: 0 },
                    IoBuf::zeroed(512),
                );
                let read = collect(&mut *queue, 1).pop().unwrap();
                assert_eq!(read.token, Token(2));
            }
            if queue.reap(&mut done).unwrap() == 0 {
                wait(&*queue);
            }
        }
        assert_eq!(done[0].token, Token(1));
        assert_eq!(done[0].result.is_ok(), good, "{:?}", done[0].result);
        if !good {
            let error = done[0].result.as_ref().unwrap_err();
            assert_eq!(error.errno(), Some(libc::ETIMEDOUT));
        }
        let took = since.elapsed();
        assert!(took >= Duration::from_millis(900), "{took:?}");
        assert_eq!(queue.deadline(), None, "nothing is in flight");
    }
}

/// A long transfer that makes progress is no request without a reply.
#[test]
fn a_slow_reply_is_a_reply() {
    let fake = Fake::start(Config {
        size: 4 << 20,
        hook: Box::new(|_, request, mode| match request.length {
            2_097_152 => {
                let reply = fake::data(request, mode, true, request.offset, &[6; 2 << 20]);
                Act::Dribble(reply, 30, Duration::from_millis(100))
            }
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options().timeout(1)).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(
        read(&mut *queue, 0, 2 << 20).unwrap(),
        vec![6; 2 << 20].as_slice()
    );
    assert_eq!(fake.connections(), 1);
}

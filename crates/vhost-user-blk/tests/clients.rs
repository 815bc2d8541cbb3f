// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that vanish, and a server that stops. One test, as it counts this process's threads and
//! descriptors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use common::{Served, count, log, serve, test_disk, wait_for};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vblk_testing::frontend::Client;
use virtio_blk_core::testdisk::Mode;
use virtio_blk_driver::request::Request;

/// Descriptors and threads.
fn resources() -> (usize, usize) {
    (count("fd"), count("task"))
}

fn vanishing() {
    let (disk, served) = serve();
    served.assert_serves();
    served.wait_idle();
    let before = resources();
    for round in 0..100 {
        let mut running = served.running(4);
        disk.set_mode(Mode::Held);
        for queue in &mut running.queues {
            for sector in 0..4 {
                queue.send(&Request::write(sector, &[round; 512])).unwrap();
            }
        }
        // Some of the requests are taken, or all.
        wait_for("requests to be taken", || {
            disk.held() > usize::from(round % 16)
        });
        match round % 3 {
            0 => drop(running),
            1 => running.client.stream().shutdown(Shutdown::Write).unwrap(),
            _ => running.client.stream().shutdown(Shutdown::Both).unwrap(),
        }
        disk.set_mode(Mode::AtFlush);
        // Requests may still be taken: until there is nobody to take them.
        wait_for("the client to be gone", || {
            disk.release(64);
            !served.handle.is_connected()
        });
        served.assert_serves();
        served.wait_idle();
    }
    assert_eq!(resources(), before);
}

fn stopping() {
    let before = resources();
    // With no client.
    let (_disk, mut served) = serve();
    served.handle.stop();
    served.join();
    assert!(!served.socket().exists(), "the socket is removed");
    drop(served);
    // Twice, with an idle client, and one that waits for it to leave.
    let (_disk, mut served) = serve();
    let mut running = served.running(2);
    let waiting = UnixStream::connect(served.socket()).unwrap();
    served.handle.stop();
    served.handle.stop();
    served.join();
    assert!(running.client.capacity().is_err());
    drop((running, waiting, served));
    // With requests in flight: they are answered.
    let (disk, mut served) = serve();
    let mut running = served.running(1);
    disk.set_mode(Mode::Held);
    for sector in 0..8 {
        running.queues[0]
            .send(&Request::write(sector, &[1; 512]))
            .unwrap();
    }
    wait_for("the requests to be taken", || disk.held() == 8);
    served.handle.stop();
    disk.release(8);
    served.join();
    for _ in 0..8 {
        assert!(
            running.queues[0]
                .driver
                .poll()
                .unwrap()
                .expect("an answer")
                .is_ok()
        );
    }
    drop((running, served));
    // While clients connect.
    for round in 0..50 {
        let mut served = Served::new(Arc::new(test_disk()));
        let socket = served.socket();
        let connecting = std::thread::spawn(move || Client::connect(&socket).map(|_| ()));
        for _ in 0..round * 20 {
            std::hint::spin_loop();
        }
        served.handle.stop();
        served.join();
        // The client finds a server or none; it may wait for one that comes back.
        let listener = std::os::unix::net::UnixListener::bind(served.socket()).unwrap();
        listener.set_nonblocking(true).unwrap();
        wait_for("the client to end", || {
            let _ = listener.accept();
            connecting.is_finished()
        });
        let _ = connecting.join().unwrap();
    }
    assert_eq!(resources(), before);
}

/// A client comes while the process has no descriptor left.
fn short_of_descriptors() {
    let (_disk, served) = serve();
    let stream = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let address = SocketAddrUnix::new(served.socket()).unwrap();
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(3),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    connect(&stream, &address).unwrap();
    // Whatever the server does now, it can't get a descriptor.
    wait_for("the server to notice", || {
        log::text().contains("no client can be accepted")
    });
    let connected = served.handle.is_connected();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(!connected);
    wait_for("the client to be accepted", || served.handle.is_connected());
    drop(stream);
    served.assert_serves();
}

/// A message's descriptors get lost as the process can have no more.
fn descriptors_lost_on_the_way() {
    let (_disk, served) = serve();
    let client = Client::connect(&served.socket()).unwrap();
    let mut wire = common::wire(&client);
    let event = vblk_testing::frontend::event().unwrap();
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(3),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    wire.message(SET_VRING_CALL, &[0], &[event.as_raw_fd()]);
    let said = wire.wait_for_end();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(said.unwrap(), b"");
    let log = log::text();
    assert!(
        log.contains("SET_VRING_CALL: descriptors") && log.contains("ulimit -n"),
        "{log}"
    );
    served.assert_serves();
}

const SET_VRING_CALL: u32 = 13;

#[test]
fn clients_and_servers_leave_nothing_behind() {
    log::keep();
    vanishing();
    stopping();
    short_of_descriptors();
    descriptors_lost_on_the_way();
}

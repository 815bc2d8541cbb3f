// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Clients that take memory away which they share: they lose their session, and the next one is served.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use common::{QUEUE_SIZE, Running, serve, wait_for};
use vblk_testing::frontend::{Client, Guest, InFlight, LOG_ALL, memory_file};
use vhost::VhostBackend;
use vhost::VhostUserDirtyLogRegion;
use vhost::vhost_user::message::VhostUserInflight;
use virtio_blk_core::testdisk::Mode;
use virtio_blk_driver::request::Request;

/// Shrinks all memory of a guest. From then on nobody in this process may touch it, but for the server.
fn shrink(guest: &Guest, len: u64) {
    for region in guest.regions() {
        // SAFETY: the guest keeps the descriptor open.
        let file = unsafe { BorrowedFd::borrow_raw(region.mmap_handle) };
        rustix::fs::ftruncate(file, len).unwrap();
    }
}

/// The server hangs up on the client, and is idle then.
fn sent_away(mut running: Running, served: &common::Served) {
    served.wait_idle();
    assert!(running.client.capacity().is_err());
    drop(running);
    served.assert_serves();
}

#[test]
fn rings_that_are_gone() {
    let (_disk, served) = serve();
    for _ in 0..3 {
        let mut running = served.running(2);
        running.queues[1].write(0, &[1; 512]).unwrap();
        shrink(&running.guest, 0);
        running.queues[1].kick.write(1).unwrap();
        sent_away(running, &served);
    }
}

#[test]
fn memory_that_is_gone_while_requests_are_with_the_disk() {
    let (disk, served) = serve();
    let mut running = served.running(2);
    disk.set_mode(Mode::Held);
    for queue in &mut running.queues {
        queue.send(&Request::write(0, &[1; 512])).unwrap();
        queue.send(&Request::read(0, 512)).unwrap();
    }
    wait_for("the requests to be taken", || disk.held() == 4);
    shrink(&running.guest, 0);
    disk.set_mode(Mode::AtFlush);
    disk.release(4);
    sent_away(running, &served);
}

#[test]
fn rings_that_are_gone_before_they_are_started() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut guest = common::guest();
    client.set_memory(&guest).unwrap();
    let queue = guest.queue(QUEUE_SIZE, 512, 0).unwrap();
    shrink(&guest, 0);
    // Which step fails is the server's business.
    let _ = client.start(0, &queue, 0);
    served.wait_idle();
    served.assert_serves();
}

#[test]
fn an_in_flight_area_that_is_gone() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut guest = common::guest();
    client.set_memory(&guest).unwrap();
    // Not the server's own, which is sealed.
    let area = client.get_in_flight(1, QUEUE_SIZE).unwrap();
    let file: File = memory_file(area.area.mmap_size).unwrap();
    let area = VhostUserInflight::new(area.area.mmap_size, 0, 1, QUEUE_SIZE);
    let area = InFlight { area, file };
    client.set_in_flight(&area).unwrap();
    let mut queues = common::start(&mut client, &mut guest, 1);
    queues[0].write(0, &[1; 512]).unwrap();
    area.file.set_len(0).unwrap();
    queues[0].write(0, &[1; 512]).unwrap();
    let running = Running {
        client,
        guest,
        queues,
    };
    sent_away(running, &served);
}

#[test]
fn a_log_that_is_gone() {
    let (_disk, served) = serve();
    let mut running = served.running(1);
    // Pages of the first region; the ring of the second lies beyond.
    let log = memory_file(4096).unwrap();
    let region = VhostUserDirtyLogRegion {
        mmap_size: 4096,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    running
        .client
        .frontend()
        .set_log_base(0, Some(region))
        .unwrap();
    let features = running.client.acked;
    running.client.set_features(features | LOG_ALL).unwrap();
    running.queues[0].read(0, 512).unwrap();
    log.set_len(0).unwrap();
    running.queues[0].read(0, 512).unwrap();
    sent_away(running, &served);
}

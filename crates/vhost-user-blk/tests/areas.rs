// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an in-flight area carries from one server to the next, and what it does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{
    QUEUE_SIZE, QUEUES, Running, Served, guest, heads_in_flight, options, test_disk, wait_for,
};
use vblk_testing::frontend::{Client, InFlight, Queue};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_blk_core::device::DeviceOptions;
use virtio_blk_core::testdisk::{Break, Mode, TestDisk};
use virtio_blk_driver::request::Request;
use virtio_blk_driver::wire::S_IOERR;

/// A client with an area that was asked for with `asked`, and a queue of `size`.
fn connect(socket: &Path, asked: u16, size: u16) -> (Running, InFlight) {
    let mut client = Client::connect(socket).unwrap();
    let mut guest = guest();
    client.set_memory(&guest).unwrap();
    let area = client.get_in_flight(1, asked).unwrap();
    client.set_in_flight(&area).unwrap();
    let queue = guest.queue(size, 4096, 0).unwrap();
    client.start(0, &queue, 0).unwrap();
    let running = Running {
        client,
        guest,
        queues: vec![queue],
    };
    (running, area)
}

/// Connects again, as after the server was lost.
fn resume(socket: &Path, running: &mut Running, area: &InFlight) {
    running.client = Client::connect(socket).unwrap();
    running.client.set_in_flight(area).unwrap();
    running.client.set_memory(&running.guest).unwrap();
    running.client.start(0, &running.queues[0], 0).unwrap();
}

fn send_writes(queue: &mut Queue, count: u8) {
    for sector in 0..count {
        let data = [sector + 1; 512];
        let write = Request::write(sector.into(), &data);
        queue.send(&write.indirect(true)).unwrap();
    }
}

fn assert_written(disk: &TestDisk, count: u8) {
    for sector in 0..count {
        let content = disk.content(512 * usize::from(sector), 512);
        assert_eq!(content, [sector + 1; 512], "sector {sector}");
    }
}

fn bytes(area: &InFlight) -> Vec<u8> {
    let mut bytes = vec![0; area.area.mmap_size as usize];
    area.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// QEMU asks for an area for the queue size that it offers to the operating system; firmware makes a larger ring.
#[test]
fn a_ring_larger_than_the_area_was_asked_for() {
    const ASKED: u16 = 16;
    const WRITES: u8 = 40;
    let disk = test_disk();
    let served = Served::new(Arc::new(disk.clone()));
    let (mut running, area) = connect(&served.socket(), ASKED, QUEUE_SIZE);
    assert_eq!({ area.area.queue_size }, ASKED);
    running.queues[0].write(0, &[0xee; 512]).unwrap();
    // The server is lost with requests in flight whose heads no area of that size would have room for.
    disk.set_mode(Mode::Held);
    send_writes(&mut running.queues[0], WRITES);
    wait_for("the requests to be taken", || {
        disk.held() == usize::from(WRITES)
    });
    drop(served);
    disk.set_mode(Mode::AtFlush);
    let served = Served::new(Arc::new(disk.clone()));
    resume(&served.socket(), &mut running, &area);
    for _ in 0..WRITES {
        assert!(running.queues[0].answer().unwrap().is_ok());
    }
    assert_written(&disk, WRITES);
    assert!(running.queues[0].driver.poll().unwrap().is_none(), "once");
    // The operating system makes a ring as it was told.
    running.client.stop(0).unwrap();
    let small = running.guest.queue(ASKED, 4096, 0).unwrap();
    running.client.start(0, &small, 0).unwrap();
    running.queues = vec![small];
    disk.set_mode(Mode::Held);
    send_writes(&mut running.queues[0], 4);
    wait_for("the requests to be taken", || disk.held() == 4);
    assert_eq!(heads_in_flight(&area).len(), 4);
    drop(served);
    disk.set_mode(Mode::AtFlush);
    let served = Served::new(Arc::new(disk));
    resume(&served.socket(), &mut running, &area);
    for _ in 0..4 {
        assert!(running.queues[0].answer().unwrap().is_ok());
    }
    running.queues[0].write(9, &[9; 512]).unwrap();
    assert!(heads_in_flight(&area).is_empty());
}

/// No ring is larger than the device's.
#[test]
fn a_ring_larger_than_the_device_allows_is_refused() {
    let served = Served::new(Arc::new(test_disk()));
    let (mut running, _area) = connect(&served.socket(), 16, 16);
    running.client.stop(0).unwrap();
    let large = running.guest.queue(2 * QUEUE_SIZE, 512, 0).unwrap();
    assert!(running.client.start(0, &large, 0).is_err());
}

/// Requests that a server with a failing disk was to execute again.
#[test]
fn what_a_failed_disk_did_not_take_is_left_to_the_next_server() {
    const WRITES: u8 = 6;
    for another_ring in [false, true] {
        let disk = test_disk();
        let served = Served::new(Arc::new(disk.clone()));
        let (mut running, area) = connect(&served.socket(), QUEUE_SIZE, QUEUE_SIZE);
        disk.set_mode(Mode::Held);
        send_writes(&mut running.queues[0], WRITES);
        wait_for("the requests to be taken", || {
            disk.held() == usize::from(WRITES)
        });
        drop(served);
        // It takes one of them, has no room for a second, and breaks.
        disk.set_room(1);
        let served = Served::new(Arc::new(disk.clone()));
        resume(&served.socket(), &mut running, &area);
        wait_for("a request to be taken", || disk.held() == 1);
        disk.set_break(Break::Reap);
        let queue = &mut running.queues[0];
        queue.kick.write(1).unwrap();
        wait_for("the queue to break", || queue.err.read().is_ok());
        let failed = std::iter::from_fn(|| queue.driver.poll().unwrap())
            .inspect(|done| assert_eq!(done.status, S_IOERR))
            .count();
        let left = usize::from(WRITES) - failed;
        assert!(failed != 0 && left != 0, "{failed} failed");
        assert_eq!(heads_in_flight(&area).len(), left);
        running.client.stop(0).unwrap();
        assert_eq!(heads_in_flight(&area).len(), left);
        disk.set_mode(Mode::AtFlush);
        if another_ring {
            // A driver that begins anew does not wait for them.
            let ring = running.guest.queue(QUEUE_SIZE, 512, 0).unwrap();
            running.client.start(0, &ring, 0).unwrap();
            assert!(heads_in_flight(&area).is_empty());
            running.queues = vec![ring];
        } else {
            drop(served);
            disk.set_room(usize::MAX);
            let served = Served::new(Arc::new(disk.clone()));
            resume(&served.socket(), &mut running, &area);
            for _ in 0..left {
                assert!(running.queues[0].answer().unwrap().is_ok());
            }
            running.queues[0].write(9, &[9; 512]).unwrap();
            assert!(heads_in_flight(&area).is_empty());
            continue;
        }
        disk.set_room(usize::MAX);
        running.queues[0].write(9, &[9; 512]).unwrap();
    }
}

/// A client whose guest was told something else by another server binds the server, and no client after it.
#[test]
fn the_next_client_is_told_of_the_server_itself() {
    let first = Served::new(Arc::new(test_disk()));
    let (running, area) = connect(&first.socket(), QUEUE_SIZE, QUEUE_SIZE);
    drop((running, first));
    let more = DeviceOptions {
        queues: 2 * QUEUES,
        queue_size: 2 * QUEUE_SIZE,
        seg_max: Some(200),
        ..options()
    };
    let disk = test_disk();
    let served = Served::with_device(Arc::new(disk.clone()), more);
    let own = served.device.guest_abi();
    let mut client = Client::connect(&served.socket()).unwrap();
    assert_eq!(
        client.frontend().get_queue_num().unwrap(),
        2 * u64::from(QUEUES)
    );
    client.set_in_flight(&area).unwrap();
    assert_ne!(served.device.guest_abi(), own);
    assert_eq!(
        client.frontend().get_queue_num().unwrap(),
        u64::from(QUEUES)
    );
    assert!(client.get_in_flight(2 * QUEUES, QUEUE_SIZE).is_err());
    drop(client);
    served.wait_idle();
    assert_eq!(served.device.guest_abi(), own);
    // What its guest was told stays as it was, whatever changes now.
    let record = bytes(&area);
    disk.resize(2 * common::SECTORS);
    assert_eq!(bytes(&area), record);
    let all = VhostUserProtocolFeatures::all();
    let mut client = Client::greet(&served.socket(), all).unwrap();
    assert_eq!(
        client.frontend().get_queue_num().unwrap(),
        2 * u64::from(QUEUES)
    );
    drop(client);
    let mut client = Client::connect(&served.socket()).unwrap();
    let large = client.get_in_flight(2 * QUEUES, 2 * QUEUE_SIZE).unwrap();
    client.set_in_flight(&large).unwrap();
    let config = client.config(12, 4).unwrap();
    assert_eq!(config, 200u32.to_le_bytes(), "seg_max");
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory exchanged under I/O, the log of dirty pages, and the in-flight area.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use common::{QUEUE_SIZE, QUEUES, Served, mapped, serve, start, test_disk, wait_for};
use vblk_testing::frontend::{Client, Guest, InFlight, LOG_ALL, Queue, memory_file};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use virtio_blk_core::runner::InFlightArea;
use virtio_blk_core::testdisk::Mode;
use virtio_blk_driver::request::Request;

#[test]
fn a_new_table_replaces_the_old_one_under_io() {
    let (disk, served) = serve();
    let mut running = served.running(2);
    // The same ring stays where it is; the second region is another one.
    let more = Guest::new(&[(1 << 40, 1 << 20)]).unwrap();
    disk.set_mode(Mode::Held);
    for queue in &mut running.queues {
        queue.send(&Request::write(0, &[1; 512])).unwrap();
        queue.send(&Request::read(0, 512)).unwrap();
    }
    wait_for("the requests to be taken", || disk.held() == 4);
    assert_eq!(mapped(&running.guest), 4);
    running
        .client
        .frontend()
        .add_mem_region(&more.regions()[0])
        .unwrap();
    assert_eq!(mapped(&more), 2);
    let mut table = running.guest.regions();
    table.truncate(1);
    running.client.frontend().set_mem_table(&table).unwrap();
    disk.set_mode(Mode::AtFlush);
    disk.release(4);
    for queue in &mut running.queues {
        assert!(queue.answer().unwrap().is_ok());
        assert!(queue.answer().unwrap().is_ok());
        // More than one request, so that nothing of the old map is left anywhere.
        for sector in 0..10 {
            queue.write(sector, &[1; 512]).unwrap();
        }
    }
    // Of the table's region the server has the new mapping only; of the others none.
    wait_for("the old memory to be unmapped", || {
        mapped(&running.guest) == 3
    });
    assert_eq!(mapped(&more), 1);
    drop(running.client);
    served.wait_idle();
    assert_eq!(mapped(&running.guest), 2);
}

/// A listener is told of memory before requests use it, and that it is gone.
#[test]
fn a_listener_is_told_of_the_memory() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    let served = Served::with(Arc::new(test_disk()), |server| {
        server.on_memory(move |memory| {
            let ranges: Vec<_> = memory.iter().map(|(at, m)| (*at, m.len())).collect();
            sink.lock().unwrap().push(ranges);
        })
    });
    let mut running = served.running(1);
    running.queues[0].write(0, &[1; 512]).unwrap();
    let more = Guest::new(&[(1 << 40, 1 << 20)]).unwrap();
    let region = more.regions()[0];
    let frontend = running.client.frontend();
    frontend.add_mem_region(&region).unwrap();
    frontend.remove_mem_region(&region).unwrap();
    drop(running.client);
    served.wait_idle();
    let both = vec![(0, 2 << 20), (1 << 32, 1 << 20)];
    let mut three = both.clone();
    three.push((1 << 40, 1 << 20));
    assert_eq!(*told.lock().unwrap(), [both.clone(), three, both, vec![]]);
}

/// QEMU with memory slots removes what changed, and then adds it again.
#[test]
fn a_ring_waits_while_its_memory_is_taken_away() {
    let (disk, served) = serve();
    let mut running = served.running(2);
    for round in 0..20u8 {
        // Some requests are in flight, with data in the memory that goes.
        disk.set_mode(Mode::Held);
        for queue in &mut running.queues {
            queue.send(&Request::write(0, &[round; 512])).unwrap();
        }
        wait_for("the requests to be taken", || disk.held() == 2);
        disk.set_mode(Mode::AtFlush);
        let releasing = std::thread::spawn({
            let disk = disk.clone();
            move || disk.release(2)
        });
        running.client.remove_memory(&running.guest).unwrap();
        releasing.join().unwrap();
        wait_for("the memory to be unmapped", || mapped(&running.guest) == 2);
        for queue in &mut running.queues {
            // Of the time before; then one that waits.
            assert!(queue.answer().unwrap().is_ok());
            queue.send(&Request::write(1, &[round; 512])).unwrap();
            assert!(queue.err.read().is_err(), "it is not broken");
        }
        match round % 3 {
            0 => running.client.add_memory(&running.guest).unwrap(),
            1 => running.client.set_memory(&running.guest).unwrap(),
            _ => {
                // Other settings meanwhile.
                let features = running.client.acked;
                running.client.set_features(features).unwrap();
                let (client, queue) = (&mut running.client, &running.queues[0]);
                client.set_addresses(0, queue, false).unwrap();
                client.frontend().set_vring_kick(0, &queue.kick).unwrap();
                client.add_memory(&running.guest).unwrap();
            }
        }
        for queue in &mut running.queues {
            assert!(queue.answer().unwrap().is_ok());
            assert_eq!(queue.read(1, 512).unwrap(), [round; 512]);
            assert!(queue.err.read().is_err());
        }
    }
    // A queue that is stopped meanwhile stays so.
    running.client.remove_memory(&running.guest).unwrap();
    let base = running.client.stop(0).unwrap();
    running.client.add_memory(&running.guest).unwrap();
    running.client.start(0, &running.queues[0], base).unwrap();
    running.queues[0].write(0, &[1; 512]).unwrap();
}

/// A table that has the ring at another place in the guest.
#[test]
fn a_ring_follows_its_memory_in_the_guest() {
    let (_disk, served) = serve();
    let mut running = served.running(1);
    running.queues[0].write(0, &[1; 512]).unwrap();
    let mut table = running.guest.regions();
    // The client's own addresses stay, those of the guest are exchanged and come back.
    table[0].guest_phys_addr = 1 << 40;
    for round in 0..10 {
        running.client.frontend().set_mem_table(&table).unwrap();
        running.client.set_memory(&running.guest).unwrap();
        running.queues[0].write(0, &[round; 512]).unwrap();
        assert!(running.queues[0].err.read().is_err());
    }
}

/// The pages of a log, and clears it.
fn dirty(log: &std::fs::File) -> BTreeSet<u64> {
    let mut bytes = vec![0; log.metadata().unwrap().len() as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    log.write_all_at(&vec![0; bytes.len()], 0).unwrap();
    (0..bytes.len() as u64 * 8)
        .filter(|page| bytes[*page as usize / 8] & 1 << (page % 8) != 0)
        .collect()
}

fn set_log(client: &mut Client, log: &std::fs::File, len: u64) {
    let region = VhostUserDirtyLogRegion {
        mmap_size: len,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    client.frontend().set_log_base(0, Some(region)).unwrap();
}

#[test]
fn exactly_the_pages_written_are_logged_while_it_is_on() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut guest = Guest::new(&[(0x10_0000, 8 << 20)]).unwrap();
    client.set_memory(&guest).unwrap();
    // Data of several pages, so that data, status and ring are told apart.
    let mut queue: Queue = guest.queue(16, 4 * 4096, 0).unwrap();
    client.start(0, &queue, 0).unwrap();
    let log = memory_file(4096).unwrap();
    set_log(&mut client, &log, 4096);
    let features = client.acked;

    queue.read(0, 4096).unwrap();
    assert_eq!(dirty(&log), BTreeSet::new(), "off");

    let used = queue.driver.ring().layout().used().0;
    // After its last answer a queue asks for a kick, in the used ring.
    let beside = |log: &std::fs::File| -> BTreeSet<u64> {
        let pages = dirty(log).into_iter();
        pages.filter(|page| *page != used / 4096).collect()
    };
    for _ in 0..3 {
        client.set_features(features | LOG_ALL).unwrap();
        let done = queue.run(&Request::read(0, 3 * 4096)).unwrap();
        let data = queue.driver.data(done.token).unwrap();
        let first = data.addr.0 / 4096;
        // The status lies behind the data.
        let last = (data.addr.0 + u64::from(data.len)) / 4096;
        let mut expected: BTreeSet<u64> = (first..=last).collect();
        expected.insert(used / 4096);
        assert_eq!(dirty(&log), expected, "a read");

        let done = queue.run(&Request::write(0, &[1; 512])).unwrap();
        let status = queue.driver.data(done.token).unwrap().addr.0;
        let expected = BTreeSet::from([status / 4096, used / 4096]);
        assert_eq!(dirty(&log), expected, "a write writes its status");

        client.set_features(features).unwrap();
        queue.read(0, 4096).unwrap();
        assert_eq!(beside(&log), BTreeSet::new(), "off again");
    }
    // Another log takes over; one that is too short for all pages takes what it has room for.
    let short = memory_file(1).unwrap();
    client.set_features(features | LOG_ALL).unwrap();
    set_log(&mut client, &short, 1);
    queue.read(0, 4096).unwrap();
    assert_eq!(beside(&log), BTreeSet::new());
    assert_eq!(dirty(&short), BTreeSet::new());
}

#[test]
fn an_in_flight_area_is_as_large_as_asked_for() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let area = client.get_in_flight(2, 16).unwrap();
    assert_eq!(area.file.metadata().unwrap().len(), area.area.mmap_size);
    client.set_in_flight(&area).unwrap();
    for change in [
        VhostUserInflight::new(1, 0, 2, 16),
        VhostUserInflight::new(area.area.mmap_size, 4096, 2, 16),
        VhostUserInflight::new(area.area.mmap_size, 1, 1, 1),
        VhostUserInflight::new(u64::MAX, 0, u16::MAX, u16::MAX),
        VhostUserInflight::new(area.area.mmap_size, u64::MAX, 2, 16),
    ] {
        let frontend = client.frontend();
        assert!(
            frontend
                .set_inflight_fd(&change, area.file.as_raw_fd())
                .is_err()
        );
    }
    // One that an earlier version made, or whose client did not keep all of it.
    let asked = InFlightArea::bytes(2, 16) as u64;
    let area = InFlight {
        area: VhostUserInflight::new(asked, 0, 2, 16),
        file: area.file,
    };
    client.set_in_flight(&area).unwrap();
    // A smaller queue uses a part of it, a larger one and one too many are refused.
    let mut guest = common::guest();
    client.set_memory(&guest).unwrap();
    let mut small = guest.queue(8, 512, 0).unwrap();
    client.start(0, &small, 0).unwrap();
    small.write(0, &[1; 512]).unwrap();
    let large = guest.queue(32, 512, 0).unwrap();
    assert!(client.start(1, &large, 0).is_err());
    let third = guest.queue(8, 512, 0).unwrap();
    assert!(client.start(2, &third, 0).is_err());
    small.write(0, &[1; 512]).unwrap();
    // It stays while a queue uses it.
    assert!(client.set_in_flight(&area).is_err());
}

#[test]
fn requests_that_have_no_answer_for_failure_end_the_session() {
    const SET_LOG_BASE: u32 = 6;
    const GET_VRING_BASE: u32 = 11;
    const GET_INFLIGHT_FD: u32 = 31;
    let (_disk, served) = serve();
    let log = memory_file(10).unwrap();
    let area = |queues: u16, size: u16| vec![0, 0, u64::from(size) << 16 | u64::from(queues)];
    let fd = log.as_raw_fd();
    for (request, words, fds) in [
        (GET_INFLIGHT_FD, area(QUEUES + 1, 16), vec![]),
        (GET_INFLIGHT_FD, area(1, QUEUE_SIZE * 2), vec![]),
        (GET_INFLIGHT_FD, area(u16::MAX, u16::MAX), vec![]),
        (GET_VRING_BASE, vec![u64::from(QUEUES)], vec![]),
        (SET_LOG_BASE, vec![11, 0], vec![fd]),
        (SET_LOG_BASE, vec![1, 10], vec![fd]),
    ] {
        let mut client = Client::connect(&served.socket()).unwrap();
        let mut wire = common::wire(&client);
        // A client that is not sent away would wait for ever.
        wire.message(request, &words, &fds);
        assert_eq!(wire.wait_for_end().unwrap(), b"", "{request} {words:x?}");
        assert!(client.capacity().is_err());
    }
    let mut client = Client::connect(&served.socket()).unwrap();
    assert_eq!(client.stop(0).unwrap(), 0, "a queue that never started");
    drop(client);
    served.assert_serves();
}

#[test]
fn what_a_client_left_in_flight_is_executed_for_its_successor() {
    let (disk, served) = serve();
    let mut guest = common::guest();
    let mut client = Client::connect(&served.socket()).unwrap();
    client.set_memory(&guest).unwrap();
    let area = client.get_in_flight(1, QUEUE_SIZE).unwrap();
    client.set_in_flight(&area).unwrap();
    let mut queues = start(&mut client, &mut guest, 1);
    let queue = &mut queues[0];
    for round in 0..20u8 {
        disk.set_mode(Mode::Held);
        for sector in 0..6 {
            queue.send(&Request::write(sector, &[round; 512])).unwrap();
        }
        wait_for("the requests to be taken", || disk.held() == 6);
        // Out of order, and not all before the client is gone.
        disk.release_at(4);
        disk.release_at(1);
        drop(client);
        disk.set_mode(Mode::AtFlush);
        disk.release(6);
        served.wait_idle();
        client = Client::connect(&served.socket()).unwrap();
        client.set_in_flight(&area).unwrap();
        client.set_memory(&guest).unwrap();
        client.start(0, queue, 0).unwrap();
        for _ in 0..6 {
            assert!(queue.answer().unwrap().is_ok());
        }
        assert_eq!(queue.read(0, 512).unwrap(), [round; 512]);
    }
}

/// Requests of a ring that broke belong to nobody once the client has been told where the ring ended, or has
/// reset the device, or has given the queue another ring.
#[test]
fn requests_of_a_broken_ring_are_not_executed_for_the_next_one() {
    for end in 0..3 {
        let (disk, served) = serve();
        let mut guest = common::guest();
        let mut client = Client::connect(&served.socket()).unwrap();
        client.set_memory(&guest).unwrap();
        let area = client.get_in_flight(1, QUEUE_SIZE).unwrap();
        client.set_in_flight(&area).unwrap();
        let mut queues = start(&mut client, &mut guest, 1);
        disk.set_mode(Mode::Held);
        for sector in 0..3 {
            queues[0].send(&Request::write(sector, &[1; 512])).unwrap();
        }
        wait_for("the requests to be taken", || disk.held() == 3);
        let index = vm_memory::GuestAddress(queues[0].driver.state().avail_ring + 2);
        vm_memory::Bytes::write_obj(guest.memory().as_ref(), 0x7000u16, index).unwrap();
        queues[0].kick.write(1).unwrap();
        let patience = vblk_testing::frontend::PATIENCE;
        assert!(vblk_testing::frontend::readable(&queues[0].err, patience));
        assert_eq!(common::heads_in_flight(&area).len(), 3);
        let mut queue = guest.queue(QUEUE_SIZE, 4096, 0).unwrap();
        match end {
            0 => {
                client.frontend().reset_device().unwrap();
                let features = client.acked;
                client.set_features(features).unwrap();
            }
            1 => drop(client.stop(0).unwrap()),
            _ => {
                client.set_addresses(0, &queue, false).unwrap();
                client.stop(0).unwrap();
            }
        }
        assert!(common::heads_in_flight(&area).is_empty(), "{end}");
        disk.set_mode(Mode::AtFlush);
        client.start(0, &queue, 0).unwrap();
        queue.write(0, &[2; 512]).unwrap();
        assert_eq!(disk.content(512, 1024), [0; 1024]);
        assert!(queue.err.read().is_err());
    }
}

/// QEMU does not read the configuration space when it connects again.
#[test]
fn a_resize_while_no_server_was_there_is_told() {
    let (_, first) = serve();
    let mut guest = common::guest();
    let mut client = Client::connect(&first.socket()).unwrap();
    client.set_memory(&guest).unwrap();
    let area = client.get_in_flight(1, QUEUE_SIZE).unwrap();
    client.set_in_flight(&area).unwrap();
    let queues = start(&mut client, &mut guest, 1);
    let before = client.capacity().unwrap();
    drop(first);
    let (disk, second) = serve();
    disk.resize(2 * before);
    // The channel may come before or after the queue.
    for early in [true, false] {
        let mut client = Client::connect(&second.socket()).unwrap();
        let channel = early.then(|| client.open_backend_channel().unwrap());
        client.set_in_flight(&area).unwrap();
        client.set_memory(&guest).unwrap();
        client.start(0, &queues[0], 0).unwrap();
        let mut channel = channel.unwrap_or_else(|| client.open_backend_channel().unwrap());
        let mut message = [0; 12];
        std::io::Read::read_exact(&mut channel, &mut message).unwrap();
        assert_eq!(message[..], vblk_testing::frontend::header(2, 1, 0));
        assert_eq!(client.capacity().unwrap(), 2 * before);
        // At the first queue only; the in-flight area may have told of it too.
        channel.set_nonblocking(true).unwrap();
        while std::io::Read::read(&mut channel, &mut message).is_ok() {}
        client.stop(0).unwrap();
        client.start(0, &queues[0], 0).unwrap();
        assert!(std::io::Read::read(&mut channel, &mut message).is_err());
    }
}

#[test]
fn the_cache_mode_outlives_a_server_that_did_not_end_in_order() {
    const WRITEBACK: u32 = 32;
    let (_, first) = serve();
    let mut guest = common::guest();
    let mut client = Client::connect(&first.socket()).unwrap();
    client.set_memory(&guest).unwrap();
    let area = client.get_in_flight(1, QUEUE_SIZE).unwrap();
    client.set_in_flight(&area).unwrap();
    let queues = start(&mut client, &mut guest, 1);
    client.set_config(WRITEBACK, &[0]).unwrap();
    // Another server knows nothing but what the client kept.
    let (_, second) = serve();
    let mut client = Client::connect(&second.socket()).unwrap();
    assert_eq!(client.config(WRITEBACK, 1).unwrap(), [1]);
    client.set_in_flight(&area).unwrap();
    client.set_memory(&guest).unwrap();
    client.start(0, &queues[0], 0).unwrap();
    assert_eq!(client.config(WRITEBACK, 1).unwrap(), [0]);
}

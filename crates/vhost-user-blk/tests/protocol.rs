// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The protocol with a good client: every request, in every order that is allowed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use common::{QUEUE_SIZE, QUEUES, SECTORS, Served, guest, serve, start, wait_for, wire};
use vblk_testing::frontend::{Client, event, header, readable};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_blk_core::disk::OpKind;
use virtio_blk_core::testdisk::Mode;
use virtio_blk_driver::request::Request;

const GET_VRING_BASE: u32 = 11;
const SET_BACKEND_REQ_FD: u32 = 21;
const WRITEBACK: u32 = 32;

#[test]
fn a_whole_session() {
    let (_disk, served) = serve();
    let mut running = served.running(4);
    assert_eq!(running.client.frontend().get_queue_num().unwrap(), 4);
    for (index, queue) in running.queues.iter_mut().enumerate() {
        let data = vec![index as u8 + 1; 4096];
        queue.write(index as u64 * 8, &data).unwrap();
    }
    // What one queue wrote another one reads.
    for (index, queue) in running.queues.iter_mut().rev().enumerate() {
        let data = vec![index as u8 + 1; 4096];
        assert_eq!(queue.read(index as u64 * 8, 4096).unwrap(), data);
        assert!(queue.run(&Request::flush()).unwrap().is_ok());
        let done = queue.run(&Request::get_id()).unwrap();
        let mut id = [0; 20];
        queue.driver.read_data(done.token, 0, &mut id).unwrap();
        assert_eq!(&id, b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
    }
}

#[test]
fn memory_slots_instead_of_a_table() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut guest = guest();
    assert_eq!(client.frontend().get_max_mem_slots().unwrap(), 509);
    client.add_memory(&guest).unwrap();
    assert!(client.add_memory(&guest).is_err(), "they overlap");
    let mut queues = start(&mut client, &mut guest, 2);
    queues[1].write(3, &[7; 512]).unwrap();
    assert_eq!(queues[0].read(3, 512).unwrap(), [7; 512]);
    for index in 0..2 {
        client.stop(index).unwrap();
    }
    client.remove_memory(&guest).unwrap();
    assert!(client.remove_memory(&guest).is_err(), "they are gone");
    // The same again from the start.
    client.add_memory(&guest).unwrap();
    client.start(0, &queues[0], 1).unwrap();
    assert_eq!(queues[0].read(3, 512).unwrap(), [7; 512]);
}

#[test]
fn a_region_is_removed_only_as_it_was_added() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let guest = guest();
    client.add_memory(&guest).unwrap();
    for change in 0..3 {
        let mut region = guest.regions()[0];
        match change {
            0 => region.userspace_addr += 4096,
            1 => region.guest_phys_addr += 4096,
            _ => region.memory_size -= 4096,
        }
        let frontend = client.frontend();
        assert!(frontend.remove_mem_region(&region).is_err(), "{change}");
    }
    client.remove_memory(&guest).unwrap();
}

#[test]
fn a_client_without_protocol_features() {
    let (_disk, served) = serve();
    let mut client = Client::greet(&served.socket(), VhostUserProtocolFeatures::empty()).unwrap();
    // Queues start with their kick then, without being enabled.
    let features = client.offered & !(1 << 30) & !(1 << 26);
    client.set_features(features).unwrap();
    let mut guest = guest();
    client.set_memory(&guest).unwrap();
    let mut queues = start(&mut client, &mut guest, 1);
    queues[0].write(0, &[1; 512]).unwrap();
    assert_eq!(client.stop(0).unwrap(), 1);
}

#[test]
fn the_configuration_space_at_any_offset_and_width() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    assert_eq!(client.capacity().unwrap(), SECTORS);
    let whole = client.config(0, 256).unwrap();
    assert_eq!(whole[34..36], QUEUES.to_le_bytes());
    assert_eq!(whole[96..], [0; 160]);
    for offset in 0..100u32 {
        for len in [1, 2, 3, 4, 7, 8, 60] {
            let part = client.config(offset, len).unwrap();
            let expected = &whole[offset as usize..(offset + len) as usize];
            assert_eq!(part, expected, "{len} bytes at {offset}");
        }
    }
    assert_eq!(client.config(4000, 96).unwrap(), [0; 96]);
    // Only the cache mode can be written.
    for (offset, bytes) in [
        (0, &[1][..]),
        (WRITEBACK, &[2]),
        (WRITEBACK, &[1, 1]),
        (31, &[0]),
    ] {
        assert!(client.set_config(offset, bytes).is_err(), "{offset}");
    }
    assert_eq!(client.config(0, 256).unwrap(), whole);
}

#[test]
fn the_cache_mode_decides_how_writes_are_made() {
    let (disk, served) = serve();
    let mut running = served.running(1);
    let mut fua = |mode: &[u8]| {
        running.client.set_config(WRITEBACK, mode).unwrap();
        assert_eq!(running.client.config(WRITEBACK, 1).unwrap(), mode);
        disk.take_ops();
        running.queues[0].write(0, &[0; 512]).unwrap();
        match disk.take_ops()[..] {
            [OpKind::Write { fua, .. }] => fua,
            ref other => panic!("{other:?}"),
        }
    };
    assert!(!fua(&[1]));
    assert!(fua(&[0]));
    assert!(!fua(&[1]));
    assert!(fua(&[0]));
    // The next client does not inherit it.
    drop(running);
    served.wait_idle();
    let mut client = Client::connect(&served.socket()).unwrap();
    assert_eq!(client.config(WRITEBACK, 1).unwrap(), [1]);
}

#[test]
fn a_config_write_without_effect_ends_no_session() {
    let (_disk, served) = serve();
    let wanted = VhostUserProtocolFeatures::all() - VhostUserProtocolFeatures::REPLY_ACK;
    let mut client = Client::connect_with(&served.socket(), wanted).unwrap();
    client.set_config(0, &[1]).unwrap();
    assert_eq!(client.capacity().unwrap(), SECTORS);
}

/// Whether exactly one config-change message arrives.
fn one_change(channel: &mut UnixStream) -> bool {
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message[..], header(2, 1, 0));
    channel.set_nonblocking(true).unwrap();
    let more = channel.read(&mut message).is_ok();
    channel.set_nonblocking(false).unwrap();
    !more
}

#[test]
fn a_resize_is_told() {
    let (disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut channel = client.open_backend_channel().unwrap();
    disk.resize(SECTORS * 2);
    assert!(one_change(&mut channel));
    assert_eq!(client.capacity().unwrap(), SECTORS * 2);
    // Another channel takes over.
    let mut other = client.open_backend_channel().unwrap();
    assert_eq!(channel.read(&mut [0]).unwrap(), 0, "it was closed");
    disk.resize(SECTORS);
    assert!(one_change(&mut other));
    // A full channel, and a dead one, harm nothing.
    for sectors in 1..5000 {
        disk.resize(sectors);
    }
    drop(other);
    disk.resize(SECTORS);
    assert_eq!(client.capacity().unwrap(), SECTORS);
    drop(client);
    served.wait_idle();
    disk.resize(SECTORS * 2);
    served.assert_serves();
}

#[test]
fn the_back_end_channel_with_and_without_acknowledgement() {
    let (disk, served) = serve();
    for acked in [false, true] {
        let client = Client::connect(&served.socket()).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut wire = wire(&client);
        let fds = [theirs.as_raw_fd()];
        if acked {
            assert_eq!(wire.acked(SET_BACKEND_REQ_FD, &[], &fds).unwrap(), 0);
        } else {
            wire.message(SET_BACKEND_REQ_FD, &[], &fds);
            // Its answer says that the message before it was handled.
            assert_eq!(wire.acked(3, &[], &[]).unwrap(), 0);
        }
        disk.resize(SECTORS + 1 + u64::from(acked));
        assert!(one_change(&mut ours));
    }
}

#[test]
fn malformed_back_end_channels_end_the_session() {
    let (_disk, served) = serve();
    let file = tempfile::tempfile().unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let cases: [(&[u64], Vec<i32>); 4] = [
        (&[], vec![]),
        (&[7], vec![theirs.as_raw_fd()]),
        (&[], vec![file.as_raw_fd()]),
        (&[], vec![theirs.as_raw_fd(), file.as_raw_fd()]),
    ];
    for (words, fds) in cases {
        let client = Client::connect(&served.socket()).unwrap();
        let mut wire = wire(&client);
        wire.message(SET_BACKEND_REQ_FD, words, &fds);
        assert_eq!(wire.wait_for_end().unwrap(), b"");
        served.wait_idle();
    }
    // In pieces: whether it is taken or not, the session continues.
    let mut client = Client::connect(&served.socket()).unwrap();
    let message = header(SET_BACKEND_REQ_FD, 1, 0);
    let mut raw = wire(&client);
    raw.bytes_with(&message[..5], &[theirs.as_raw_fd()]);
    raw.bytes(&message[5..]);
    assert_eq!(client.capacity().unwrap(), SECTORS);
}

#[test]
fn stopping_drains_and_going_on_loses_nothing() {
    let (disk, served) = serve();
    let mut running = served.running(1);
    let client = &mut running.client;
    let queue = &mut running.queues[0];
    for round in 0..5u64 {
        disk.set_mode(Mode::Held);
        for request in 0..8 {
            queue
                .driver
                .submit(&Request::write(request, &[round as u8 + 1; 512]))
                .unwrap();
        }
        queue.publish().unwrap();
        wait_for("the requests to be taken", || disk.held() == 8);
        // The answer may only come after the last of them.
        let mut asking = wire(client);
        asking.message(GET_VRING_BASE, &[0], &[]);
        while disk.held() != 0 {
            assert!(!readable(asking.stream(), std::time::Duration::ZERO));
            disk.release_at(disk.held() - 1);
        }
        let base = (asking.answer().unwrap() >> 32) as u16;
        assert_eq!(base, (round as u16 + 1) * 8);
        for _ in 0..8 {
            let done = queue
                .driver
                .poll()
                .unwrap()
                .expect("returned before the answer");
            assert!(done.is_ok());
        }
        assert_eq!(disk.content(0, 4096), [round as u8 + 1; 4096]);
        disk.set_mode(Mode::AtFlush);
        // What comes while it is stopped is found at the start, without another kick.
        for request in 0..8 {
            queue.driver.submit(&Request::read(request, 512)).unwrap();
        }
        queue.publish().unwrap();
        client.start(0, queue, base).unwrap();
        for _ in 0..8 {
            assert!(queue.answer().unwrap().is_ok());
        }
        assert_eq!(client.stop(0).unwrap(), base + 8);
        // The driver's view counts on.
        queue
            .driver
            .ring_mut()
            .0
            .audit(running.guest.memory().as_ref())
            .unwrap();
        *queue = running
            .guest
            .queue(QUEUE_SIZE, 512, (round as u16 + 1) * 8)
            .unwrap();
        client.start(0, queue, (round as u16 + 1) * 8).unwrap();
    }
}

#[test]
fn a_disabled_queue_takes_nothing() {
    let (_disk, served) = serve();
    let mut running = served.running(2);
    let [first, second] = &mut running.queues[..] else {
        panic!()
    };
    running
        .client
        .frontend()
        .set_vring_enable(0, false)
        .unwrap();
    first.send(&Request::write(0, &[1; 512])).unwrap();
    // The other one continues; kicks of the disabled one collect.
    second.write(1, &[2; 512]).unwrap();
    assert!(first.driver.poll().unwrap().is_none());
    running.client.frontend().set_vring_enable(0, true).unwrap();
    assert!(first.answer().unwrap().is_ok());
    for _ in 0..20 {
        running
            .client
            .frontend()
            .set_vring_enable(0, false)
            .unwrap();
        running.client.frontend().set_vring_enable(0, true).unwrap();
        first.write(0, &[3; 512]).unwrap();
    }
}

#[test]
fn kick_and_call_are_exchanged_while_running() {
    let (disk, served) = serve();
    let mut running = served.running(1);
    let queue = &mut running.queues[0];
    for round in 0..50 {
        disk.set_mode(Mode::Held);
        queue.send(&Request::write(0, &[round; 512])).unwrap();
        wait_for("the request to be taken", || disk.held() == 1);
        disk.set_mode(Mode::AtFlush);
        // Its answer may come before or after the exchange, by the old or the new call.
        let call = event().unwrap();
        let releasing = std::thread::spawn({
            let disk = disk.clone();
            move || disk.release(1)
        });
        running.client.frontend().set_vring_call(0, &call).unwrap();
        queue.call = call;
        let kick = event().unwrap();
        running.client.frontend().set_vring_kick(0, &kick).unwrap();
        queue.kick = kick;
        assert!(queue.answer().unwrap().is_ok());
        releasing.join().unwrap();
        queue.write(1, &[round; 512]).unwrap();
    }
}

#[test]
fn addresses_and_features_sent_again_change_nothing() {
    let (_disk, served) = serve();
    let mut running = served.running(1);
    let queue = &mut running.queues[0];
    queue.write(0, &[1; 512]).unwrap();
    let features = running.client.acked;
    for log in [true, false, true] {
        running.client.set_addresses(0, queue, log).unwrap();
        running
            .client
            .set_features(features | u64::from(log) << 26)
            .unwrap();
        queue.write(0, &[1; 512]).unwrap();
    }
    // Others can't be had while it runs.
    assert!(running.client.set_features(features & !(1 << 9)).is_err());
    let frontend = running.client.frontend();
    assert!(frontend.set_vring_num(0, 32).is_err());
    assert!(frontend.set_vring_base(0, 0).is_err());
    queue.write(0, &[1; 512]).unwrap();
}

#[test]
fn a_reset_starts_over() {
    let (_disk, served) = serve();
    let mut running = served.running(2);
    running.queues[0].write(0, &[9; 512]).unwrap();
    running.client.frontend().reset_device().unwrap();
    let features = running.client.acked;
    running.client.set_features(features).unwrap();
    // Memory stays; the queues are new.
    let mut queues = start(&mut running.client, &mut running.guest, 2);
    assert_eq!(queues[1].read(0, 512).unwrap(), [9; 512]);
}

#[test]
fn a_broken_ring_is_told_by_its_error_descriptor() {
    let (_disk, served) = serve();
    let mut running = served.running(2);
    let layout = *running.queues[0].driver.ring().layout();
    let memory = running.guest.memory().clone();
    // More requests than the ring has room for.
    vm_memory::Bytes::write_obj(
        memory.as_ref(),
        QUEUE_SIZE + 1,
        vm_memory::GuestAddress(layout.avail().0 + 2),
    )
    .unwrap();
    running.queues[0].kick.write(1).unwrap();
    assert!(readable(
        &running.queues[0].err,
        vblk_testing::frontend::PATIENCE
    ));
    running.queues[1].write(0, &[1; 512]).unwrap();
    running.client.stop(0).unwrap();
    let queue = running.guest.queue(QUEUE_SIZE, 512, 0).unwrap();
    running.client.start(0, &queue, 0).unwrap();
    running.queues[0] = queue;
    running.queues[0].write(0, &[1; 512]).unwrap();
}

#[test]
fn one_unusable_queue_does_not_keep_the_others_from_starting() {
    let (_disk, served) = serve();
    let mut client = Client::connect(&served.socket()).unwrap();
    let mut guest = guest();
    client.set_memory(&guest).unwrap();
    let bad = common::guest().queue(QUEUE_SIZE, 512, 0).unwrap();
    let layout = *bad.driver.ring().layout();
    let frontend = client.frontend();
    frontend.set_vring_num(0, QUEUE_SIZE).unwrap();
    frontend
        .set_vring_addr(
            0,
            &vhost::VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: layout.desc().0,
                used_ring_addr: layout.used().0,
                avail_ring_addr: layout.avail().0,
                log_addr: None,
            },
        )
        .unwrap();
    frontend.set_vring_err(0, &bad.err).unwrap();
    frontend.set_vring_kick(0, &bad.kick).unwrap();
    assert!(frontend.set_vring_enable(0, true).is_err());
    assert!(bad.err.read().is_ok());
    let mut good = guest.queue(QUEUE_SIZE, 512, 0).unwrap();
    client.start(1, &good, 0).unwrap();
    good.write(0, &[1; 512]).unwrap();
}

#[test]
fn many_clients_one_after_another() {
    let (_disk, served): (_, Served) = serve();
    for _ in 0..100 {
        served.assert_serves();
    }
    assert_eq!(served.handle.clients(), 100);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel or driver that misbehaves: an error for its device, which works again after a reset where that
//! can be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;

use common::{BASE, Rig, StallDisk, info};
use vduse_backend::ServerError;
use vduse_backend::fake::FakeRegion;
use vduse_backend::kernel::VqInfo;
use vduse_backend::message::{Answer, Request as Ask};
use virtio_blk_core::memory::Permissions;
use virtio_blk_driver::request::Request;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn unknown_messages_are_refused() {
    let mut rig = Rig::new(1);
    rig.start();
    for kind in [6, 7, 0xff, u32::MAX] {
        assert_eq!(rig.bus.ask(Ask::Unknown(kind)), Some(Answer::Failed));
    }
    let set = |group, asid| Ask::SetGroupAsid { group, asid };
    assert_eq!(rig.bus.ask(set(0, 0)), Some(Answer::Ok));
    assert_eq!(rig.bus.ask(set(1, 0)), Some(Answer::Failed));
    assert_eq!(rig.bus.ask(set(0, 1)), Some(Answer::Failed));
    rig.check();
}

#[test]
fn a_message_of_another_size_ends_this_device_only() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.bus.shorten_next(7);
    let pending = rig.bus.send(Ask::SetStatus(0));
    let error = rig.ended().unwrap_err();
    assert!(matches!(&error, ServerError::Device(_)), "{error}");
    assert!(error.to_string().contains("7 bytes"), "{error}");
    // The kernel comes to its senses: the next server replies.
    assert!(rig.serve().unwrap());
    assert_eq!(pending.wait(), Some(Answer::Ok));
    rig.start();
    rig.check();
}

#[test]
fn what_ends_one_device_leaves_the_others_of_the_process_alone() {
    let mut one = Rig::new(1);
    let mut other = Rig::named("disk1", one.kernel.clone(), StallDisk::new(), 1);
    one.start();
    other.start();
    let token = other.submit(0, &Request::write(0, &[7; 512]));
    one.bus.shorten_next(7);
    let pending = one.bus.send(Ask::SetStatus(0));
    one.ended().unwrap_err();
    assert_eq!(other.answer(0).token, token);
    other.check();
    other.ok(Ask::SetStatus(0));
    other.start();
    other.check();
    // Nor does it notice the one that comes back.
    assert!(one.serve().unwrap());
    assert_eq!(pending.wait(), Some(Answer::Ok));
    one.start();
    one.check();
    other.check();
}

#[test]
fn rings_that_can_not_be_are_no_queues() {
    let mut rig = Rig::new(2);
    for bad in [
        VqInfo {
            num: 0,
            ..good(&mut rig)
        },
        VqInfo {
            num: 3,
            ..good(&mut rig)
        },
        VqInfo {
            num: 64,
            ..good(&mut rig)
        },
        VqInfo {
            num: 32768,
            ..good(&mut rig)
        },
        VqInfo {
            num: u32::MAX,
            ..good(&mut rig)
        },
        VqInfo {
            descriptor: 0,
            ..good(&mut rig)
        },
        VqInfo {
            driver: u64::MAX - 1,
            ..good(&mut rig)
        },
        VqInfo {
            device: BASE + 1,
            ..good(&mut rig)
        },
    ] {
        // The lives of the rig are few, and this is one for all of them.
        assert!(rig.bus.negotiate(rig.bus.device_features()));
        rig.bus.set_vq(0, bad);
        assert!(rig.bus.set_driver_ok(), "{bad:?}");
        assert!(matches!(
            rig.bus.ask(Ask::GetVqState { index: 0 }),
            Some(Answer::VqState { .. })
        ));
    }
    rig.start();
    rig.check();
}

fn good(rig: &mut Rig) -> VqInfo {
    if rig.queues.is_empty() {
        assert!(rig.bus.negotiate(rig.bus.device_features()));
        rig.set_queues_up();
    }
    info(&rig.queues[0])
}

#[test]
fn regions_that_can_not_be_are_refused() {
    let mut rig = Rig::new(1);
    let good = rig.region();
    let region = |first, last| FakeRegion {
        first,
        last,
        ..good.clone()
    };
    for wild in [
        region(5, 4),
        region(0, 0xfff),
        region(BASE, BASE + 0xfff),
        region(0, u64::MAX),
    ] {
        rig.bus.set_wild_region(Some(wild));
        assert!(rig.bus.negotiate(rig.bus.device_features()));
        rig.set_queues_up();
        assert!(rig.bus.set_driver_ok());
        rig.submit(0, &Request::read(0, 512));
        rig.ok(Ask::UpdateIotlb {
            first: 0,
            last: u64::MAX,
        });
        assert!(rig.queues[0].poll().unwrap().is_none());
    }
    rig.bus.set_wild_region(None);
    rig.start();
    rig.check();
}

#[test]
fn files_that_can_not_be_mapped_are_holes() {
    let mut rig = Rig::new(1);
    let (reader, _writer) = std::io::pipe().unwrap();
    let hole = FakeRegion {
        file: Arc::new(reader.as_fd().try_clone_to_owned().unwrap()),
        offset: 0,
        first: 0x1000,
        last: 0x1fff,
        permissions: Permissions::ReadWrite,
        domain: false,
    };
    rig.bus.set_regions(vec![hole, rig.region()]);
    rig.start();
    rig.check();
}

/// A driver that takes its memory away (a VMM that shrinks its file) hurts its own device.
#[test]
fn memory_that_vanishes_stops_the_device_until_a_reset() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.check();
    let gone = common::memfd(4096);
    let region = FakeRegion {
        file: Arc::new(gone.try_clone().unwrap().into()),
        offset: 0,
        first: 0x10_0000,
        last: 0x10_0fff,
        permissions: Permissions::ReadWrite,
        domain: false,
    };
    rig.map(vec![region, rig.region()]);
    gone.set_len(0).unwrap();
    let token = rig.read_into(0x10_0000);
    let done = rig.answer(0);
    assert_eq!(done.token, token);
    // What comes next is not served: nothing that the driver says can be relied on.
    rig.ok(Ask::SetStatus(0));
    rig.bus.set_regions(vec![rig.region()]);
    rig.start();
    rig.check();
}

/// A chain without a writable byte is returned with length 0 and does not stall its queue; libvduse aborts
/// at the reset that follows.
#[test]
fn malformed_requests_stall_nothing_and_a_reset_follows() {
    use virtio_blk_driver::ring::Chain;
    let mut rig = Rig::new(1);
    rig.start();
    for _ in 0..40 {
        let data = virtio_blk_driver::Segment::new(GuestAddress(BASE), 16);
        let (ring, mem) = rig.queues[0].ring_mut();
        // Nowhere to put a status.
        let chain = Chain {
            readable: &[data],
            writable: &[],
            indirect: None,
        };
        ring.add(mem, &chain, 7).unwrap();
        ring.publish(mem).unwrap();
        rig.bus.kick(0);
        let used = loop {
            let (ring, mem) = rig.queues[0].ring_mut();
            if let Some(used) = ring.poll_used(mem).unwrap() {
                break used;
            }
            std::thread::yield_now();
        };
        assert_eq!((used.cookie, used.len), (7, 0));
    }
    rig.ok(Ask::SetStatus(0));
    rig.start();
    rig.check();
}

/// A ring that breaks is an error for its queue.
#[test]
fn a_broken_ring_stops_its_queue_until_a_reset() {
    let mut rig = Rig::new(2);
    rig.start();
    let avail = rig.queues[0].state().avail_ring;
    rig.guest
        .write_obj(1000u16, GuestAddress(avail + 2))
        .unwrap();
    rig.bus.kick(0);
    assert!(rig.ask(1, &Request::read(0, 512)).is_ok());
    // Where it stands nobody knows.
    let state = Ask::GetVqState { index: 0 };
    assert_eq!(rig.bus.ask(state), Some(Answer::Failed));
    assert_eq!(rig.bus.ask(Ask::Suspend), Some(Answer::Ok));
    rig.ok(Ask::SetStatus(0));
    rig.start();
    rig.check();
}

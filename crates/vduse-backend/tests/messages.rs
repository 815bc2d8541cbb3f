// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Messages with requests in flight, also on a disk that hangs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{BASE, QUEUE_SIZE, Rig, SECTORS, info};
use vduse_backend::fake::FakeKernel;
use vduse_backend::kernel::VqInfo;
use vduse_backend::message::{Answer, Request as Ask};
use vduse_backend::{F_QUEUE_READY, F_SUSPEND, Outcome};
use virtio_blk_driver::request::Request;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_device_lives_and_dies() {
    for (version, features) in [(0, 0), (1, 0), (1, F_QUEUE_READY | F_SUSPEND)] {
        let kernel = FakeKernel::new(version, features);
        let mut rig = Rig::on(kernel, 2);
        assert_eq!(rig.kernel.chosen_features(), features);
        assert_eq!(rig.bus.max_sizes(), [QUEUE_SIZE; 2]);
        rig.start();
        rig.check();
        assert!(rig.bus.irqs(0) > 0 && rig.bus.irqs(1) > 0);
        rig.ok(Ask::SetStatus(0));
        rig.bus.attach(false);
        assert_eq!(rig.stop().unwrap(), Outcome::Removed);
        assert!(!rig.kernel.has(common::NAME));
    }
}

/// SET_STATUS 0 with requests in flight: the kernel gets its reply, and the device can be set up again.
#[test]
fn a_reset_with_requests_in_flight_is_answered_and_the_device_works_again() {
    let mut rig = Rig::new(2);
    rig.start();
    for _ in 0..3 {
        rig.disk.stall();
        for queue in 0..2 {
            rig.submit(queue, &Request::write(100, &[9; 512]));
        }
        rig.disk.wait_stalled(2);
        let reset = rig.bus.send(Ask::SetStatus(0));
        rig.disk.go_on();
        assert_eq!(reset.wait(), Some(Answer::Ok));
        rig.start();
        rig.check();
    }
}

/// A disk that hangs for longer than the kernel waits can't break the device, nor touch the driver's
/// memory when it continues at last.
#[test]
fn a_reset_with_a_disk_that_hangs_is_answered_in_time_and_cuts_it_off() {
    let mut rig = Rig::new(1);
    rig.disk.inner().set_content(0, &[0xdd; 512]);
    rig.start();
    let read = rig.hang(0, &Request::read(0, 512));
    let data = rig.queues[0].data(read).unwrap();
    let used = rig.queues[0].state().used_ring;
    rig.ok(Ask::SetStatus(0));
    // From here on the memory is the driver's alone.
    for (addr, len) in [(data.addr.0, 512), (used, 128)] {
        let pattern = vec![0x77; len];
        rig.guest.write_slice(&pattern, GuestAddress(addr)).unwrap();
    }
    // The next driver comes while the disk still hangs: it is agreed with at once, and served later.
    rig.start();
    let irqs = rig.bus.irqs(0);
    let token = rig.submit(0, &Request::read(0, 512));
    // Nothing was taken: a late write must not come after a newer one.
    let untouched = Answer::VqState {
        index: 0,
        next_avail: 0,
    };
    assert_eq!(rig.bus.ask(Ask::GetVqState { index: 0 }), Some(untouched));
    assert!(!rig.bus.is_broken());
    assert_eq!(rig.bus.irqs(0), irqs);
    rig.disk.go_on();
    let done = rig.answer(0);
    assert_eq!(done.token, token);
    rig.check();
    for (addr, len) in [(data.addr.0, 512), (used, 128)] {
        let mut found = vec![0; len];
        rig.guest
            .read_slice(&mut found, GuestAddress(addr))
            .unwrap();
        assert!(found.iter().all(|byte| *byte == 0x77), "{addr:#x}");
    }
}

/// A write that was held up must not take what the driver has in its memory now.
#[test]
fn a_write_from_before_a_reset_never_writes_newer_memory() {
    let mut rig = Rig::new(1);
    rig.disk.inner().set_content(16 * 512, &[0xdd; 512]);
    rig.start();
    let write = rig.hang(0, &Request::write(16, &[1; 512]));
    let data = rig.queues[0].data(write).unwrap();
    rig.ok(Ask::SetStatus(0));
    rig.guest.write_slice(&[2; 512], data.addr).unwrap();
    rig.disk.go_on();
    rig.disk.wait_idle();
    rig.start();
    rig.check();
    let found = rig.disk.inner().content(16 * 512, 512);
    // Nor the zeroes that stand in its place.
    assert_eq!(found, [0xdd; 512]);
}

/// GET_VQ_STATE is replied to after the queue has drained, so that the index is final.
#[test]
fn a_queues_state_is_told_after_a_drain() {
    let mut rig = Rig::new(2);
    rig.start();
    rig.check();
    let token = rig.hang(1, &Request::write(3, &[5; 512]));
    let state = rig.bus.send(Ask::GetVqState { index: 1 });
    rig.disk.go_on();
    let expected = Answer::VqState {
        index: 1,
        next_avail: 3,
    };
    assert_eq!(state.wait(), Some(expected));
    assert_eq!(rig.answer(1).token, token);
    // Nobody resets it: it continues.
    rig.check();
    assert_eq!(
        rig.bus.ask(Ask::GetVqState { index: 2 }),
        Some(Answer::Failed)
    );
    assert_eq!(
        rig.bus.ask(Ask::GetVqState { index: u32::MAX }),
        Some(Answer::Failed)
    );
}

#[test]
fn a_state_that_can_not_be_told_in_time_is_refused() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.hang(0, &Request::write(3, &[5; 512]));
    assert_eq!(
        rig.bus.ask(Ask::GetVqState { index: 0 }),
        Some(Answer::Failed)
    );
    rig.disk.go_on();
    assert!(rig.answer(0).is_ok());
    rig.check();
}

/// SUSPEND completes what was taken; no further request is taken until the next DRIVER_OK.
#[test]
fn suspending_drains_and_nothing_is_taken_afterwards() {
    let mut rig = Rig::new(2);
    rig.start();
    rig.hang(0, &Request::write(3, &[5; 512]));
    let suspend = rig.bus.send(Ask::Suspend);
    rig.disk.go_on();
    assert_eq!(suspend.wait(), Some(Answer::Ok));
    assert!(rig.queues[0].poll().unwrap().unwrap().is_ok());
    rig.submit(0, &Request::read(0, 512));
    let state = rig.bus.ask(Ask::GetVqState { index: 0 });
    let expected = Answer::VqState {
        index: 0,
        next_avail: 1,
    };
    assert_eq!(state, Some(expected));
    assert!(rig.queues[0].poll().unwrap().is_none());
    rig.ok(Ask::SetStatus(0));
    rig.start();
    rig.check();
}

#[test]
fn a_suspend_that_can_not_be_done_in_time_is_refused_and_the_device_goes_on() {
    let mut rig = Rig::new(2);
    rig.start();
    rig.hang(1, &Request::write(3, &[5; 512]));
    assert_eq!(rig.bus.ask(Ask::Suspend), Some(Answer::Failed));
    rig.disk.go_on();
    assert!(rig.answer(1).is_ok());
    rig.check();
}

/// UPDATE_IOTLB under load: requests in flight keep the mappings that they use.
#[test]
fn memory_is_added_and_taken_away_under_requests() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.check();
    let other = common::memfd(1 << 16);
    let more = vduse_backend::fake::FakeRegion {
        file: std::sync::Arc::new(other.into()),
        offset: 4096,
        first: BASE - (1 << 20),
        last: BASE - (1 << 20) + 0xfff,
        ..rig.region()
    };
    for _ in 0..20 {
        let token = rig.submit(0, &Request::read(0, 512));
        rig.map(vec![rig.region(), more.clone()]);
        assert_eq!(rig.answer(0).token, token);
        rig.map(vec![rig.region()]);
    }
    rig.check();
    // A disk that hangs on memory that stays does not matter.
    let token = rig.hang(0, &Request::read(0, 512));
    rig.map(vec![rig.region(), more]);
    rig.disk.go_on();
    assert_eq!(rig.answer(0).token, token);
    rig.check();
}

/// A slow disk loses only what it works on.
#[test]
fn memory_taken_away_fails_no_request_that_does_not_use_it() {
    let mut rig = Rig::new(1);
    let more = vduse_backend::fake::FakeRegion {
        file: std::sync::Arc::new(common::memfd(1 << 16).into()),
        first: BASE - (1 << 20),
        last: BASE - (1 << 20) + 0xfff,
        ..rig.region()
    };
    rig.bus.set_regions(vec![rig.region(), more]);
    rig.start();
    let token = rig.hang(0, &Request::write(3, &[3; 512]));
    rig.map(vec![rig.region()]);
    rig.disk.go_on();
    let done = rig.answer(0);
    assert_eq!(done.token, token);
    assert!(done.is_ok());
    assert_eq!(rig.disk.inner().content(3 * 512, 512), [3; 512]);
    rig.check();
}

#[test]
fn memory_taken_away_from_a_disk_that_hangs_is_not_touched_any_more() {
    let mut rig = Rig::new(1);
    rig.disk.inner().set_content(0, &[0xdd; 512]);
    rig.start();
    let read = rig.hang(0, &Request::read(0, 512));
    let data = rig.queues[0].data(read).unwrap();
    rig.map(Vec::new());
    rig.guest.write_slice(&[0x77; 512], data.addr).unwrap();
    rig.disk.go_on();
    rig.disk.wait_idle();
    rig.ok(Ask::SetStatus(0));
    let mut found = [0; 512];
    rig.guest.read_slice(&mut found, data.addr).unwrap();
    assert_eq!(found, [0x77; 512]);
    rig.bus.set_regions(vec![rig.region()]);
    rig.start();
    rig.check();
}

#[test]
fn queues_are_enabled_and_disabled_one_by_one() {
    let mut rig = Rig::new(2);
    assert!(rig.bus.negotiate(rig.bus.device_features()));
    rig.set_queues_up();
    let off = VqInfo {
        ready: false,
        ..info(&rig.queues[1])
    };
    rig.bus.set_vq(1, off);
    assert!(rig.bus.set_driver_ok());
    assert!(rig.ask(0, &Request::read(0, 512)).is_ok());
    let set = |index, ready| Ask::SetVqReady { index, ready };
    rig.bus.set_vq(1, info(&rig.queues[1]));
    rig.ok(set(1, true));
    rig.check();
    rig.ok(set(0, false));
    rig.submit(0, &Request::read(0, 512));
    assert!(rig.ask(1, &Request::read(0, 512)).is_ok());
    assert!(rig.queues[0].poll().unwrap().is_none());
    rig.ok(set(0, true));
    assert!(rig.answer(0).is_ok());
    // A refusal would break the device, so a disk that hangs is no reason for one.
    rig.hang(0, &Request::read(0, 512));
    rig.ok(set(0, false));
    // Where it stands is not made up while that is not known.
    let state = Ask::GetVqState { index: 0 };
    assert_eq!(rig.bus.ask(state), Some(Answer::Failed));
    rig.disk.go_on();
    let expected = Answer::VqState {
        index: 0,
        next_avail: 5,
    };
    assert_eq!(rig.bus.ask(state), Some(expected));
    assert!(rig.answer(0).is_ok());
    rig.ok(set(0, true));
    rig.check();
    assert_eq!(rig.bus.ask(set(2, true)), Some(Answer::Failed));
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut rig = Rig::new(1);
    let offered = rig.bus.device_features();
    assert!(!rig.bus.negotiate(offered | 1 << 34), "packed");
    assert!(!rig.bus.negotiate(offered & !(1 << 32)), "not virtio 1");
    rig.start();
    rig.check();
}

#[test]
fn a_new_size_is_shown_and_told() {
    let mut rig = Rig::new(1);
    rig.start();
    rig.disk.inner().resize(2 * SECTORS);
    assert_eq!(rig.bus.config_irqs_after(0), 1);
    assert_eq!(rig.bus.config()[..8], (2 * SECTORS).to_le_bytes());
    assert!(rig.ask(0, &Request::read(2 * SECTORS - 1, 512)).is_ok());
}

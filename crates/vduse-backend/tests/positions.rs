// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where queues stand and start from: what was told stays true, also under the next server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::{BASE, PATIENCE, Rig, StallDisk, info, newest};
use vduse_backend::fake::{FakeKernel, FakeRegion};
use vduse_backend::kernel::VqInfo;
use vduse_backend::message::{Answer, Request as Ask};
use virtio_blk_core::disk::OpKind;
use virtio_blk_core::testdisk::{Mode, WaitKind};
use virtio_blk_driver::request::Request;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_suspended_device_stays_suspended_under_the_next_server() {
    for end in [Rig::die, |rig: &mut Rig| {
        rig.stop().unwrap();
    }] {
        let mut rig = Rig::new(2);
        rig.start();
        rig.check();
        rig.ok(Ask::Suspend);
        rig.submit(0, &Request::write(0, &[9; 512]));
        end(&mut rig);
        rig.succeed();
        assert_eq!([rig.told(0), rig.told(1)], [2, 2]);
        end(&mut rig);
        rig.succeed();
        assert_eq!([rig.told(0), rig.told(1)], [2, 2]);
        assert!(rig.queues[0].poll().unwrap().is_none());
        rig.ok(Ask::SetStatus(0));
        rig.start();
        rig.check();
    }
}

/// A server that can't look at the driver's memory tries again, and continues where the queues are.
#[test]
fn a_take_over_that_fails_at_first_starts_where_the_queues_are() {
    let mut rig = Rig::with(FakeKernel::new(0, 0), StallDisk::new(), 2);
    rig.start();
    for sector in 0..5u8 {
        let done = rig.ask(0, &Request::write(sector.into(), &[sector + 1; 512]));
        assert!(done.is_ok());
    }
    rig.stop().unwrap();
    rig.disk.inner().take_ops();
    let wild = FakeRegion {
        first: BASE + 8192,
        last: BASE,
        ..rig.region()
    };
    rig.bus.set_wild_region(Some(wild));
    rig.succeed();
    assert_eq!([rig.told(0), rig.told(1)], [5, 0]);
    rig.bus.set_wild_region(None);
    // It is tried again without being asked to.
    assert!(rig.ask(0, &Request::read(0, 512)).is_ok());
    let writes = |op: &OpKind| matches!(op, OpKind::Write { .. });
    assert!(!rig.disk.inner().take_ops().iter().any(writes));
    rig.check();
}

#[test]
fn before_a_queue_ran_its_state_is_what_the_driver_set() {
    let mut rig = Rig::new(1);
    assert!(rig.bus.negotiate(rig.bus.device_features()));
    rig.start_index = 7;
    rig.set_queues_up();
    assert_eq!(rig.told(0), 7);
    rig.die();
    rig.succeed();
    assert_eq!(rig.told(0), 7);
    assert!(rig.bus.set_driver_ok());
    rig.check();
    assert_eq!(rig.told(0), 9);
}

/// The available index counts from what the driver set, whatever the used index was.
#[test]
fn a_queue_that_starts_ahead_of_its_used_index_stays_ahead() {
    let mut rig = Rig::with(newest(), StallDisk::held(), 1);
    assert!(rig.bus.negotiate(rig.bus.device_features()));
    rig.start_index = 7;
    rig.set_queues_up();
    let used = rig.queues[0].state().used_ring;
    rig.guest.write_obj(5u16, GuestAddress(used + 2)).unwrap();
    assert!(rig.bus.set_driver_ok());
    rig.submit(0, &Request::write(0, &[1; 512]));
    for _ in 0..2 {
        while rig.disk.inner().held() == 0 {
            std::thread::yield_now();
        }
        // With a request in flight, the index is not noted.
        rig.die();
        rig.succeed();
    }
    rig.disk.inner().set_mode(Mode::AtFlush);
    rig.disk.inner().release(1);
    assert_eq!(rig.told(0), 8);
    assert_eq!(rig.disk.inner().content(0, 512), [1; 512]);
}

#[test]
fn a_queue_starts_in_the_midst_of_its_indices() {
    for start in [7, u16::MAX, u16::MAX - 1] {
        let mut rig = Rig::new(1);
        rig.start_index = start;
        rig.start();
        rig.check();
        rig.die();
        rig.succeed();
        rig.check();
        assert_eq!(rig.told(0), start.wrapping_add(4));
    }
}

/// A VMM asks for the states of its queues one after the other, which may take as long as messages may.
#[test]
fn what_was_told_of_one_queue_stays_true_while_others_are_asked() {
    let mut rig = Rig::with(FakeKernel::new(0, 0), StallDisk::new(), 2);
    rig.start();
    rig.check();
    rig.hang(1, &Request::read(0, 512));
    let first = rig.told(0);
    // Available and not taken, without a kick: for the server that continues from what was told.
    let token = rig.queues[0].submit(&Request::write(3, &[7; 512])).unwrap();
    rig.queues[0].publish().unwrap();
    let state = Ask::GetVqState { index: 1 };
    assert_eq!(rig.bus.ask(state), Some(Answer::Failed), "it hangs");
    assert_eq!(rig.told(0), first);
    rig.disk.go_on();
    let second = rig.told(1);
    assert_eq!([rig.told(0), rig.told(1)], [first, second]);
    // Under the next server, too.
    rig.die();
    rig.succeed();
    assert_eq!([rig.told(0), rig.told(1)], [first, second]);
    // It only looked: all continue.
    assert_eq!(rig.answer(0).token, token);
    assert!(rig.answer(1).is_ok());
    rig.check();
}

/// What was told holds under the next server, while a queue that was not asked continues with what was in flight.
#[test]
fn what_was_told_stays_true_under_the_next_server() {
    let disk = StallDisk::new().queueing(Mode::AtFlush, WaitKind::Fd);
    let mut rig = Rig::with(FakeKernel::new(0, 0), disk, 2);
    rig.start();
    rig.check();
    let told = rig.told(0);
    let token = rig.queues[0].submit(&Request::write(3, &[7; 512])).unwrap();
    rig.queues[0].publish().unwrap();
    rig.disk.inner().set_mode(Mode::Held);
    let other = rig.submit(1, &Request::write(4, &[8; 512]));
    while rig.disk.inner().held() == 0 {
        std::thread::yield_now();
    }
    rig.die();
    rig.disk.inner().set_mode(Mode::AtFlush);
    rig.succeed();
    assert_eq!(rig.answer(1).token, other);
    assert_eq!(rig.told(0), told);
    assert_eq!(rig.answer(0).token, token);
    rig.check();
}

#[test]
fn a_kick_ends_the_wait_of_all_queues() {
    let mut rig = Rig::with(FakeKernel::new(0, 0), StallDisk::new(), 2);
    rig.start();
    rig.check();
    assert_eq!([rig.told(0), rig.told(1)], [2, 2]);
    rig.queues[0].submit(&Request::read(0, 512)).unwrap();
    rig.queues[0].publish().unwrap();
    rig.queues[1].submit(&Request::read(0, 512)).unwrap();
    rig.queues[1].publish().unwrap();
    rig.bus.kick(1);
    // Each message makes the hold last longer: it ends by the kick, or never.
    let deadline = Instant::now() + PATIENCE;
    let mut answers = 0;
    while answers != 2 {
        assert!(Instant::now() < deadline, "{answers} queues go on");
        rig.settle();
        for queue in &mut rig.queues {
            answers += usize::from(queue.poll().unwrap().is_some());
        }
    }
}

#[test]
fn a_queue_that_is_enabled_ends_the_wait() {
    let mut rig = Rig::new(2);
    rig.start();
    rig.check();
    let ready = |index, ready| Ask::SetVqReady { index, ready };
    rig.ok(ready(0, false));
    assert_eq!([rig.told(0), rig.told(1)], [2, 2]);
    rig.ok(ready(0, true));
    rig.check();
}

/// virtio-vdpa takes no interrupts before the status shows DRIVER_OK, which is after the answer: requests that were
/// there before are finished by then.
#[test]
fn interrupts_that_the_kernel_refused_come_later() {
    let mut rig = Rig::new(1);
    assert!(rig.bus.negotiate(rig.bus.device_features()));
    rig.set_queues_up();
    rig.queues[0].submit(&Request::read(0, 512)).unwrap();
    rig.queues[0].publish().unwrap();
    let pending = rig.bus.send(Ask::SetStatus(15));
    // Before the kernel looks at the answer.
    assert!(rig.answer(0).is_ok());
    assert_eq!(rig.bus.irqs(0), 0);
    assert_eq!(pending.wait(), Some(Answer::Ok));
    rig.bus.irqs_after(0, 0);
}

/// The kernel enables a queue after the message about it was answered.
#[test]
fn a_queue_is_started_once_the_kernel_has_enabled_it() {
    let mut rig = Rig::new(2);
    assert!(rig.bus.negotiate(rig.bus.device_features()));
    rig.set_queues_up();
    let off = VqInfo {
        ready: false,
        ..info(&rig.queues[1])
    };
    rig.bus.set_vq(1, off);
    assert!(rig.bus.set_driver_ok());
    rig.ok(Ask::SetVqReady {
        index: 1,
        ready: true,
    });
    rig.check();
}

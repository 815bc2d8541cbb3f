// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Long runs, and two threads that must not miss each other.

use malformed_queues::on_each_memory;
use virtio_blk_driver::wire::S_OK;

use super::*;

/// Requests of a run with sleeping and waking.
#[cfg(any(feature = "thread", feature = "event-manager"))]
const ROUND_TRIPS: u64 = 3000;

/// Keeps between none and four requests in flight, and sleeps whenever there is no answer. A wake-up that
/// is lost on either side ends in a timeout.
#[cfg(any(feature = "thread", feature = "event-manager"))]
pub(super) fn ping_pong(mut apart: Apart) {
    let mut sent = 0;
    let mut open = 0;
    while sent < ROUND_TRIPS {
        for _ in 0..1 + sent % 4 {
            apart.submit(&Request::read(sent % SECTORS, 512));
            sent += 1;
            open += 1;
        }
        // Some remain, so that the device is met asleep, awake and on the way.
        while open > sent % 3 {
            assert_eq!(apart.answer().status, S_OK);
            open -= 1;
        }
    }
    for _ in 0..open {
        apart.answer();
    }
    let (ring, mem) = apart.driver.ring_mut();
    ring.audit(mem).unwrap();
}

#[cfg(feature = "thread")]
#[test]
fn no_wake_up_is_lost_between_two_threads() {
    use std::time::Duration;
    for event_idx in [false, true] {
        for (mode, wait) in [
            (Mode::Inline, WaitKind::Inline),
            (Mode::AtFlush, WaitKind::Fd),
        ] {
            for poll in [Duration::ZERO, Duration::from_micros(20)] {
                let (apart, runner) = Apart::new(disk(mode, wait), event_idx);
                let options = ThreadOptions {
                    name: "queue".to_owned(),
                    poll,
                    on_fatal: Box::new(|error| panic!("{error}")),
                };
                let kick = apart.kick.try_clone().unwrap();
                let thread = QueueThread::spawn(runner, kick, options).unwrap();
                ping_pong(apart);
                assert!(thread.stop(Stop::Drain).is_some());
            }
        }
    }
}

/// More requests than an index can count.
fn wrap_around<M: GuestMemory + Send + Sync + 'static>(
    mem: &Arc<M>,
    space: &mut Space,
    event_idx: bool,
) {
    let disk = disk(Mode::Inline, WaitKind::Inline);
    let mut rig = Rig::with(mem, space, disk, event_idx, 0);
    let mut answered = 0u32;
    let mut kicks = 0;
    while answered < 66_000 {
        for _ in 0..1 + answered % 16 {
            let request = Request::read(u64::from(answered) % SECTORS, 512);
            if rig.driver.submit(&request.indirect(true)).is_err() {
                break;
            }
        }
        kicks += u32::from(rig.driver.publish().unwrap());
        assert_eq!(rig.settle(), Service::Idle);
        for done in rig.answers() {
            assert_eq!((done.status, done.len), (S_OK, 513));
            answered += 1;
        }
        assert_eq!(rig.driver.in_flight(), 0);
        rig.disk.take_log();
    }
    assert!(kicks > 60_000 / 16);
    rig.audit();
    assert_eq!(rig.runner.counters().reads.get(), u64::from(answered));
}

#[test]
fn indices_wrap_around() {
    on_each_memory!(MEMORY, |mem, space| {
        wrap_around(&mem, &mut space, true);
    });
}

#[test]
fn indices_wrap_around_without_event_idx() {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    wrap_around(&Arc::new(mem), &mut space, false);
}

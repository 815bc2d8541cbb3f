// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ends and new beginnings: drain, hand over, replay, the in-flight log.

use std::sync::Mutex;
use std::time::Duration;

use malformed_queues::on_each_memory;
use virtio_blk_driver::wire::{Range as WireRange, S_OK};

use super::*;
use crate::device::StartError;
use crate::testdisk::Event;

fn plain(mode: Mode, wait: WaitKind) -> Rig<Plain> {
    let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
    Rig::new(&Arc::new(mem), &mut space, disk(mode, wait))
}

const RANGES: [WireRange; 2] = [
    WireRange {
        sector: 60,
        num_sectors: 1,
        flags: 0,
    },
    WireRange {
        sector: 62,
        num_sectors: 1,
        flags: 0,
    },
];

#[test]
fn a_drain_completes_everything_that_was_taken() {
    for (mode, wait) in [
        (Mode::Inline, WaitKind::Inline),
        (Mode::AtFlush, WaitKind::Fd),
        (Mode::AtFlush, WaitKind::Poll),
    ] {
        for room in [1, 3, usize::MAX] {
            on_each_memory!(MEMORY, |mem, space| {
                let disk = disk(mode, wait);
                disk.set_room(room);
                let mut rig = Rig::with(&mem, &mut space, disk, true, 65_530);
                for sector in 0..6 {
                    rig.queue(&Request::read(sector, 512));
                    rig.queue(&Request::discard(&RANGES));
                }
                // One pass, then stop in the middle of everything.
                rig.runner.service(8);
                let Rig {
                    runner, mut driver, ..
                } = rig;
                let stopped = runner.stop(Stop::Drain);
                assert!(stopped.error.is_none());
                assert!(stopped.in_flight.is_empty());
                assert_eq!(stopped.state.next_avail, stopped.state.next_used);
                let taken = stopped.state.next_used.wrapping_sub(65_530);
                assert!((1..=8).contains(&taken));
                for _ in 0..taken {
                    let done = driver.poll().unwrap().unwrap();
                    assert_eq!(done.status, S_OK);
                }
                assert!(driver.poll().unwrap().is_none());
            });
        }
    }
}

#[test]
fn a_drain_waits_for_a_late_disk() {
    for wait in [WaitKind::Fd, WaitKind::Poll] {
        let mut rig = plain(Mode::Held, wait);
        for sector in 0..4 {
            rig.queue(&Request::read(sector, 512));
        }
        rig.queue(&Request::discard(&RANGES));
        rig.settle();
        let disk = rig.disk.clone();
        let late = std::thread::spawn(move || {
            let mut released = 0;
            while released < 6 {
                std::thread::sleep(Duration::from_millis(1));
                released += disk.release(1);
            }
        });
        let stopped = rig.runner.stop(Stop::Drain);
        late.join().unwrap();
        assert!(stopped.in_flight.is_empty());
        assert_eq!(stopped.state.next_used, 5);
    }
}

#[test]
fn a_drain_takes_nothing_new() {
    let mut rig = plain(Mode::AtFlush, WaitKind::Fd);
    rig.queue(&Request::read(0, 512));
    let stopped = rig.runner.stop(Stop::Drain);
    assert_eq!((stopped.state.next_avail, stopped.state.next_used), (0, 0));
    assert!(rig.disk.take_ops().is_empty());
}

#[test]
fn a_hand_over_names_what_was_taken_and_the_next_owner_goes_on() {
    on_each_memory!(MEMORY, |mem, space| {
        for room in [2, usize::MAX] {
            let mut space = space.clone();
            let disk = disk(Mode::Held, WaitKind::Fd);
            disk.set_room(room);
            let mut rig = Rig::with(&mem, &mut space, disk, true, 65_533);
            let tokens: Vec<_> = (0..6)
                .map(|sector| rig.queue(&Request::write(sector, &[sector as u8 + 100; 512])))
                .collect();
            rig.settle();
            // One goes back before the end.
            rig.disk.release_at(1);
            rig.settle();
            let first = rig.answers();
            assert_eq!(first.len(), 1);
            let taken = rig.runner.in_flight();
            rig.disk.take_log();
            let irqs = rig.irqs();

            let stopped = rig.runner.stop(Stop::HandOver);
            assert!(stopped.error.is_none());
            assert_eq!(stopped.in_flight.len(), taken);
            let counted = stopped
                .state
                .next_avail
                .wrapping_sub(stopped.state.next_used);
            assert_eq!(usize::from(counted), taken);
            let log = rig.disk.take_log();
            let cancelled = log.iter().filter(|e| **e == Event::Cancelled).count();
            assert_eq!(cancelled, taken, "also those that had no room");
            assert!(matches!(log.last(), Some(Event::Dropped(_))));
            assert_eq!(rig.irqs.load(Ordering::SeqCst), irqs);
            assert!(rig.driver.poll().unwrap().is_none(), "nothing was returned");

            // The next owner, on the same ring.
            rig.disk.set_mode(Mode::AtFlush);
            rig.disk.set_room(usize::MAX);
            let setup = QueueSetup {
                replay: stopped.in_flight,
                ..QueueSetup::new(mem.clone(), counting(&rig.irqs))
            };
            rig.runner = rig.device.start_queue(0, setup, stopped.state).unwrap();
            assert_eq!(
                rig.irqs.load(Ordering::SeqCst),
                irqs + 1,
                "told once to look"
            );
            rig.run();
            let mut done = first;
            done.extend(rig.answers());
            assert!(done.iter().all(|d| d.status == S_OK));
            let mut seen: Vec<_> = done.iter().map(|d| d.token).collect();
            seen.sort();
            let mut tokens = tokens;
            tokens.sort();
            assert_eq!(seen, tokens, "each exactly once");
            for sector in 0..6 {
                let content = rig.disk.content(sector * 512, 512);
                assert_eq!(content, [sector as u8 + 100; 512]);
            }
            assert_eq!(
                rig.runner.stop(Stop::Drain).state.next_used,
                65_533u16.wrapping_add(6)
            );
        }
    });
}

#[test]
fn replayed_heads_run_first_and_in_order() {
    let mut rig = plain(Mode::Held, WaitKind::Fd);
    for sector in [3, 1, 2] {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    let stopped = rig.runner.stop(Stop::HandOver);
    // A new one arrives before the next owner starts.
    let token = rig.driver.submit(&Request::read(9, 512)).unwrap();
    rig.driver.publish().unwrap();
    rig.disk.take_log();
    let setup = QueueSetup {
        replay: stopped.in_flight,
        ..QueueSetup::new(rig.mem.clone(), || {})
    };
    rig.runner = rig.device.start_queue(0, setup, stopped.state).unwrap();
    // A budget that does not reach: the rest is still to come, and a stop names it.
    assert_eq!(rig.runner.service(2), Service::More);
    let stopped = rig.runner.stop(Stop::HandOver);
    assert_eq!(stopped.in_flight.len(), 3);
    let setup = QueueSetup {
        replay: stopped.in_flight,
        ..QueueSetup::new(rig.mem.clone(), || {})
    };
    rig.disk.take_log();
    rig.runner = rig.device.start_queue(0, setup, stopped.state).unwrap();
    rig.settle();
    let read = |sector: u64| OpKind::Read {
        offset: sector * 512,
    };
    assert_eq!(rig.disk.take_ops(), [3, 1, 2, 9].map(read));
    rig.disk.release(4);
    rig.run();
    let answers = rig.answers();
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[3].token, token);
}

#[test]
fn a_drain_runs_what_is_to_be_replayed() {
    let mut rig = plain(Mode::Held, WaitKind::Fd);
    for sector in 0..3 {
        rig.queue(&Request::read(sector, 512));
    }
    rig.settle();
    let stopped = rig.runner.stop(Stop::HandOver);
    rig.disk.set_mode(Mode::AtFlush);
    let setup = QueueSetup {
        replay: stopped.in_flight,
        ..QueueSetup::new(rig.mem.clone(), || {})
    };
    let runner = rig.device.start_queue(0, setup, stopped.state).unwrap();
    let stopped = runner.stop(Stop::Drain);
    assert!(stopped.in_flight.is_empty());
    assert_eq!((stopped.state.next_avail, stopped.state.next_used), (3, 3));
    let answers: Vec<_> = std::iter::from_fn(|| rig.driver.poll().unwrap()).collect();
    assert!(answers.len() == 3 && answers.iter().all(Done::is_ok));
}

#[test]
fn a_nonsensical_replay_is_refused() {
    let rig = plain(Mode::Held, WaitKind::Fd);
    let start = |replay: &[u16], taken: u16| {
        let setup = QueueSetup {
            replay: replay.to_vec(),
            ..QueueSetup::new(rig.mem.clone(), || {})
        };
        let mut state = rig.driver.state();
        state.next_avail = state.next_used.wrapping_add(taken);
        rig.device.start_queue(0, setup, state)
    };
    let opened = rig.disk.depths().len();
    let all: Vec<u16> = (0..33).collect();
    for (replay, taken) in [
        (&[0, 0][..], 2),
        (&[3, 1, 3], 3),
        (&[32], 1),
        (&[u16::MAX], 1),
        (&all, 33),
        (&[1], 0),
        (&[1, 2], 1),
    ] {
        let error = start(replay, taken).err().unwrap();
        let StartError::Ring(RingError::Replay { count, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(count, replay.len());
    }
    assert_eq!(rig.disk.depths().len(), opened, "the disk was not asked");
    assert!(start(&all[..32], 32).is_ok());
    // Fewer than were taken: an owner that lost some. They never come back, but nothing else breaks.
    assert!(start(&[1], 2).is_ok());
}

#[test]
fn dropping_a_runner_is_like_a_hand_over_without_a_word() {
    for mode in HELD {
        let mut rig = plain(mode, WaitKind::Fd);
        rig.queue(&Request::read(0, 512));
        rig.settle();
        rig.disk.take_log();
        let Rig {
            runner,
            mut driver,
            disk,
            ..
        } = rig;
        drop(runner);
        assert_eq!(disk.take_log(), [Event::Dropped(1)]);
        assert!(driver.poll().unwrap().is_none());
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Taken(u16),
    Returning(Vec<u16>, u16),
    Returned(Vec<u16>, u16),
}

/// A log that can be read, and checks the used index the driver sees.
struct TestLog {
    lines: Arc<Mutex<Vec<Line>>>,
    used_idx: Box<dyn Fn() -> u16 + Send>,
}

impl InFlightLog for TestLog {
    fn taken(&mut self, head: u16) {
        self.lines.lock().unwrap().push(Line::Taken(head));
    }

    fn returning(&mut self, heads: &[u16], used_idx: u16) {
        let before = used_idx.wrapping_sub(heads.len() as u16);
        assert_eq!((self.used_idx)(), before, "not visible yet");
        let line = Line::Returning(heads.to_vec(), used_idx);
        self.lines.lock().unwrap().push(line);
    }

    fn returned(&mut self, heads: &[u16], used_idx: u16) {
        assert_eq!((self.used_idx)(), used_idx, "visible now");
        let line = Line::Returned(heads.to_vec(), used_idx);
        self.lines.lock().unwrap().push(line);
    }
}

#[test]
fn the_log_hears_of_every_head_in_time() {
    for mode in HELD {
        let mut rig = plain(mode, WaitKind::Fd);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (mem, used) = (rig.mem.clone(), rig.driver.state().used_ring);
        let log = TestLog {
            lines: lines.clone(),
            used_idx: Box::new(move || {
                use vm_memory::{Bytes, GuestAddress};
                mem.read_obj(GuestAddress(used + 2)).unwrap()
            }),
        };
        let setup = QueueSetup {
            log: Some(Box::new(log)),
            ..QueueSetup::new(rig.mem.clone(), || {})
        };
        rig.runner = rig
            .device
            .start_queue(0, setup, rig.driver.state())
            .unwrap();
        let take = || std::mem::take(&mut *lines.lock().unwrap());

        for sector in 0..3 {
            rig.queue(&Request::read(sector, 512));
        }
        // Malformed ones are logged as well.
        rig.queue(&Request {
            status: false,
            ..Request::flush()
        });
        rig.settle();
        let log = take();
        let mut heads = Vec::new();
        for line in &log[..4] {
            let Line::Taken(head) = line else {
                panic!("{log:?}")
            };
            heads.push(*head);
        }
        let bad = vec![heads[3]];
        assert_eq!(
            log[4..],
            [Line::Returning(bad.clone(), 1), Line::Returned(bad, 1)]
        );

        rig.disk.release_at(2);
        rig.disk.release_at(0);
        rig.settle();
        let done = vec![heads[2], heads[0]];
        assert_eq!(
            take(),
            [Line::Returning(done.clone(), 3), Line::Returned(done, 3)]
        );
        // What it has not heard the end of is what a hand over names.
        assert_eq!(rig.runner.stop(Stop::HandOver).in_flight, [heads[1]]);
        assert!(take().is_empty());
    }
}

#[test]
fn used_entries_become_visible_in_pieces_of_a_long_batch() {
    let mut rig = plain(Mode::Inline, WaitKind::Inline);
    // A driver that can put more than one piece into its ring.
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = lines.clone();
    struct Sizes(Arc<Mutex<Vec<usize>>>);
    impl InFlightLog for Sizes {
        fn taken(&mut self, _: u16) {}
        fn returning(&mut self, heads: &[u16], _: u16) {
            self.0.lock().unwrap().push(heads.len());
        }
        fn returned(&mut self, _: &[u16], _: u16) {}
    }
    let setup = QueueSetup {
        log: Some(Box::new(Sizes(seen))),
        ..QueueSetup::new(rig.mem.clone(), || {})
    };
    let state = rig.driver.state();
    rig.runner = rig.device.start_queue(0, setup, state).unwrap();
    for _ in 0..16 {
        rig.driver.submit(&Request::flush().indirect(true)).unwrap();
    }
    rig.driver.publish().unwrap();
    assert_eq!(rig.settle(), Service::Idle);
    assert_eq!(lines.lock().unwrap().iter().sum::<usize>(), 16);
    assert!(
        lines
            .lock()
            .unwrap()
            .iter()
            .all(|&n| n <= completion::PUBLISH_EVERY)
    );
    assert_eq!(rig.answers().len(), 16);
}

/// An owner that continues without ever saying whether it wants kicks, as some devices do: what the one before
/// left in the ring must not keep the driver from kicking.
#[test]
fn a_stopped_queue_leaves_a_ring_whose_driver_kicks() {
    for event_idx in [false, true] {
        for mode in [Stop::Drain, Stop::HandOver] {
            let (mem, mut space) = malformed_queues::testmem::single(MEMORY).unwrap();
            let disk = disk(Mode::AtFlush, WaitKind::Fd);
            let mut rig = Rig::with(&Arc::new(mem), &mut space, disk, event_idx, 65_530);
            for sector in 0..8 {
                rig.queue(&Request::read(sector, 512));
            }
            // Within a batch, when no kick is wanted.
            assert_eq!(rig.runner.service(4), Service::More);
            let flags = vm_memory::GuestAddress(rig.driver.state().used_ring);
            let flags = || vm_memory::Bytes::read_obj::<u16>(&*rig.mem, flags).unwrap();
            assert_eq!(flags(), 0, "never touched so far");
            rig.runner.set_intake(true);
            while rig.runner.service(64) != Service::Idle || rig.runner.in_flight() != 0 {}
            rig.driver
                .submit(&Request::read(9, 512).indirect(true))
                .unwrap();
            assert!(rig.driver.publish().unwrap(), "an idle queue wants a kick");
            rig.driver
                .submit(&Request::read(10, 512).indirect(true))
                .unwrap();
            rig.driver.publish().unwrap();
            assert_eq!(rig.runner.service(1), Service::More);
            assert_eq!(flags(), u16::from(!event_idx), "a busy one does not");
            let state = rig.runner.stop(mode).state;
            assert_eq!(flags(), 0);
            // What was there when it stopped is found by the next owner's first scan, up to there; the one
            // after it is announced by a kick.
            rig.driver
                .submit(&Request::read(11, 512).indirect(true))
                .unwrap();
            let kick = rig.driver.publish().unwrap();
            assert_eq!(
                kick, !event_idx,
                "with an index it is wanted for the next that is taken"
            );
            let at = vm_memory::GuestAddress(rig.driver.state().used_ring + 4 + 8 * 32);
            if event_idx {
                let event: u16 = vm_memory::Bytes::read_obj(&*rig.mem, at).unwrap();
                assert_eq!(event, state.next_avail);
            }
        }
    }
}

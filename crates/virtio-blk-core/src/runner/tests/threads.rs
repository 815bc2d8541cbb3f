// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread per queue.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use virtio_blk_driver::wire::{S_IOERR, S_OK};
use vm_memory::Bytes;

use super::*;
use crate::testdisk::{Break, Event};

/// What a thread said when its queue broke.
type Told = mpsc::Receiver<String>;

fn spawn(mode: Mode, wait: WaitKind, poll: Duration) -> (Apart, QueueThread<Arc<Plain>>, Told) {
    let (apart, runner) = Apart::new(disk(mode, wait), true);
    let (sender, told) = mpsc::channel();
    let options = ThreadOptions {
        name: "queue".to_owned(),
        poll,
        on_fatal: Box::new(move |error| sender.send(error.to_string()).unwrap()),
    };
    let kick = apart.kick.try_clone().unwrap();
    let thread = QueueThread::spawn(runner, kick, options).unwrap();
    (apart, thread, told)
}

const KINDS: [(Mode, WaitKind); 3] = [
    (Mode::Inline, WaitKind::Inline),
    (Mode::AtFlush, WaitKind::Fd),
    (Mode::AtFlush, WaitKind::Poll),
];

#[test]
fn a_thread_serves_and_stops() {
    for (mode, wait) in KINDS {
        for poll in [Duration::ZERO, Duration::from_micros(200)] {
            let (mut apart, thread, _told) = spawn(mode, wait, poll);
            for sector in 0..20u64 {
                let token = apart.submit(&Request::read(sector, 512));
                let done = apart.answer();
                assert_eq!((done.token, done.status), (token, S_OK));
            }
            let stopped = thread.stop(Stop::Drain).unwrap();
            assert_eq!(stopped.state.next_used, 65_020);
            assert!(stopped.in_flight.is_empty() && stopped.error.is_none());
        }
    }
}

#[test]
fn calls_run_on_the_thread_and_answer() {
    let (_apart, thread, _told) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
    let here = std::thread::current().id();
    for n in 0..100 {
        let (there, twice) = thread
            .with(move |runner| {
                assert_eq!(runner.in_flight(), 0);
                (std::thread::current().id(), 2 * n)
            })
            .unwrap();
        assert_ne!(there, here);
        assert_eq!(twice, 2 * n);
    }
}

#[test]
fn a_broken_queue_is_told_once_and_still_takes_calls() {
    let (mut apart, thread, told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
    let token = apart.submit(&Request::read(0, 512));
    while apart.disk.held() == 0 {
        std::thread::yield_now();
    }
    apart.disk.set_break(Break::Reap);
    apart.kick.write(1).unwrap();
    let done = apart.answer();
    assert_eq!((done.token, done.status), (token, S_IOERR));
    let told_so = told.recv().unwrap();
    assert!(
        told_so.starts_with("the disk's queue is broken"),
        "{told_so}"
    );
    assert_eq!(thread.with(|runner| runner.error().is_some()), Some(true));
    apart.kick.write(1).unwrap();
    assert_eq!(thread.with(|runner| runner.in_flight()), Some(0));
    let stopped = thread.stop(Stop::Drain).unwrap();
    assert!(matches!(stopped.error, Some(QueueError::Disk(_))));
    assert!(told.recv().is_err(), "once");
}

#[test]
fn a_broken_ring_is_told() {
    let (apart, thread, told) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
    let avail = apart.driver.state().avail_ring;
    let idx = vm_memory::GuestAddress(avail + 2);
    apart.driver.memory().write_obj(0u16, idx).unwrap();
    apart.kick.write(1).unwrap();
    assert!(told.recv().unwrap().starts_with("the virtqueue is broken"));
    let stopped = thread.stop(Stop::HandOver).unwrap();
    assert!(matches!(
        stopped.error,
        Some(QueueError::Ring(RingError::AvailIndex { .. }))
    ));
}

/// A panic is a bug in a disk; a caller that waits for the thread must not wait for ever.
#[test]
fn a_thread_that_panicked_is_gone() {
    let (mut apart, thread, told) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
    assert_eq!(thread.with(|_| 1), Some(1));
    apart.disk.set_panic();
    apart.submit(&Request::read(0, 512));
    // The calls race with the end.
    for _ in 0..1000 {
        if thread.with(|_| 1).is_none() {
            break;
        }
        std::thread::yield_now();
    }
    assert_eq!(thread.with(|_| 1), None);
    assert!(thread.stop(Stop::Drain).is_none());
    let text = told.recv().unwrap();
    assert!(text.starts_with("its thread panicked"), "{text}");
    assert!(told.recv().is_err(), "once");
}

/// One queue after another, also after one whose disk panicked.
#[test]
fn a_thread_that_stands_by_serves_again() {
    let standby = StandbyThread::spawn("standby".to_owned()).unwrap();
    let mut ids = Vec::new();
    for panics in [false, true, false] {
        let (mut apart, runner) = Apart::new(disk(Mode::Inline, WaitKind::Inline), true);
        let options = ThreadOptions {
            name: String::new(),
            poll: Duration::ZERO,
            on_fatal: Box::new(|_| {}),
        };
        let kick = apart.kick.try_clone().unwrap();
        let thread = QueueThread::serve_on(&standby, runner, kick, options).unwrap();
        apart.submit(&Request::read(0, 512));
        assert_eq!(apart.answer().status, S_OK);
        ids.push(thread.with(|_| std::thread::current().id()).unwrap());
        if panics {
            apart.disk.set_panic();
            apart.submit(&Request::read(0, 512));
            assert!(thread.wait_stopped(Instant::now() + Duration::from_secs(60)));
            assert!(thread.stop(Stop::Drain).is_none());
        } else {
            assert!(thread.stop(Stop::Drain).unwrap().error.is_none());
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    // Of a queue that is dropped before it was served nothing is left.
    let (apart, runner) = Apart::new(disk(Mode::Inline, WaitKind::Inline), true);
    let kick = apart.kick.try_clone().unwrap();
    let options = ThreadOptions {
        name: String::new(),
        poll: Duration::ZERO,
        on_fatal: Box::new(|_| {}),
    };
    drop(QueueThread::serve_on(&standby, runner, kick, options).unwrap());
    drop(standby);
    assert!(matches!(
        apart.disk.take_log().last(),
        Some(Event::Dropped(0))
    ));
}

/// Nothing asks the thread for anything: that it panicked must be told nevertheless, and the disk not waited for.
#[test]
fn a_panic_is_told_at_once() {
    let (mut apart, thread, told) = spawn(Mode::AtFlush, WaitKind::Fd, Duration::ZERO);
    let (sender, reports) = mpsc::channel();
    apart.device.on_request_error(move |error| {
        sender.send(error.to_string()).unwrap();
    });
    apart.disk.set_panic();
    apart.submit(&Request::read(0, 512));
    assert!(told.recv().unwrap().starts_with("its thread panicked"));
    let text = reports.recv().unwrap();
    assert!(text.starts_with("queue 0: its thread panicked"), "{text}");
    // It has ended without a stop, and stays so.
    assert!(thread.wait_stopped(Instant::now() + Duration::from_secs(60)));
    assert!(thread.stop(Stop::HandOver).is_none());
}

/// A call that panics is as bad as a disk that does.
#[test]
fn a_call_that_panics_is_told() {
    for mode in [Stop::Drain, Stop::HandOver] {
        let (_apart, thread, told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
        thread.post(|_| std::panic::resume_unwind(Box::new("the test asked for it")));
        assert!(thread.stop(mode).is_none());
        assert!(told.recv().unwrap().starts_with("its thread panicked"));
        assert!(told.recv().is_err(), "once");
    }
}

#[test]
fn dropping_a_thread_ends_its_queue() {
    for poll in [Duration::ZERO, Duration::from_secs(100)] {
        let (mut apart, thread, _told) = spawn(Mode::Held, WaitKind::Fd, poll);
        for sector in 0..3 {
            apart.submit(&Request::read(sector, 512));
        }
        while apart.disk.held() < 3 {
            std::thread::yield_now();
        }
        apart.disk.take_log();
        drop(thread);
        let log = apart.disk.take_log();
        assert_eq!(log.last(), Some(&Event::Dropped(3)));
        assert!(apart.driver.poll().unwrap().is_none());
        assert!(!readable(&apart.irq, 0) || apart.irq.read().is_ok());
    }
}

#[test]
fn a_stop_hands_over_what_the_next_thread_takes_up() {
    let (mut apart, thread, _told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
    let tokens: Vec<_> = (0..4)
        .map(|sector| apart.submit(&Request::read(sector, 512)))
        .collect();
    while apart.disk.held() < 4 {
        std::thread::yield_now();
    }
    let stopped = thread.stop(Stop::HandOver).unwrap();
    assert_eq!(stopped.in_flight.len(), 4);
    let device = device(&apart.disk);
    apart.disk.set_mode(Mode::AtFlush);
    let notifier = apart.irq.try_clone().unwrap();
    let mem = Arc::new(apart.driver.memory().clone());
    let setup = QueueSetup {
        replay: stopped.in_flight,
        ..QueueSetup::new(mem, move || notifier.write(1).unwrap())
    };
    let runner = device.start_queue(0, setup, stopped.state).unwrap();
    let options = ThreadOptions {
        name: String::new(),
        poll: Duration::ZERO,
        on_fatal: Box::new(|_| {}),
    };
    let kick = apart.kick.try_clone().unwrap();
    let _thread = QueueThread::spawn(runner, kick, options).unwrap();
    for token in tokens {
        let done = apart.answer();
        assert_eq!((done.token, done.status), (token, S_OK));
    }
}

#[test]
fn a_deadline_brings_the_thread_back() {
    let (mut apart, thread, _told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
    let at = Instant::now() + Duration::from_millis(20);
    apart.disk.set_deadline(Some(at));
    apart.submit(&Request::read(0, 512));
    while apart.disk.held() == 0 {
        std::thread::yield_now();
    }
    // Nothing else happens that would wake it, more than once.
    let before = thread.with(|_| ()).map(|()| apart.disk.reaps()).unwrap();
    while apart.disk.reaps() < before + 5 {
        std::thread::yield_now();
    }
    assert!(Instant::now() >= at);
    apart.disk.set_deadline(None);
    apart.disk.release(1);
    assert_eq!(apart.answer().status, S_OK);
}

#[test]
fn a_stop_can_be_begun_and_waited_for() {
    let (mut apart, thread, _told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
    let token = apart.submit(&Request::read(0, 512));
    while apart.disk.held() == 0 {
        std::thread::yield_now();
    }
    let (sender, told) = mpsc::channel();
    thread.begin_stop(Stop::Drain, move || sender.send(()).unwrap());
    assert!(!thread.wait_stopped(Instant::now()));
    assert!(told.try_recv().is_err());
    apart.disk.release(1);
    told.recv().unwrap();
    assert!(thread.wait_stopped(Instant::now()));
    // Too late for both, and that is said.
    thread.post(|_| panic!("the thread is gone"));
    let (sender, told) = mpsc::channel();
    thread.begin_stop(Stop::HandOver, move || sender.send(()).unwrap());
    told.recv().unwrap();
    assert!(thread.stop(Stop::Drain).unwrap().in_flight.is_empty());
    assert_eq!(apart.answer().token, token);
}

#[test]
fn a_drain_can_be_cut_short() {
    let (mut apart, thread, _told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
    for sector in 0..2 {
        apart.submit(&Request::read(sector, 512));
    }
    while apart.disk.held() != 2 {
        std::thread::yield_now();
    }
    thread.begin_stop(Stop::Drain, || {});
    apart.disk.release(1);
    let answered = apart.answer();
    assert!(!thread.wait_stopped(Instant::now()));
    let (sender, told) = mpsc::channel();
    thread.begin_stop(Stop::HandOver, move || sender.send(()).unwrap());
    told.recv().unwrap();
    let stopped = thread.stop(Stop::Drain).unwrap();
    assert_eq!((answered.status, stopped.in_flight.len()), (S_OK, 1));
    assert_eq!(apart.disk.held(), 0, "cancelled");
    assert!(apart.driver.poll().unwrap().is_none());
}

#[test]
fn a_detached_thread_ends_by_itself() {
    let (apart, thread, _told) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
    let (go, gate) = mpsc::channel::<()>();
    // The queue of an earlier start.
    apart.disk.take_log();
    // A disk that does not let go.
    thread.post(move |_| gate.recv().unwrap());
    thread.begin_stop(Stop::Drain, || {});
    thread.begin_stop(Stop::HandOver, || {});
    thread.detach();
    let ended = || {
        let log = apart.disk.take_log();
        log.iter().any(|event| matches!(event, Event::Dropped(_)))
    };
    assert!(!ended());
    go.send(()).unwrap();
    while !ended() {
        std::thread::yield_now();
    }
}

/// The time for those that are inside a call of the disk is not spent for one after the other.
#[test]
fn many_threads_are_detached_at_a_time() {
    const THREADS: u32 = 8;
    let mut gates = Vec::new();
    let (threads, ends): (Vec<_>, Vec<_>) = (0..THREADS)
        .map(|_| {
            let (apart, thread, _told) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
            let (go, gate) = mpsc::channel::<()>();
            let (inside, is_inside) = mpsc::channel();
            thread.post(move |_| {
                inside.send(()).unwrap();
                gate.recv().unwrap();
            });
            is_inside.recv().unwrap();
            gates.push(go);
            let (sender, told) = mpsc::channel();
            thread.begin_stop(Stop::HandOver, move || sender.send(()).unwrap());
            (thread, (told, apart))
        })
        .unzip();
    let alone = Duration::from_millis(200);
    let started = Instant::now();
    QueueThread::detach_all(threads);
    let took = started.elapsed();
    assert!(took >= alone && took < alone * (THREADS - 1), "{took:?}");
    for (go, (told, _apart)) in gates.iter().zip(ends) {
        assert!(told.try_recv().is_err());
        go.send(()).unwrap();
        // It ends all the same, and says so.
        told.recv().unwrap();
    }
}

#[test]
fn a_posted_call_is_not_waited_for() {
    let (_apart, thread, _told) = spawn(Mode::Inline, WaitKind::Inline, Duration::ZERO);
    let (sender, done) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    thread.post(move |runner| {
        gate.recv().unwrap();
        sender.send(runner.in_flight()).unwrap();
    });
    // The thread waits for what is only sent now.
    go.send(()).unwrap();
    assert_eq!(done.recv(), Ok(0));
}

#[test]
fn a_deadline_brings_the_thread_back_to_a_broken_ring() {
    let (mut apart, thread, told) = spawn(Mode::Held, WaitKind::Fd, Duration::ZERO);
    apart.submit(&Request::read(0, 512));
    while apart.disk.held() == 0 {
        std::thread::yield_now();
    }
    apart.disk.set_keeps();
    apart.disk.set_deadline(Some(Instant::now()));
    let idx = vm_memory::GuestAddress(apart.driver.state().avail_ring + 2);
    apart.driver.memory().write_obj(0u16, idx).unwrap();
    apart.kick.write(1).unwrap();
    told.recv().unwrap();
    let goal = apart.disk.reaps() + 20;
    let late = Instant::now() + Duration::from_secs(5);
    while apart.disk.reaps() < goal && Instant::now() < late {
        std::thread::yield_now();
    }
    let reaps = apart.disk.reaps();
    apart.disk.release(1);
    thread.stop(Stop::HandOver).unwrap();
    assert!(reaps >= goal, "the thread sleeps");
}

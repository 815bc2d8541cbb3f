// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue in an event-manager loop.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use virtio_blk_driver::wire::S_OK;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::testdisk::Break;

type Subscriber = Arc<Mutex<QueueSubscriber<Arc<Plain>>>>;
type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

struct Loop {
    apart: Apart,
    manager: Manager,
    subscriber: Subscriber,
    id: event_manager::SubscriberId,
    fatal: Arc<Mutex<Vec<String>>>,
}

fn serve(mode: Mode, wait: WaitKind) -> Loop {
    let (apart, runner) = Apart::new(disk(mode, wait), true);
    let fatal = Arc::new(Mutex::new(Vec::new()));
    let told = fatal.clone();
    let kick = apart.kick.try_clone().unwrap();
    let on_fatal: OnFatal = Box::new(move |error| told.lock().unwrap().push(error.to_string()));
    let subscriber = QueueSubscriber::new(runner, kick, on_fatal).unwrap();
    let subscriber = Arc::new(Mutex::new(subscriber));
    let mut manager = Manager::new().unwrap();
    let id = manager.add_subscriber(subscriber.clone() as Arc<Mutex<_>>);
    Loop {
        apart,
        manager,
        subscriber,
        id,
        fatal,
    }
}

impl Loop {
    /// Runs until nothing fires any more.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the loop does not come to rest");
    }

    fn fatal(&self) -> Vec<String> {
        self.fatal.lock().unwrap().clone()
    }
}

#[test]
fn a_subscriber_serves_and_stops() {
    for (mode, wait) in [
        (Mode::Inline, WaitKind::Inline),
        (Mode::AtFlush, WaitKind::Fd),
        (Mode::AtFlush, WaitKind::Poll),
    ] {
        let mut serving = serve(mode, wait);
        serving.settle();
        for sector in 0..20 {
            let token = serving.apart.submit(&Request::read(sector, 512));
            serving.settle();
            let done = serving.apart.driver.poll().unwrap().unwrap();
            assert_eq!((done.token, done.status), (token, S_OK));
        }
        serving.manager.remove_subscriber(serving.id).unwrap();
        let mut subscriber = serving.subscriber.lock().unwrap();
        assert!(subscriber.runner().is_some());
        let stopped = subscriber.stop(Stop::Drain).unwrap();
        assert_eq!(stopped.state.next_used, 65_020);
        assert!(subscriber.runner().is_none());
        assert!(subscriber.stop(Stop::Drain).is_none());
    }
}

#[test]
fn what_was_available_before_is_served_without_a_kick() {
    let (mut apart, runner) = Apart::new(disk(Mode::Inline, WaitKind::Inline), true);
    apart.driver.submit(&Request::flush()).unwrap();
    apart.driver.publish().unwrap();
    let kick = apart.kick.try_clone().unwrap();
    let subscriber = QueueSubscriber::new(runner, kick, Box::new(|_| {})).unwrap();
    let mut manager = Manager::new().unwrap();
    manager.add_subscriber(Arc::new(Mutex::new(subscriber)));
    while apart.driver.poll().unwrap().is_none() {
        assert_ne!(manager.run_with_timeout(20_000).unwrap(), 0);
    }
}

/// A disk that breaks closes its descriptor. The loop must be rid of it: the same number soon means
/// something else.
#[test]
fn a_broken_disk_leaves_the_loop() {
    let mut serving = serve(Mode::Held, WaitKind::Fd);
    serving.apart.submit(&Request::read(0, 512));
    serving.settle();
    serving.apart.disk.set_break(Break::Reap);
    serving.apart.kick.write(1).unwrap();
    serving.settle();
    assert_eq!(serving.fatal().len(), 1);
    assert!(serving.apart.driver.poll().unwrap().is_some());
    serving.apart.kick.write(1).unwrap();
    serving.settle();
    assert_eq!(serving.fatal().len(), 1, "once");

    // Takes the lowest free numbers.
    struct Other(Vec<EventFd>, bool);
    impl MutEventSubscriber for Other {
        fn process(&mut self, _: Events, _: &mut EventOps) {}
        fn init(&mut self, ops: &mut EventOps) {
            self.1 = self
                .0
                .iter()
                .all(|fd| ops.add(Events::new(fd, EventSet::IN)).is_ok());
        }
    }
    let fds = (0..8).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let other = Arc::new(Mutex::new(Other(fds.collect(), false)));
    serving.manager.add_subscriber(other.clone());
    assert!(other.lock().unwrap().1);
}

#[test]
fn a_broken_ring_collects_what_the_disk_has_and_leaves_it_alone() {
    let mut serving = serve(Mode::Held, WaitKind::Fd);
    serving.apart.submit(&Request::read(0, 512));
    serving.settle();
    let avail = serving.apart.driver.state().avail_ring;
    let idx = vm_memory::GuestAddress(avail + 2);
    let mem = serving.apart.driver.memory();
    mem.write_obj(0u16, idx).unwrap();
    serving.apart.kick.write(1).unwrap();
    serving.settle();
    assert_eq!(serving.fatal().len(), 1);
    assert_eq!(serving.apart.disk.held(), 0, "cancelled");
    serving.settle();
    // Nobody waits for the disk any more, which could ring for ever.
    let reaps = serving.apart.disk.reaps();
    serving.settle();
    assert_eq!(serving.apart.disk.reaps(), reaps);
    serving.manager.remove_subscriber(serving.id).unwrap();
    let stopped = serving
        .subscriber
        .lock()
        .unwrap()
        .stop(Stop::Drain)
        .unwrap();
    assert!(stopped.in_flight.is_empty());
}

#[test]
fn a_deadline_brings_the_loop_back() {
    let mut serving = serve(Mode::Held, WaitKind::Fd);
    serving.settle();
    let at = Instant::now() + Duration::from_millis(20);
    serving.apart.disk.set_deadline(Some(at));
    serving.apart.submit(&Request::read(0, 512));
    serving.settle();
    let before = serving.apart.disk.reaps();
    while serving.apart.disk.reaps() == before {
        assert_ne!(serving.manager.run_with_timeout(20_000).unwrap(), 0);
    }
    assert!(Instant::now() >= at);
}

/// The timer fires in the same round as a kick, whose pass sets it anew: it must not be waited for.
#[test]
fn a_timer_that_is_set_again_does_not_block_the_loop() {
    let mut serving = serve(Mode::Held, WaitKind::Fd);
    serving.settle();
    let soon = Instant::now() + Duration::from_millis(10);
    serving.apart.disk.set_deadline(Some(soon));
    serving.apart.submit(&Request::read(0, 512));
    // Once for the kick, which sets the timer.
    while serving.apart.disk.held() == 0 {
        serving.manager.run_with_timeout(20_000).unwrap();
    }
    serving.apart.kick.write(1).unwrap();
    let late = Instant::now() + Duration::from_secs(3600);
    serving.apart.disk.set_deadline(Some(late));
    std::thread::sleep(Duration::from_millis(30));
    serving.settle();
    serving.apart.disk.release(1);
    serving.settle();
    assert!(serving.apart.driver.poll().unwrap().is_some());
}

#[test]
fn a_polled_disk_is_polled_although_it_has_a_deadline() {
    let mut serving = serve(Mode::Held, WaitKind::Poll);
    let late = Instant::now() + Duration::from_secs(3600);
    serving.apart.disk.set_deadline(Some(late));
    serving.apart.submit(&Request::read(0, 512));
    while serving.apart.disk.held() == 0 {
        serving.manager.run_with_timeout(20_000).unwrap();
    }
    serving.apart.disk.release(1);
    while serving.apart.driver.poll().unwrap().is_none() {
        assert_ne!(serving.manager.run_with_timeout(20_000).unwrap(), 0);
    }
}

#[test]
fn no_wake_up_is_lost_in_a_loop() {
    for event_idx in [false, true] {
        for (mode, wait) in [
            (Mode::Inline, WaitKind::Inline),
            (Mode::AtFlush, WaitKind::Fd),
        ] {
            let (apart, runner) = Apart::new(disk(mode, wait), event_idx);
            let kick = apart.kick.try_clone().unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let stopping = stop.clone();
            let thread = std::thread::spawn(move || {
                let on_fatal: OnFatal = Box::new(|error| panic!("{error}"));
                let subscriber = QueueSubscriber::new(runner, kick, on_fatal).unwrap();
                let mut manager = Manager::new().unwrap();
                manager.add_subscriber(Arc::new(Mutex::new(subscriber)));
                while !stopping.load(Ordering::Relaxed) {
                    manager.run_with_timeout(5).unwrap();
                }
            });
            stress::ping_pong(apart);
            stop.store(true, Ordering::Relaxed);
            thread.join().unwrap();
        }
    }
}

/// A disk that can't call back what it has, and tells nothing when that ends, is asked when it wants to be.
#[test]
fn a_deadline_brings_the_loop_back_to_a_broken_ring() {
    let mut serving = serve(Mode::Held, WaitKind::Fd);
    serving.apart.submit(&Request::read(0, 512));
    serving.settle();
    let disk = serving.apart.disk.clone();
    disk.set_keeps();
    disk.set_deadline(Some(Instant::now()));
    let idx = vm_memory::GuestAddress(serving.apart.driver.state().avail_ring + 2);
    serving.apart.driver.memory().write_obj(0u16, idx).unwrap();
    serving.apart.kick.write(1).unwrap();
    let goal = disk.reaps() + 20;
    while disk.reaps() < goal {
        assert_ne!(serving.manager.run_with_timeout(5_000).unwrap(), 0);
    }
    assert_eq!((serving.fatal().len(), disk.held()), (1, 1));
    serving.manager.remove_subscriber(serving.id).unwrap();
    // Nor is it forgotten in a stop.
    let subscriber = serving.subscriber.clone();
    let goal = disk.reaps() + 20;
    let stop = std::thread::spawn(move || subscriber.lock().unwrap().stop(Stop::Drain));
    let late = Instant::now() + Duration::from_secs(5);
    while disk.reaps() < goal && Instant::now() < late {
        std::thread::yield_now();
    }
    let reaps = disk.reaps();
    disk.release(1);
    assert!(stop.join().unwrap().unwrap().in_flight.is_empty());
    assert!(reaps >= goal, "the stop waits");
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, TryRecvError};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use virtio_blk_driver::request::Request;

use crate::device::{Device, DeviceOptions};
use crate::disk::{Caps, Completion, Disk, DiskError, IoQueue, Op, Submit, Wait};
use crate::runner::tests::{Apart, Plain, disk};
use crate::runner::{MediumEvent, QueueSetup};
use crate::testdisk::{Mode, TestDisk, WaitKind};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn later() -> Instant {
    Instant::now() + PATIENCE
}

/// What a queue of the disk does when it is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    Works,
    Hangs,
    Panics,
}

/// A disk whose queues let go of their buffers when the test says so.
#[derive(Clone)]
struct Stubborn {
    disk: TestDisk,
    close: Arc<(Mutex<Close>, Condvar)>,
    /// Taken into use, or let go of.
    uses: Sender<bool>,
}

impl Stubborn {
    fn new(mode: Mode) -> (Self, Receiver<bool>) {
        let (uses, heard) = channel();
        let close = Arc::new((Mutex::new(Close::Works), Condvar::new()));
        let disk = disk(mode, WaitKind::Fd);
        (Self { disk, close, uses }, heard)
    }

    fn set(&self, close: Close) {
        *self.close.0.lock().unwrap() = close;
        self.close.1.notify_all();
    }
}

impl Disk for Stubborn {
    fn caps(&self) -> Caps {
        self.disk.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(StubbornQueue {
            queue: self.disk.open_queue(depth)?,
            close: self.close.clone(),
        }))
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.uses.send(true).unwrap();
        Ok(())
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.uses.send(false).unwrap();
        Ok(())
    }
}

struct StubbornQueue {
    queue: Box<dyn IoQueue>,
    close: Arc<(Mutex<Close>, Condvar)>,
}

impl IoQueue for StubbornQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.queue.submit(op)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.queue.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.queue.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.queue.wait()
    }
}

impl Drop for StubbornQueue {
    fn drop(&mut self) {
        let close = self.close.0.lock().unwrap();
        let close = (self.close.1)
            .wait_while(close, |close| *close == Close::Hangs)
            .unwrap();
        let panics = *close == Close::Panics;
        drop(close);
        if panics {
            std::panic::resume_unwind(Box::new("the test asked for it"));
        }
    }
}

/// A set over one disk.
struct Rig {
    set: QueueSet<Arc<Plain>>,
    disk: Stubborn,
    uses: Receiver<bool>,
    /// How often a stop has ended.
    stops: Arc<AtomicUsize>,
    /// Whenever nothing is to be waited for.
    settled: Receiver<()>,
    /// What broke.
    broken: (Sender<String>, Receiver<String>),
}

impl Rig {
    fn new(queues: u16, mode: Mode) -> Self {
        let (disk, uses) = Stubborn::new(mode);
        let (sender, settled) = channel();
        let medium = Medium::new(Arc::new(disk.clone()), move |event| {
            if let MediumEvent::Settled = event {
                // The set may outlive the test's interest.
                let _ = sender.send(());
            }
        });
        let stops = Arc::new(AtomicUsize::new(0));
        let counted = stops.clone();
        let set = QueueSet::new(medium, queues, move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        Self {
            set,
            disk,
            uses,
            stops,
            settled,
            broken: channel(),
        }
    }

    /// Starts queue `index`, and returns its driver.
    fn start(&mut self, index: u16) -> (Apart, io::Result<()>) {
        self.set.medium().take(later()).unwrap().unwrap();
        let (apart, _) = Apart::new(self.disk.disk.clone(), true);
        let device = Device::new(Arc::new(self.disk.clone()), DeviceOptions::default()).unwrap();
        device.accept(apart.device.accepted()).unwrap();
        let irq = apart.irq.try_clone().unwrap();
        // The same memory.
        let memory = Arc::new(apart.driver.memory().clone());
        let setup = QueueSetup::new(memory, move || irq.write(1).unwrap());
        let state = apart.driver.state();
        let runner = device.start_queue(0, setup, state).unwrap();
        let broken = self.broken.0.clone();
        let options = ThreadOptions {
            name: format!("queue{index}"),
            poll: Duration::ZERO,
            on_fatal: Box::new(move |error| broken.send(error.to_string()).unwrap()),
        };
        let kick = apart.kick.try_clone().unwrap();
        let started = self.set.start(index, runner, kick, options);
        (apart, started)
    }

    fn started(&mut self, index: u16) -> Apart {
        let (apart, started) = self.start(index);
        started.unwrap();
        apart
    }

    /// Stops everything. Returns which queues stopped, those that panicked apart.
    fn stop(&mut self, mode: Stop, deadline: Instant) -> (Vec<u16>, Vec<u16>, Vec<u16>) {
        let (mut stopped, mut panicked) = (Vec::new(), Vec::new());
        let late = self.set.stop(
            |_| true,
            mode,
            deadline,
            |index, left| match left {
                Some(_) => stopped.push(index),
                None => panicked.push(index),
            },
        );
        (stopped, panicked, late)
    }
}

#[test]
fn the_disk_is_in_use_while_a_queue_runs() {
    let mut rig = Rig::new(2, Mode::AtFlush);
    for round in 0..2 {
        let mut drivers = [rig.started(0), rig.started(1)];
        for driver in &mut drivers {
            let token = driver.submit(&Request::read(1, 512));
            assert_eq!(driver.answer().token, token);
        }
        assert_eq!(rig.uses.try_iter().collect::<Vec<_>>(), [true], "{round}");
        // One of two.
        let late = rig.set.stop(
            |index| index == 1,
            Stop::Drain,
            later(),
            |index, left| {
                assert_eq!(index, 1);
                assert_eq!(left.unwrap().state.next_avail, 65_001);
            },
        );
        assert!(late.is_empty() && rig.set.is_running(0) && !rig.set.is_running(1));
        assert_eq!(rig.set.release(later()), Some(Ok(())));
        assert!(rig.uses.try_recv().is_err(), "the other one runs");
        let stopped = rig.stop(Stop::Drain, later());
        assert_eq!(stopped, (vec![0], vec![], vec![]));
        assert!(rig.set.is_idle());
        assert_eq!(rig.set.release(later()), Some(Ok(())));
        assert_eq!(rig.uses.try_iter().collect::<Vec<_>>(), [false], "{round}");
        assert_eq!(rig.stops.swap(0, Ordering::SeqCst), 2);
    }
}

#[test]
fn a_queue_starts_once_and_only_where_there_is_one() {
    let mut rig = Rig::new(1, Mode::AtFlush);
    let _driver = rig.started(0);
    let error = |started: io::Result<()>| started.unwrap_err().to_string();
    assert_eq!(error(rig.start(0).1), "queue 0 has not stopped");
    assert_eq!(error(rig.start(1).1), "queue 1 of a device with 1");
    assert_eq!(rig.stop(Stop::Drain, later()).0, [0]);
}

/// One deadline, whatever the number of queues, and the drain is cut short by a hand-over.
#[test]
fn what_is_late_stays_in_the_set() {
    let mut rig = Rig::new(3, Mode::Held);
    let mut drivers = [rig.started(0), rig.started(1), rig.started(2)];
    for driver in &mut drivers[..2] {
        driver.submit(&Request::read(1, 512));
    }
    while rig.disk.disk.held() < 2 {
        std::thread::yield_now();
    }
    let (stopped, _, late) = rig.stop(Stop::Drain, Instant::now() + Duration::from_millis(20));
    assert_eq!((stopped, late), (vec![2], vec![0, 1]));
    assert!(rig.set.is_stopping(0) && rig.set.is_running(0) && !rig.set.is_stopping(2));
    assert_eq!(rig.set.release(later()), Some(Ok(())));
    assert_eq!(
        rig.uses.try_iter().collect::<Vec<_>>(),
        [true],
        "it is used"
    );
    rig.set.begin_stop(|index| index == 1, Stop::HandOver);
    // Does not make a drain of it again.
    rig.set.begin_stop(|index| index == 1, Stop::Drain);
    let mut heads = 0;
    let late = rig.set.wait_stopped(
        |index| index == 1,
        later(),
        |_, left| heads = left.unwrap().in_flight.len(),
    );
    assert_eq!((late.len(), heads), (0, 1), "it is handed over");
    assert_eq!(rig.disk.disk.release(1), 1);
    let late = rig.set.wait_stopped(
        |_| true,
        later(),
        |index, left| {
            assert_eq!((index, left.unwrap().in_flight.len()), (0, 0));
        },
    );
    assert!(late.is_empty());
    assert_eq!(rig.stops.load(Ordering::SeqCst), 3);
}

#[test]
fn the_disk_stays_in_use_for_what_is_left_behind() {
    let mut rig = Rig::new(2, Mode::Held);
    let _drivers = [rig.started(0), rig.started(1)];
    rig.disk.set(Close::Hangs);
    assert_eq!(rig.stop(Stop::HandOver, Instant::now()).2, [0, 1]);
    rig.set.leave_behind(|_| true);
    let medium = rig.set.medium().clone();
    assert_eq!((rig.set.is_idle(), medium.left_behind()), (true, 2));
    // Nobody waits for it.
    assert_eq!(rig.set.release(Instant::now()), Some(Ok(())));
    assert!(!medium.wait_left_behind(Instant::now()));
    assert_eq!(medium.wait_left(Instant::now()), None);
    assert_eq!(rig.uses.try_iter().collect::<Vec<_>>(), [true]);
    while rig.settled.try_recv().is_ok() {}
    rig.disk.set(Close::Works);
    assert!(medium.wait_left_behind(later()));
    assert_eq!(medium.wait_left(later()), Some(Ok(())));
    assert_eq!(rig.uses.try_iter().collect::<Vec<_>>(), [false]);
    rig.settled.recv_timeout(PATIENCE).unwrap();
}

/// Who waits for the disk to be free is told when it is, also where it stays in use.
#[test]
fn a_disk_that_is_wanted_again_is_not_let_go_of() {
    let mut rig = Rig::new(1, Mode::Held);
    let _driver = rig.started(0);
    rig.disk.set(Close::Hangs);
    rig.set.leave_behind(|_| true);
    assert_eq!(rig.set.release(later()), Some(Ok(())));
    assert_eq!(rig.set.medium().take(later()), Some(Ok(())));
    while rig.settled.try_recv().is_ok() {}
    rig.disk.set(Close::Works);
    rig.settled.recv_timeout(PATIENCE).unwrap();
    assert_eq!(rig.set.medium().left_behind(), 0);
    assert_eq!(rig.uses.try_iter().collect::<Vec<_>>(), [true]);
}

/// A panic while it serves, and one as it ends.
#[test]
fn panics_are_told_at_once_and_at_the_stop() {
    let mut rig = Rig::new(2, Mode::AtFlush);
    let mut drivers = [rig.started(0), rig.started(1)];
    rig.disk.disk.set_panic();
    drivers[1].submit(&Request::read(0, 512));
    let told = rig.broken.1.recv_timeout(PATIENCE).unwrap();
    assert!(told.starts_with("its thread panicked"), "{told}");
    assert!(rig.set.is_running(1) && !rig.set.is_stopping(1));
    rig.disk.set(Close::Panics);
    let stopped = rig.stop(Stop::Drain, later());
    assert_eq!(stopped, (vec![], vec![0, 1], vec![]));
    let told = rig.broken.1.recv_timeout(PATIENCE).unwrap();
    assert!(told.starts_with("its thread panicked"), "{told}");
    assert!(rig.broken.1.try_recv().is_err(), "each once");
    assert!(rig.set.is_idle(), "they can start again");
}

/// Also one whose disk keeps it busy: the others are done before, and the caller waits as long as it likes.
#[test]
fn a_remap_ends_with_the_last_queue() {
    let mut rig = Rig::new(2, Mode::AtFlush);
    let _drivers = [rig.started(0), rig.started(1)];
    let (go, wait) = channel::<()>();
    rig.set.post(1, move |_| {
        // Ends when the test says so.
        let _ = wait.recv();
    });
    let remapped = rig.set.remap();
    assert_eq!(remapped.try_recv(), Err(TryRecvError::Empty));
    drop(go);
    assert!(remapped.recv().is_err(), "all have done it");
    assert_eq!(rig.stop(Stop::Drain, later()).0, [0, 1]);
    assert_eq!(rig.set.remap().try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn dropping_a_set_ends_its_queues_and_the_use_of_the_disk() {
    let mut rig = Rig::new(1, Mode::Held);
    let mut driver = rig.started(0);
    driver.submit(&Request::read(0, 512));
    let (uses, stops) = (rig.uses, rig.stops);
    drop(rig.set);
    assert_eq!(stops.load(Ordering::SeqCst), 1);
    assert!(driver.driver.poll().unwrap().is_none());
    assert!(uses.recv_timeout(PATIENCE).unwrap());
    assert!(!uses.recv_timeout(PATIENCE).unwrap());
}

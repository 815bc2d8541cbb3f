// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two servers of one medium, of which one at a time uses it, as in a migration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Served, start, test_disk, wait_for};
use vblk_testing::frontend::{Client, event};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user_blk::LeaveError;
use virtio_blk_core::disk::{Caps, Disk, DiskError, DiskListener, IoQueue};
use virtio_blk_core::testdisk::{Event, TestDisk};

/// What happens to the lock.
#[derive(Default)]
struct State {
    owner: Option<u8>,
    /// Owners, in their order.
    taken: Vec<u8>,
    /// Letting go fails.
    broken: bool,
    /// Letting go takes until this is ended.
    slow: bool,
}

/// A handle of one owner to a medium that only one may use.
#[derive(Clone)]
struct Shared {
    disk: TestDisk,
    me: u8,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Shared {
    fn two() -> [Self; 2] {
        let first = Self {
            disk: test_disk(),
            me: 1,
            state: Arc::default(),
        };
        [
            first.clone(),
            Self {
                me: 2,
                ..first.clone()
            },
        ]
    }

    fn owner(&self) -> Option<u8> {
        self.state.0.lock().unwrap().owner
    }

    fn taken(&self) -> Vec<u8> {
        self.state.0.lock().unwrap().taken.clone()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.0.lock().unwrap());
        self.state.1.notify_all();
    }
}

impl Disk for Shared {
    fn caps(&self) -> Caps {
        self.disk.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        assert_eq!(self.owner(), Some(self.me), "a queue without the lock");
        self.disk.open_queue(depth)
    }

    fn activate(&self) -> Result<(), DiskError> {
        let mut state = self.state.0.lock().unwrap();
        if state.owner.is_some_and(|owner| owner != self.me) {
            return Err(DiskError::Config("somebody else has it".to_owned()));
        }
        state.owner = Some(self.me);
        state.taken.push(self.me);
        Ok(())
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        let state = self.state.0.lock().unwrap();
        let mut state = self.state.1.wait_while(state, |state| state.slow).unwrap();
        assert_eq!(state.owner.take(), Some(self.me));
        match state.broken {
            true => Err(DiskError::from_errno(5)),
            false => Ok(()),
        }
    }

    fn listen(&self, listener: DiskListener) {
        self.disk.listen(listener);
    }
}

#[test]
fn what_is_lost_at_the_end_is_told() {
    let [disk, _] = Shared::two();
    let mut served = Served::new(Arc::new(disk.clone()));
    let mut running = served.running(1);
    running.queues[0].write(0, &[1; 512]).unwrap();
    disk.set(|state| state.broken = true);
    served.handle.stop();
    served.join();
    let error = served.handle.wait_disk_left(Instant::now()).unwrap_err();
    assert!(matches!(error, LeaveError::Lost(_)), "{error}");
    let again = served.handle.wait_disk_left(Instant::now());
    assert!(again.is_ok(), "told once");
}

#[test]
fn a_disk_that_is_still_being_left_is_told() {
    let [disk, _] = Shared::two();
    let time = Duration::from_millis(100);
    let mut served = Served::with_stop_time(Arc::new(disk.clone()), time);
    let mut running = served.running(1);
    running.queues[0].write(0, &[1; 512]).unwrap();
    disk.set(|state| state.slow = true);
    served.handle.stop();
    served.join();
    let error = served.handle.wait_disk_left(Instant::now()).unwrap_err();
    assert!(matches!(error, LeaveError::Slow(_)), "{error}");
    disk.set(|state| state.slow = false);
    let in_time = Instant::now() + Duration::from_secs(30);
    served.handle.wait_disk_left(in_time).unwrap();
    assert_eq!(disk.owner(), None);
}

#[test]
fn a_migration_and_one_that_fails() {
    let disks @ [first, _] = &Shared::two();
    let [from, to] = disks
        .each_ref()
        .map(|disk| Served::new(Arc::new(disk.clone())));
    assert_eq!(first.owner(), None, "nobody uses it yet");
    let mut running = from.running(2);
    assert_eq!(first.owner(), Some(1));
    running.queues[0].write(0, &[1; 512]).unwrap();
    // The destination is there before the source has stopped, and asks too early.
    let mut there = Client::connect(&to.socket()).unwrap();
    there.set_memory(&running.guest).unwrap();
    assert!(there.start(0, &running.queues[0], 0).is_err());
    there.stop(0).unwrap();
    assert!(running.queues[0].err.read().is_ok(), "it is told");
    assert_eq!(first.owner(), Some(1));
    running.queues[1].write(0, &[2; 512]).unwrap();
    // The lock is released with the last queue, before the answer.
    let mut bases = [0; 2];
    for (index, base) in bases.iter_mut().enumerate() {
        assert_eq!(first.owner(), Some(1));
        *base = running.client.stop(index).unwrap();
    }
    assert_eq!(first.owner(), None);
    // It fails: the source continues.
    for (index, (queue, base)) in running.queues.iter().zip(bases).enumerate() {
        running.client.start(index, queue, base).unwrap();
    }
    assert_eq!(running.queues[1].read(0, 512).unwrap(), [2; 512]);
    for (index, base) in bases.iter_mut().enumerate() {
        *base = running.client.stop(index).unwrap();
    }
    // It does not fail.
    for (index, (queue, base)) in running.queues.iter().zip(bases).enumerate() {
        there.start(index, queue, base).unwrap();
    }
    running.queues[1].write(0, &[3; 512]).unwrap();
    assert_eq!(first.taken(), [1, 1, 2]);
    drop((there, running));
    to.wait_idle();
    assert_eq!(first.owner(), None, "a client that goes lets go of it");
}

#[test]
fn the_lock_follows_the_queues() {
    let [disk, _] = Shared::two();
    let served = Served::new(Arc::new(disk.clone()));
    let mut running = served.running(1);
    // What stops a queue for a moment does not release it.
    let kick = event().unwrap();
    running.client.frontend().set_vring_kick(0, &kick).unwrap();
    running.queues[0].kick = kick;
    running.client.remove_memory(&running.guest).unwrap();
    assert_eq!(disk.owner(), Some(1), "the queue waits for its ring");
    running.client.set_memory(&running.guest).unwrap();
    running.queues[0].write(0, &[1; 512]).unwrap();
    assert_eq!(disk.taken(), [1]);
    let frontend = running.client.frontend();
    frontend.set_vring_enable(0, false).unwrap();
    assert_eq!(disk.owner(), None);
    frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(disk.owner(), Some(1));
    frontend.reset_device().unwrap();
    assert_eq!(disk.owner(), None);
    let features = running.client.acked;
    running.client.set_features(features).unwrap();
    // A queue that can't start.
    disk.disk.set_closed(true);
    assert!(running.client.start(0, &running.queues[0], 0).is_err());
    assert_eq!(disk.owner(), None);
    disk.disk.set_closed(false);
    running.client.stop(0).unwrap();
    let mut queues = start(&mut running.client, &mut running.guest, 1);
    queues[0].write(0, &[1; 512]).unwrap();
    // Queues are dropped before.
    disk.disk.take_log();
    running.client.stop(0).unwrap();
    assert!(matches!(disk.disk.take_log()[..], [.., Event::Dropped(0)]));
}

#[test]
fn a_disk_that_can_not_be_left_in_order() {
    let [disk, _] = Shared::two();
    let served = Served::with_stop_time(Arc::new(disk.clone()), Duration::from_millis(300));
    // The client must not continue elsewhere as if all were stable.
    let mut running = served.running(1);
    disk.set(|state| state.broken = true);
    assert!(running.client.stop(0).is_err());
    assert!(running.client.capacity().is_err());
    served.wait_idle();
    disk.set(|state| state.broken = false);
    served.assert_serves();
    served.wait_idle();
    // QEMU disables the queues first, and does not look at the answer.
    let mut running = served.running(1);
    disk.set(|state| state.broken = true);
    let _ = running.client.frontend().set_vring_enable(0, false);
    assert!(running.client.stop(0).is_err());
    served.wait_idle();
    disk.set(|state| state.broken = false);
    served.assert_serves();
    served.wait_idle();
    // It takes too long.
    let mut running = served.running(1);
    disk.set(|state| state.slow = true);
    let started = Instant::now();
    assert!(running.client.stop(0).is_err());
    assert!(started.elapsed() < Duration::from_secs(4));
    served.wait_idle();
    // Nobody uses it meanwhile.
    let mut client = Client::connect(&served.socket()).unwrap();
    client.set_memory(&running.guest).unwrap();
    assert!(client.start(0, &running.queues[0], 0).is_err());
    disk.set(|state| state.slow = false);
    wait_for("the disk to be let go of", || disk.owner().is_none());
    client.frontend().set_vring_enable(0, true).unwrap();
    running.queues[0].write(0, &[1; 512]).unwrap();
}

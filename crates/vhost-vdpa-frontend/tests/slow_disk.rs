// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! The slow path's disk is in use while the slow path serves the guest, and never otherwise; and the guest learns of a
//! queue that stops in disorder.

mod common;

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use common::bench::{Bench, Setup, bench, delays, progress};
use common::guest::Memory;
use vdpa_bus::Callback;
use vhost_vdpa_frontend::{
    DataPath, OnFailure, PathError, PathState, QueueExecutor, SwitchOptions, SwitchStep,
    ThreadExecutor,
};
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, IoBuf, IoQueue, Op, OpKind, Submit, Token,
    Wait,
};
use virtio_blk_core::runner::{QueueRunner, Stop, Stopped};
use virtio_blk_core::spec::status;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::eventfd::EventFd;

/// What a test decides, and what happened.
#[derive(Default)]
struct State {
    /// Another owner has it.
    locked: bool,
    /// What it keeps can't be made stable.
    unstable: bool,
    /// Taking it into use waits.
    stuck: bool,
    /// The next operation panics.
    panics: bool,
    active: bool,
    queues: usize,
    /// Who served the guest.
    threads: HashSet<ThreadId>,
    /// How often it was released with what it kept written to the device.
    written: u64,
}

/// A layer that keeps something in memory: it writes to the device as it is released.
#[derive(Clone)]
struct Kept {
    inner: Arc<dyn Disk>,
    state: Handle,
}

#[derive(Clone, Default)]
struct Handle(Arc<(Mutex<State>, Condvar)>);

impl Handle {
    fn with<R>(&self, call: impl FnOnce(&mut State) -> R) -> R {
        let result = call(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        result
    }

    fn is_active(&self) -> bool {
        self.with(|state| state.active)
    }

    fn written(&self) -> u64 {
        self.with(|state| state.written)
    }
}

impl Disk for Kept {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        let inner = self.inner.open_queue(depth)?;
        self.state.with(|state| {
            assert!(state.active, "a queue of a disk that is not in use");
            state.queues += 1;
        });
        Ok(Box::new(KeptQueue(inner, self.state.clone())))
    }

    fn activate(&self) -> Result<(), DiskError> {
        let (lock, changed) = &*self.state.0;
        let state = lock.lock().unwrap();
        let mut state = changed.wait_while(state, |state| state.stuck).unwrap();
        assert!(!state.active, "taken twice");
        if state.locked {
            return Err(DiskError::Config("another has it".to_owned()));
        }
        state.active = true;
        Ok(())
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        let unstable = self.state.with(|state| {
            assert!(state.active && state.queues == 0, "let go of while in use");
            state.active = false;
            state.unstable
        });
        if unstable {
            return Err(DiskError::Config("no room".to_owned()));
        }
        read_one(&*self.inner)?;
        self.state.with(|state| state.written += 1);
        Ok(())
    }

    fn listen(&self, listener: DiskListener) {
        self.inner.listen(listener);
    }
}

/// An operation that the device must do.
fn read_one(disk: &dyn Disk) -> Result<(), DiskError> {
    let mut queue = disk.open_queue(1)?;
    let op = Op {
        token: Token(0),
        kind: OpKind::Read { offset: 0 },
        buf: IoBuf::from_vec(vec![0; 512]),
    };
    assert!(matches!(queue.submit(op), Submit::Queued));
    queue.flush_batch()?;
    let mut done = Vec::new();
    while queue.reap(&mut done)? == 0 {
        std::thread::yield_now();
    }
    done.pop().unwrap().result
}

struct KeptQueue(Box<dyn IoQueue>, Handle);

impl IoQueue for KeptQueue {
    fn submit(&mut self, op: Op) -> Submit {
        let served = |state: &mut State| {
            state.threads.insert(std::thread::current().id());
            std::mem::take(&mut state.panics)
        };
        if self.1.with(served) {
            panic!("a bug of a layer");
        }
        self.0.submit(op)
    }

    fn flush_batch(&mut self) -> Result<(), DiskError> {
        self.0.flush_batch()
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.0.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.0.wait()
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.deadline()
    }
}

impl Drop for KeptQueue {
    fn drop(&mut self) {
        self.1.with(|state| state.queues -= 1);
    }
}

/// A guest on the fast path, whose slow path has the layer.
fn kept(setup: Setup) -> (Bench, Handle) {
    let handle = Handle::default();
    let state = handle.clone();
    let layers = Box::new(move |inner| Arc::new(Kept { inner, state }) as Arc<dyn Disk>);
    let bench = bench(Setup {
        layers: Some(layers),
        ..setup
    });
    assert!(!handle.is_active());
    (bench, handle)
}

#[test]
fn the_disk_is_in_use_while_the_path_is_slow() {
    let (mut bench, disk) = kept(Setup {
        plan: Some(delays()),
        ..Setup::default()
    });
    bench.run(|switch, _, total| {
        for round in 1..=5 {
            progress(total);
            assert!(!disk.is_active(), "the fast path goes past it");
            switch.switch_to(DataPath::Slow).unwrap().unwrap();
            assert!(disk.is_active());
            progress(total);
            switch.pause().unwrap();
            assert!(
                !disk.is_active(),
                "a guest that is paused may go on elsewhere"
            );
            assert_eq!(disk.written(), 2 * round - 1);
            switch.resume().unwrap();
            assert!(disk.is_active());
            progress(total);
            switch.switch_to(DataPath::Fast).unwrap().unwrap();
            assert_eq!(disk.written(), 2 * round);
        }
    });
    assert!(!disk.is_active());
}

/// A guest that is moved to and fro is served by the threads that there were before it ran.
#[test]
fn no_thread_is_made_to_move_a_guest() {
    let mut executor = ThreadExecutor::new(Duration::ZERO);
    executor.prepare(4).unwrap();
    let (mut bench, disk) = kept(Setup {
        executor: Some(Box::new(executor)),
        ..Setup::default()
    });
    bench.run(|switch, _, total| {
        for _ in 0..5 {
            switch.switch_to(DataPath::Slow).unwrap().unwrap();
            progress(total);
            switch.switch_to(DataPath::Fast).unwrap().unwrap();
            progress(total);
        }
    });
    let threads = disk.with(|state| state.threads.clone());
    // The one that reads as the disk is released has no part in it.
    assert!((1..=4).contains(&threads.len()), "{threads:?}");
}

/// What a layer keeps is written as the guest reboots, or its VMM ends, unless there are requests to be cancelled.
#[test]
fn a_reset_lets_go_of_the_disk() {
    let (mut bench, disk) = kept(Setup::default());
    let switch = bench.switch.clone();
    for _ in 0..2 {
        bench.run(|switch, _, total| {
            switch.switch_to(DataPath::Slow).unwrap().unwrap();
            progress(total);
        });
        let written = disk.written();
        switch.set_status(0).unwrap();
        assert!(!disk.is_active());
        assert_eq!(disk.written(), written + 1);
        bench.load_again();
    }
    // With requests in flight, it has nothing to write to.
    switch.switch_to(DataPath::Slow).unwrap().unwrap();
    for queue in &mut bench.guest.queues {
        queue.start_some();
    }
    switch.set_status(0).unwrap();
    assert!(!disk.is_active());
    bench.load_again();
    bench.run(|switch, _, total| {
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        progress(total);
    });
    let written = disk.written();
    drop((bench, switch));
    assert!(!disk.is_active());
    assert_eq!(disk.written(), written + 1);
}

#[test]
fn a_disk_that_can_not_be_had_leaves_the_guest_fast() {
    let (mut bench, disk) = kept(Setup::default());
    bench.run(|switch, _, total| {
        disk.with(|state| state.locked = true);
        let error = switch.switch_to(DataPath::Slow).unwrap_err();
        assert_eq!(
            (error.step, error.path),
            (SwitchStep::TakeOver, PathState::Fast)
        );
        assert!(matches!(error.source, PathError::Refused(_)), "{error}");
        assert!(error.to_string().contains("another has it"), "{error}");
        progress(total);
        disk.with(|state| state.locked = false);
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        progress(total);
    });
}

/// Another owner that does not release it costs the guest no more than the time that was set.
#[test]
fn a_disk_that_is_not_had_in_time_leaves_the_guest_fast() {
    let options = SwitchOptions {
        drain_timeout: Duration::from_millis(50),
        ..SwitchOptions::default()
    };
    let (mut bench, disk) = kept(Setup {
        options,
        ..Setup::default()
    });
    bench.run(|switch, _, total| {
        disk.with(|state| state.stuck = true);
        let begun = Instant::now();
        let error = switch.switch_to(DataPath::Slow).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(error.path, PathState::Fast, "{error}");
        assert!(matches!(error.source, PathError::Busy(_)), "{error}");
        progress(total);
        disk.with(|state| state.stuck = false);
        // What was late is released again.
        while switch.switch_to(DataPath::Slow).is_err() {
            std::thread::yield_now();
        }
        progress(total);
    });
}

/// The device must not serve a guest whose data a layer could not write.
#[test]
fn a_guest_stays_slow_if_data_would_be_lost() {
    let (mut bench, disk) = kept(Setup::default());
    bench.run(|switch, _, total| {
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        disk.with(|state| state.unstable = true);
        let moved = switch.switch_to(DataPath::Fast).unwrap_err();
        let paused = switch.pause().unwrap_err();
        for error in [moved, paused] {
            assert_eq!(
                (error.step, error.path),
                (SwitchStep::Quiesce, PathState::Slow)
            );
            assert!(matches!(error.source, PathError::Lost(_)), "{error}");
            assert!(error.to_string().contains("no room"), "{error}");
        }
        assert!(disk.is_active());
        progress(total);
        disk.with(|state| state.unstable = false);
        switch.switch_to(DataPath::Fast).unwrap().unwrap();
        progress(total);
    });
}

/// A bug of a layer takes neither the VMM nor the guest down: the guest learns at once that its device needs a reset.
#[test]
fn a_panic_of_a_queue_asks_for_a_reset() {
    let (mut bench, disk) = kept(Setup::default());
    let (switch, irq) = (bench.switch.clone(), common::eventfd());
    for by_the_vmm in [false, true] {
        switch.set_status(0).unwrap();
        switch.set_config_call(Some(Callback::Trigger(irq.clone())));
        bench.load_again();
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        assert!(irq.read().is_err());
        disk.with(|state| state.panics = true);
        bench.guest.queues[1].start_some();
        while irq.read().is_err() {
            std::thread::yield_now();
        }
        let needs_reset = 15 | status::DEVICE_NEEDS_RESET;
        assert_eq!(
            (switch.path(), switch.status()),
            (PathState::Slow, needs_reset)
        );
        if by_the_vmm {
            // Where that queue stands nobody knows: no other path may continue there.
            switch.switch_to(DataPath::Fast).unwrap_err();
            assert_eq!(switch.path(), PathState::Failed);
            switch.retry().unwrap_err();
            assert_eq!(switch.status(), needs_reset);
        }
        bench.load_again();
        assert_eq!(switch.status(), 15);
        bench.run(|_, _, total| progress(total));
    }
}

/// An executor that serves the first queue only, and loses it.
struct Lossy(ThreadExecutor<GuestMemoryAtomic<Memory>>);

impl QueueExecutor<GuestMemoryAtomic<Memory>> for Lossy {
    fn start(
        &mut self,
        index: u16,
        runner: QueueRunner<GuestMemoryAtomic<Memory>>,
        kick: Arc<EventFd>,
    ) -> io::Result<()> {
        match index {
            0 => self.0.start(index, runner, kick),
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    fn set_intake(&mut self, index: u16, open: bool) {
        self.0.set_intake(index, open);
    }

    fn in_flight(&mut self, index: u16) -> usize {
        self.0.in_flight(index)
    }

    fn stop(&mut self, index: u16, mode: Stop) -> Option<Stopped> {
        self.0.stop(index, mode);
        None
    }
}

/// A queue that was lost as another could not be served is not begun anew on the device: what it has done would be done
/// again.
#[test]
fn a_queue_that_is_lost_is_served_by_nobody() {
    for on_failure in [OnFailure::Hold, OnFailure::Fail] {
        let mut bench = bench(Setup {
            executor: Some(Box::new(Lossy(ThreadExecutor::new(Duration::ZERO)))),
            options: SwitchOptions {
                on_failure,
                ..SwitchOptions::default()
            },
            ..Setup::default()
        });
        bench.run(|_, _, total| progress(total));
        let switch = bench.switch.clone();
        let error = switch.switch_to(DataPath::Slow).unwrap_err();
        assert_eq!(error.path, PathState::Failed, "{error}");
        let needs_reset = 15 | status::DEVICE_NEEDS_RESET;
        assert_eq!(switch.status(), needs_reset);
        switch.retry().unwrap_err();
        bench.load_again();
        assert_eq!(switch.path(), PathState::Fast);
        bench.run(|_, _, total| progress(total));
    }
}

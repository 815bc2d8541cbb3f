// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Moves that fail: the guest continues.

mod common;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::bench::{Setup, bench, delays, other, progress};
use common::device::Profile;
use common::guest::Memory;
use vhost_vdpa_frontend::{
    DataPath, OnFailure, PathError, PathState, QueueExecutor, SwitchOptions, SwitchStep,
    ThreadExecutor,
};
use virtio_blk_core::runner::{QueueRunner, Stop, Stopped};
use virtio_blk_core::spec::feature;
use virtio_blk_disks::fault::FaultPlan;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::eventfd::EventFd;

#[test]
fn an_undrained_device_is_resumed_and_tried_again() {
    let mut bench = bench(Setup {
        plan: Some(delays()),
        ..Setup::default()
    });
    bench.run(|switch, device, total| {
        progress(total);
        device
            .undrained
            .store(i64::from(Profile::default().queues) * 3, Ordering::SeqCst);
        let report = switch.switch_to(DataPath::Slow).unwrap().unwrap();
        assert_eq!(report.attempts, 4);
        progress(total);
        // One that never drains stays where it is.
        switch.switch_to(DataPath::Fast).unwrap().unwrap();
        device.undrained.store(i64::MAX, Ordering::SeqCst);
        let error = switch.switch_to(DataPath::Slow).unwrap_err();
        assert_eq!(
            (error.step, error.path),
            (SwitchStep::Quiesce, PathState::Fast)
        );
        device.undrained.store(0, Ordering::SeqCst);
        progress(total);
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        progress(total);
    });
}

/// Each operation of a switch fails once, in both directions: the guest continues, and so does the next switch.
#[test]
fn each_step_may_fail() {
    let without_suspend = Profile {
        suspend: false,
        resume: false,
        ..Profile::default()
    };
    let single_maps = Profile {
        single_maps: true,
        ..Profile::default()
    };
    let without_event_idx = Profile {
        features: !feature::RING_EVENT_IDX,
        ..without_suspend.clone()
    };
    let compat = Profile {
        queues: 1,
        compat: true,
        ..Profile::default()
    };
    for profile in [
        Profile::default(),
        without_suspend,
        single_maps,
        without_event_idx,
        compat,
    ] {
        let queues = profile.queues;
        let mut bench = bench(Setup {
            profile,
            plan: Some(delays()),
            ..Setup::default()
        });
        bench.vcpus.able.store(true, Ordering::SeqCst);
        let (steps, _) = bench.run(|switch, device, total| {
            let mut steps = [0; 2];
            for (path, step) in [DataPath::Slow, DataPath::Fast].into_iter().zip(&mut steps) {
                loop {
                    if switch.path() == path {
                        switch.switch_to(other(path)).unwrap().unwrap();
                    }
                    device.fail(*step, 1);
                    let result = switch.switch_to(path);
                    let failed = device.heal();
                    if let Err(error) = &result {
                        assert_eq!(failed, 1, "{error}");
                        assert_eq!(error.path, switch.path());
                        assert_ne!(error.path, PathState::Failed, "step {step}: {error}");
                    }
                    progress(total);
                    if failed == 0 {
                        result.unwrap();
                        break;
                    }
                    *step += 1;
                }
            }
            steps
        });
        // Of each queue several.
        let least = if queues == 1 { [20, 15] } else { [40, 30] };
        assert!(steps[0] > least[0] && steps[1] > least[1], "{steps:?}");
        assert!(!bench.breached());
    }
}

/// From each operation on everything fails: nobody can serve the guest, until the device is well again.
#[test]
fn a_guest_survives_a_device_that_fails_for_long() {
    let mut bench = bench(Setup {
        plan: Some(delays()),
        ..Setup::default()
    });
    let (failures, _) = bench.run(|switch, device, total| {
        let mut failures = [0; 2];
        for (direction, path) in [DataPath::Slow, DataPath::Fast].into_iter().enumerate() {
            for step in 0.. {
                if switch.path() == path {
                    switch.switch_to(other(path)).unwrap().unwrap();
                }
                device.fail(step, 1000);
                let result = switch.switch_to(path);
                if device.heal() == 0 {
                    result.unwrap();
                    break;
                }
                if switch.path() == PathState::Failed {
                    assert_eq!(result.unwrap_err().path, PathState::Failed);
                    assert!(switch.switch_to(path).is_err());
                    failures[direction] += 1;
                    switch.retry().unwrap();
                }
                progress(total);
            }
        }
        failures
    });
    assert!(failures[0] > 40 && failures[1] > 30, "{failures:?}");
    assert!(!bench.breached());
}

#[test]
fn failed_requests_are_answered_where_that_is_the_policy() {
    let options = SwitchOptions {
        on_failure: OnFailure::Fail,
        ..SwitchOptions::default()
    };
    let bench = bench(Setup {
        options,
        ..Setup::default()
    });
    // After the quiescing, at the first reset.
    let mut steps = 0;
    loop {
        bench.device.fail(steps, 1000);
        let result = bench.switch.switch_to(DataPath::Slow);
        bench.device.heal();
        let error = result.unwrap_err();
        if error.path == PathState::Failed && error.step == SwitchStep::Reset {
            break;
        }
        steps += 1;
        assert!(steps < 100);
        bench.load_driver();
    }
    let mut guest = bench.guest;
    let queue = &mut guest.queues[0];
    assert_eq!(queue.ask_one(), virtio_blk_driver::wire::S_IOERR);
    bench.switch.retry().unwrap();
    assert_eq!(bench.switch.path(), PathState::Fast);
    assert_eq!(queue.ask_one(), virtio_blk_driver::wire::S_OK);
}

/// The kernel reports success where a parent refuses DRIVER_OK: only the status byte tells.
#[test]
fn a_device_that_does_not_start_is_a_failed_step() {
    let mut bench = bench(Setup::default());
    let deaf = |on| bench.device.deaf.store(on, Ordering::SeqCst);
    let switch = &bench.switch;
    deaf(true);
    // Not at a driver's start, on either path.
    for byte in [0, 1, 3] {
        switch.set_status(byte).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    let error = switch.set_status(15).unwrap_err();
    assert!(matches!(error, PathError::NotStarted(11)), "{error}");
    assert_eq!((switch.path(), switch.status()), (PathState::Idle, 11));
    deaf(false);
    bench.load_again();
    for path in [DataPath::Slow, DataPath::Fast] {
        bench.device.deaf.store(true, Ordering::SeqCst);
        let error = bench.switch.switch_to(path).unwrap_err();
        assert_eq!(
            (error.step, error.path),
            (SwitchStep::Start, PathState::Failed)
        );
        assert!(matches!(error.source, PathError::NotStarted(11)), "{error}");
        bench.device.deaf.store(false, Ordering::SeqCst);
        bench.switch.retry().unwrap();
        bench.run(|switch, _, total| {
            progress(total);
            switch.switch_to(DataPath::Slow).unwrap();
        });
    }
}

/// A device that can't continue after SUSPEND, with requests in flight: the guest is told to reset it, and may.
#[test]
fn a_device_that_is_stuck_asks_for_a_reset() {
    let profile = Profile {
        resume: false,
        ..Profile::default()
    };
    let options = SwitchOptions {
        quiesce_timeout: Duration::from_millis(50),
        ..SwitchOptions::default()
    };
    let mut bench = bench(Setup {
        profile,
        options,
        ..Setup::default()
    });
    bench.run(|_, _, total| progress(total));
    bench.device.undrained.store(i64::MAX, Ordering::SeqCst);
    let error = bench.switch.switch_to(DataPath::Slow).unwrap_err();
    assert_eq!(error.path, PathState::Failed);
    assert_eq!(bench.switch.status(), 15 | 64);
    assert!(bench.switch.retry().is_err());
    bench.device.undrained.store(0, Ordering::SeqCst);
    bench.load_again();
    bench.run(|switch, _, total| {
        progress(total);
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        progress(total);
    });
}

/// An executor that serves the first queue only, and says so of the others once that has something in flight.
struct OneQueue(ThreadExecutor<GuestMemoryAtomic<Memory>>, mpsc::Sender<()>);

impl QueueExecutor<GuestMemoryAtomic<Memory>> for OneQueue {
    fn start(
        &mut self,
        index: u16,
        runner: QueueRunner<GuestMemoryAtomic<Memory>>,
        kick: Arc<EventFd>,
    ) -> io::Result<()> {
        if index == 0 {
            self.0.start(index, runner, kick)?;
            self.1.send(()).unwrap();
            return Ok(());
        }
        while self.0.in_flight(0) == 0 {
            std::thread::yield_now();
        }
        Err(io::ErrorKind::OutOfMemory.into())
    }

    fn set_intake(&mut self, index: u16, open: bool) {
        self.0.set_intake(index, open);
    }

    fn in_flight(&mut self, index: u16) -> usize {
        self.0.in_flight(index)
    }

    fn stop(&mut self, index: u16, mode: Stop) -> Option<Stopped> {
        self.0.stop(index, mode)
    }
}

/// A queue can't be served while another one has requests at a device that swallows them: the move fails in time.
#[test]
fn a_device_that_swallows_requests_does_not_keep_the_switch() {
    const LONG: Duration = Duration::from_secs(3600);
    let (served, begun) = mpsc::channel();
    let mut bench = bench(Setup {
        plan: Some(FaultPlan::new(1).delay_time(LONG..=LONG)),
        options: SwitchOptions {
            drain_timeout: Duration::from_millis(50),
            ..SwitchOptions::default()
        },
        executor: Some(Box::new(OneQueue(
            ThreadExecutor::new(Duration::ZERO),
            served,
        ))),
        ..Setup::default()
    });
    let (told, ended) = mpsc::channel();
    let switch = bench.switch.clone();
    std::thread::spawn(move || told.send(switch.switch_to(DataPath::Slow)));
    begun.recv().unwrap();
    bench.guest.queues[0].start_some();
    let moved = ended.recv_timeout(Duration::from_secs(20));
    let error = moved.expect("the switch waits for the device").unwrap_err();
    assert_eq!(
        (error.step, error.path),
        (SwitchStep::TakeOver, PathState::Fast),
        "{error}"
    );
}

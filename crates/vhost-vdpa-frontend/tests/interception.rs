// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! A guest that does not want to be seen: its requests are intercepted, or its device is stopped.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::bench::{Bench, Setup, bench, progress};
use common::device::Profile;
use vdpa_bus::{Callback, VqAddress};
use vhost_vdpa_frontend::{DataPath, PathState, SwitchOptions, SwitchPolicy, SwitchStep};
use vm_memory::{Bytes, GuestAddress};

/// Below it a guest that plays with its rings is stopped: see [`vhost_vdpa_frontend::PathSwitch::intercept`].
const BOUND: Duration = Duration::from_secs(5);

fn options(enforce: bool) -> SwitchOptions {
    SwitchOptions {
        policy: SwitchPolicy::Auto,
        quiesce_timeout: Duration::from_millis(50),
        enforce,
        ..SwitchOptions::default()
    }
}

/// A guest whose last queue has its rings nowhere, and works on the others.
fn rings_nowhere(enforce: bool) -> Bench {
    let mut bench = bench(Setup {
        options: options(enforce),
        ..Setup::default()
    });
    let switch = bench.switch.clone();
    for byte in [0, 1, 3] {
        switch.set_status(byte).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    bench
        .guest
        .queues
        .iter_mut()
        .for_each(|queue| queue.reset());
    let mut nowhere = bench.guest.queues.pop().unwrap().setup();
    nowhere.address = VqAddress {
        desc: 1 << 40,
        driver: 2 << 40,
        device: 3 << 40,
    };
    for (index, queue) in (0..).zip(&bench.guest.queues) {
        switch.set_queue(index, queue.setup()).unwrap();
    }
    switch.set_queue(3, nowhere).unwrap();
    switch.set_status(15).unwrap();
    bench
}

/// Whether the device of a guest that had requests in flight does nothing any more, and asks for a reset.
fn is_stopped(bench: &Bench) {
    assert_eq!(bench.switch.path(), PathState::Failed);
    assert_eq!(bench.switch.status(), 15 | 64);
    assert!(!bench.device.device.sim().step());
    assert!(
        bench.switch.retry().is_err(),
        "only the guest's reset helps"
    );
    assert!(bench.switch.switch_to(DataPath::Fast).is_err());
}

#[test]
fn rings_that_lie_nowhere_do_not_keep_a_guest_unseen() {
    let mut bench = rings_nowhere(true);
    bench.run(|_, _, total| progress(total));
    let irq = common::eventfd();
    bench
        .switch
        .set_config_call(Some(Callback::Trigger(irq.clone())));
    let begun = Instant::now();
    let need = bench.switch.intercept("throttle").unwrap();
    assert!(begun.elapsed() < BOUND);
    is_stopped(&bench);
    assert!(irq.read().is_ok(), "the guest is told");
    // A guest that resets its device and behaves is served, and seen.
    bench.load_again();
    assert_eq!(bench.switch.path(), PathState::Slow);
    bench.run(|_, _, total| progress(total));
    drop(need);
    bench.switch.apply_policy().unwrap().unwrap();
    bench.run(|_, _, total| progress(total));
}

#[test]
fn an_index_too_far_ahead_does_not_keep_a_guest_unseen() {
    for suspends in [true, false] {
        let mut bench = bench(Setup {
            profile: Profile {
                suspend: suspends,
                resume: suspends,
                ..Profile::default()
            },
            options: options(true),
            ..Setup::default()
        });
        bench.vcpus.able.store(true, Ordering::SeqCst);
        bench.run(|_, _, total| progress(total));
        // Without a kick: the device does not see it, and works on.
        let queue = bench.guest.queues[0].setup();
        let index = GuestAddress(queue.address.driver + 2);
        bench.guest.memory.write_obj(0x4000u16, index).unwrap();
        let begun = Instant::now();
        let _need = bench.switch.intercept("throttle").unwrap();
        assert!(begun.elapsed() < BOUND);
        is_stopped(&bench);
    }
}

/// DRIVER_OK can't be taken back but by a reset: the rings would still be the device's.
#[test]
fn a_status_that_is_taken_back_does_not_keep_a_guest_unseen() {
    for byte in [3, 1, 11, 4, 128] {
        let mut bench = bench(Setup {
            options: options(true),
            ..Setup::default()
        });
        bench.run(|switch, _, total| {
            progress(total);
            switch.set_status(byte).unwrap();
            assert_eq!(switch.status(), 15 | byte);
            let _need = switch.intercept("throttle").unwrap();
            assert_eq!(switch.path(), PathState::Slow);
            progress(total);
        });
    }
    // One that has to be stopped is told so.
    let bench = rings_nowhere(true);
    bench.switch.set_status(3).unwrap();
    let _need = bench.switch.intercept("throttle").unwrap();
    is_stopped(&bench);
}

/// Requests that never end, as of a device that swallows malformed ones.
#[test]
fn requests_that_never_end_do_not_keep_a_guest_unseen() {
    let mut bench = bench(Setup {
        options: options(true),
        ..Setup::default()
    });
    bench.run(|_, _, total| progress(total));
    bench.device.undrained.store(i64::MAX, Ordering::SeqCst);
    let begun = Instant::now();
    let _need = bench.switch.intercept("throttle").unwrap();
    assert!(begun.elapsed() < BOUND);
    is_stopped(&bench);
}

/// One operation that fails costs no guest its device: there is a second attempt.
#[test]
fn a_moments_failure_stops_no_device() {
    let mut bench = bench(Setup {
        options: options(true),
        ..Setup::default()
    });
    bench.run(|switch, device, total| {
        for step in 0.. {
            progress(total);
            device.fail(step, 1);
            let need = switch.intercept("throttle").unwrap();
            let failed = device.heal();
            assert_eq!(switch.path(), PathState::Slow, "step {step}");
            progress(total);
            drop(need);
            switch.apply_policy().unwrap().unwrap();
            if failed == 0 {
                assert!(step > 40, "{step}");
                break;
            }
        }
    });
}

/// A slow path that can't be set up after a pause: the guest waits, and is not put onto the fast path.
#[test]
fn a_pause_is_no_way_to_the_fast_path() {
    let mut bench = bench(Setup {
        options: options(true),
        ..Setup::default()
    });
    bench.run(|switch, device, total| {
        let need = switch.intercept("throttle").unwrap();
        progress(total);
        for step in 0.. {
            switch.pause().unwrap();
            device.fail(step, 1);
            let resumed = switch.resume();
            if device.heal() == 0 {
                resumed.unwrap();
                break;
            }
            match switch.path() {
                PathState::Failed => {
                    assert_eq!(resumed.unwrap_err().path, PathState::Failed);
                    switch.retry().unwrap();
                }
                // A reset is tried twice.
                _ => resumed.unwrap(),
            }
            assert_eq!(switch.path(), PathState::Slow);
            progress(total);
        }
        drop(need);
    });
}

#[test]
fn without_enforcement_the_guest_stays_and_the_caller_learns_why() {
    let mut bench = rings_nowhere(false);
    let (error, _) = bench.run(|switch, _, total| {
        let error = switch.intercept("throttle").unwrap_err();
        progress(total);
        error
    });
    assert_eq!(
        (error.step, error.path),
        (SwitchStep::Prepare, PathState::Fast)
    );
    assert!(bench.switch.reasons().is_empty());
}

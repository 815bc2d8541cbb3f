// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! A guest that stands still, on either path, and continues elsewhere.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::bench::{Bench, Setup, Switch, bench, delays, other, progress};
use common::device::{Profile, TestDevice};
use vdpa_bus::Callback;
use vhost_vdpa_frontend::{
    DataPath, PathError, PathState, SavedGuest, SwitchOptions, SwitchParts, SwitchPolicy,
    SwitchStep, ThreadExecutor,
};
use virtio_blk_disks::fault::FaultPlan;

/// A bench with a device that is suspended, or one under which vCPUs are stopped.
fn device(suspends: bool, options: SwitchOptions) -> Bench {
    let bench = bench(Setup {
        profile: Profile {
            suspend: suspends,
            resume: suspends,
            ..Profile::default()
        },
        plan: Some(delays()),
        options,
        ..Setup::default()
    });
    bench.vcpus.able.store(!suspends, Ordering::SeqCst);
    bench
}

#[test]
fn nothing_is_answered_while_it_is_paused_and_nothing_is_lost() {
    for suspends in [true, false] {
        let mut bench = device(suspends, SwitchOptions::default());
        bench.run(|switch, _, total| {
            for round in 0..60 {
                let path = switch.path();
                switch.pause().unwrap();
                assert_eq!(switch.path(), PathState::Paused);
                // The guest's threads count an answer a little after it came: what stands in the rings is exact.
                let saved = switch.save().unwrap();
                std::thread::yield_now();
                assert_eq!(switch.save().unwrap(), saved);
                switch.pause().unwrap();
                let moved = other(path);
                let next = if round % 3 == 0 { moved } else { moved.other() };
                assert!(switch.switch_to(next).unwrap().is_none());
                switch.resume().unwrap();
                assert_eq!(switch.path(), next);
                switch.resume().unwrap();
                progress(total);
            }
        });
        assert!(!bench.breached());
    }
}

/// What the guest is served by from now on.
fn successor(bench: &Bench) -> Switch {
    let parts = SwitchParts {
        device: TestDevice::new(bench.medium.clone(), Profile::default()),
        memory: bench.memory.clone(),
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: bench.vcpus.clone(),
        layers: None,
    };
    Switch::new(parts, SwitchOptions::default()).unwrap()
}

/// The kick and the interrupt of each queue, as the guest has them.
fn events(
    bench: &Bench,
) -> impl FnMut(u16) -> Option<(Arc<vmm_sys_util::eventfd::EventFd>, Callback)> + 'static {
    let events = bench.guest.queues.iter().map(|queue| queue.setup());
    let events: Vec<_> = events.map(|queue| (queue.kick, queue.call)).collect();
    move |index| events.get(usize::from(index)).cloned()
}

#[test]
fn a_guest_goes_on_on_another_device_in_the_midst_of_its_requests() {
    for path in [DataPath::Fast, DataPath::Slow] {
        let mut bench = device(true, SwitchOptions::default());
        let chain: Vec<_> = (0..4)
            .map(|_| (successor(&bench), events(&bench)))
            .collect();
        bench.run(|first, _, total| {
            progress(total);
            first.switch_to(path).unwrap();
            first.write_config(32, &[0]).unwrap();
            first.pause().unwrap();
            let mut saved = first.save().unwrap();
            let mut last = None;
            for (next, events) in chain {
                next.restore(&saved, events).unwrap();
                assert_eq!(next.path(), PathState::Paused);
                assert_eq!(next.save().unwrap(), saved);
                assert_eq!(next.status(), 15);
                next.switch_to(path).unwrap();
                next.resume().unwrap();
                assert_eq!(next.path(), path);
                let mut writeback = [9];
                next.read_config(32, &mut writeback).unwrap();
                assert_eq!(writeback, [0], "the guest's cache mode moves too");
                progress(total);
                next.switch_to(other(path)).unwrap();
                progress(total);
                next.pause().unwrap();
                saved = next.save().unwrap();
                last = Some(next);
            }
            // Until the guest's threads have ended.
            let last = last.unwrap();
            last.resume().unwrap();
            Box::leak(Box::new(last));
        });
    }
}

#[test]
fn hostile_saved_states_are_refused_and_change_nothing() {
    let bench = device(true, SwitchOptions::default());
    bench.switch.pause().unwrap();
    let good = bench.switch.save().unwrap();
    type Spoil = fn(&mut SavedGuest);
    let spoils: [Spoil; 4] = [
        |saved| saved.features |= 1 << 63,
        |saved| saved.queues[0].index = 77,
        |saved| saved.queues[1].size = 3,
        |saved| saved.queues[1].base = 0x1_0000,
    ];
    let next = successor(&bench);
    for spoil in spoils {
        let mut saved = good.clone();
        spoil(&mut saved);
        assert!(next.restore(&saved, events(&bench)).is_err());
        assert_eq!((next.path(), next.status()), (PathState::Idle, 0));
    }
    // Rings that lie nowhere: the slow path says so.
    let mut saved = good.clone();
    saved.queues[0].address.desc = 1 << 50;
    next.restore(&saved, events(&bench)).unwrap();
    next.switch_to(DataPath::Slow).unwrap();
    let error = next.resume().unwrap_err();
    assert_eq!(
        (error.step, error.path),
        (SwitchStep::TakeOver, PathState::Fast)
    );
    next.set_status(0).unwrap();
    next.restore(&good, events(&bench)).unwrap();
    next.resume().unwrap();
}

#[test]
fn who_is_not_paused_is_not_saved_and_who_runs_takes_nothing_over() {
    let bench = device(true, SwitchOptions::default());
    let switch = &bench.switch;
    assert!(matches!(switch.save(), Err(PathError::Busy(_))));
    switch.pause().unwrap();
    let saved = switch.save().unwrap();
    assert!(switch.restore(&saved, events(&bench)).is_err());
    // The guest's reset ends the pause.
    switch.set_status(0).unwrap();
    assert_eq!(switch.path(), PathState::Idle);
    switch.resume().unwrap();
    switch.pause().unwrap();
    assert_eq!(switch.save().unwrap().queues, []);
}

#[test]
fn a_need_that_comes_or_goes_in_a_pause_decides_on_the_path_after_it() {
    let mut bench = device(
        true,
        SwitchOptions {
            policy: SwitchPolicy::Auto,
            ..SwitchOptions::default()
        },
    );
    bench.run(|switch, _, total| {
        switch.pause().unwrap();
        let need = switch.intercept("test").unwrap();
        assert_eq!(switch.path(), PathState::Paused);
        assert_eq!(
            switch.switch_to(DataPath::Fast).unwrap_err().step,
            SwitchStep::Prepare
        );
        switch.resume().unwrap();
        assert_eq!(switch.path(), PathState::Slow);
        progress(total);
        switch.pause().unwrap();
        drop(need);
        switch.apply_policy().unwrap();
        switch.resume().unwrap();
        assert_eq!(switch.path(), PathState::Fast);
        progress(total);
    });
}

#[test]
fn requests_that_do_not_end_leave_it_running() {
    let slow = Duration::ZERO..=Duration::from_millis(300);
    let mut bench = bench(Setup {
        plan: Some(FaultPlan::new(5).delay_time(slow)),
        options: SwitchOptions {
            drain_timeout: Duration::from_millis(1),
            ..SwitchOptions::default()
        },
        ..Setup::default()
    });
    bench.switch.switch_to(DataPath::Slow).unwrap();
    bench.run(|switch, _, total| {
        progress(total);
        let error = switch.pause().unwrap_err();
        assert_eq!(
            (error.step, error.path),
            (SwitchStep::Quiesce, PathState::Slow)
        );
        progress(total);
    });
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! A guest whose device stands still for a while, on either path.

mod common;

use std::sync::atomic::Ordering;

use common::bench::{Setup, bench, delays, other, progress};
use common::device::Profile;
use vhost_vdpa_frontend::{Path, PathError, Policy, SwitchOptions};

/// Under load, by SUSPEND and by stopped vCPUs; the guest checks each answer and each sector.
#[test]
fn a_guest_goes_on_where_it_was() {
    for suspends in [true, false] {
        let profile = Profile {
            suspend: suspends,
            ..Profile::default()
        };
        let mut bench = bench(Setup {
            profile,
            plan: Some(delays()),
            ..Setup::default()
        });
        bench.vcpus.able.store(true, Ordering::SeqCst);
        bench.run(|switch, device, total| {
            for round in 0..12 {
                let path = switch.path();
                switch.pause().unwrap();
                switch.pause().unwrap();
                assert_eq!((switch.path(), switch.status()), (Path::Paused, 15));
                assert!(!device.device.is_mapped(1 << 46));
                if round % 3 == 2 {
                    // It is sent there, and goes when it goes on.
                    assert_eq!(switch.switch_to(other(path)).unwrap(), None);
                }
                switch.resume().unwrap();
                switch.resume().unwrap();
                let goal = if round % 3 == 2 { other(path) } else { path };
                assert_eq!(switch.path(), goal);
                progress(total);
            }
        });
        assert!(!bench.breached());
    }
}

/// What is saved is what another switch, over the same device, goes on with.
#[test]
fn a_saved_guest_goes_on_in_another_switch() {
    for path in [Path::Fast, Path::Slow] {
        let mut bench = bench(Setup::default());
        bench.run(|switch, _, total| {
            switch.switch_to(path).unwrap();
            assert!(matches!(switch.save(), Err(PathError::Busy(_))));
            progress(total);
        });
        bench.switch.pause().unwrap();
        let saved = bench.switch.save().unwrap();
        assert_eq!(
            (saved.status, saved.queues.len()),
            (15, bench.guest.queues.len())
        );
        // A guest that is there is not replaced.
        let busy = bench
            .switch
            .restore(&saved, |index| panic!("asked for {index}"));
        assert!(matches!(busy, Err(PathError::Busy(_))));
        bench.renew_switch(SwitchOptions {
            policy: Policy::Auto,
            ..SwitchOptions::default()
        });
        let (switch, queues) = (bench.switch.clone(), &bench.guest.queues);
        let events = |index: u16| {
            let queue = queues.get(usize::from(index))?.setup();
            Some((queue.kick, queue.call))
        };
        for spoil in 0..4 {
            let mut bad = saved.clone();
            match spoil {
                0 => bad.features |= 1 << 63,
                1 => bad.queues[0].index = 99,
                2 => bad.queues[0].size = 3,
                _ => bad.queues[0].base = 1 << 20,
            }
            assert!(switch.restore(&bad, events).is_err(), "{spoil}");
            assert_eq!((switch.path(), switch.status()), (Path::Idle, 0));
        }
        let need = (path == Path::Slow).then(|| switch.intercept("test").unwrap());
        switch.restore(&saved, events).unwrap();
        assert_eq!(switch.path(), Path::Paused);
        switch.resume().unwrap();
        assert_eq!(switch.path(), path);
        bench.run(|_, _, total| progress(total));
        drop(need);
    }
}

/// The driver leaves while nobody serves it.
#[test]
fn a_paused_guest_is_reset() {
    let mut bench = bench(Setup::default());
    bench.switch.pause().unwrap();
    bench.switch.set_status(0).unwrap();
    bench.switch.resume().unwrap();
    assert_eq!(
        (bench.switch.path(), bench.switch.status()),
        (Path::Idle, 0)
    );
    // Without a driver there is nothing to pause, and nothing much to save.
    bench.switch.pause().unwrap();
    assert!(bench.switch.save().unwrap().queues.is_empty());
    bench.load_again();
    bench.run(|_, _, total| progress(total));
}

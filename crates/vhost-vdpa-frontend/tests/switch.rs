// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Moving a running guest.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::bench::{Bench, Setup, bench, delays, other, progress};
use common::budgeted::Budgeted;
use common::device::Profile;
use common::guest::SIZE;
use sim_backend::Faults;
use vhost_vdpa_frontend::{
    DataPath, PathState, QuiesceMethod, SlowOptions, SwitchOptions, SwitchStep,
};
use virtio_blk_core::spec::feature;

#[test]
fn a_guest_runs_on_both_paths() {
    // A driver that uses several queues without MQ is served on both paths alike.
    for declined in [
        feature::RING_EVENT_IDX,
        feature::RING_INDIRECT_DESC,
        feature::MQ,
        0,
    ] {
        let mut bench = bench(Setup {
            declined,
            ..Setup::default()
        });
        assert_eq!(bench.switch.path(), PathState::Fast);
        let (_, answered) = bench.run(|switch, device, total| {
            progress(total);
            assert!(!device.device.is_mapped(1 << 46));
            let report = switch.switch_to(DataPath::Slow).unwrap().unwrap();
            assert_eq!((report.from, report.to), (DataPath::Fast, DataPath::Slow));
            assert_eq!(report.method, Some(QuiesceMethod::Suspend));
            assert!(report.attempts >= 1);
            assert!(device.device.is_mapped(1 << 46));
            progress(total);
            assert_eq!(switch.switch_to(DataPath::Slow).unwrap(), None);
            let report = switch.switch_to(DataPath::Fast).unwrap().unwrap();
            assert_eq!(report.method, Some(QuiesceMethod::Drain));
            assert!(!device.device.is_mapped(1 << 46));
            progress(total);
        });
        assert!(answered >= 150);
        assert!(!bench.breached());
    }
}

/// Nothing is lost, repeated, corrupted or stuck: the guest checks each answer and each sector.
fn many_switches(count: u32, setup: Setup) -> Bench {
    let mut bench = bench(setup);
    bench.vcpus.able.store(true, Ordering::SeqCst);
    move_about(&mut bench, count);
    bench
}

fn move_about(bench: &mut Bench, count: u32) {
    let (_, answered) = bench.run(|switch, _, total| {
        for round in 0..count {
            let report = switch.switch_to(other(switch.path())).unwrap().unwrap();
            assert!(report.in_flight <= 4 * u32::from(SIZE), "{report:?}");
            // Sometimes at once, sometimes under full load.
            if round % 8 == 0 {
                progress(total);
            }
        }
        progress(total);
    });
    assert!(answered > u64::from(count));
    assert!(!bench.breached(), "the window was in reach of the guest");
}

/// 10,000 switches in all; fewer where nothing is optimised, and 100,000 with `VBLK_LONG_TESTS`.
fn share(of_ten_thousand: u32) -> u32 {
    if std::env::var_os("VBLK_LONG_TESTS").is_some() {
        of_ten_thousand * 10
    } else if cfg!(debug_assertions) {
        of_ten_thousand / 20
    } else {
        of_ten_thousand
    }
}

#[test]
fn switches_without_delays() {
    many_switches(share(2000), Setup::default());
}

#[test]
fn switches_with_delays_and_reordering() {
    let plan = Some(delays());
    many_switches(
        share(2000),
        Setup {
            plan,
            ..Setup::default()
        },
    );
}

#[test]
fn switches_of_an_eventfd_device_without_event_idx() {
    let profile = Profile {
        triggers_only: true,
        single_maps: true,
        features: !feature::RING_EVENT_IDX,
        ..Profile::default()
    };
    let plan = Some(delays());
    many_switches(
        share(2000),
        Setup {
            profile,
            plan,
            ..Setup::default()
        },
    );
}

/// A VMM that serves the queues from loops of its own, with a few requests at a time: what a pass leaves undone, and whether
/// kicks are asked for at that moment, must not matter to the next owner of the ring.
#[test]
fn switches_with_budgets_from_1_to_256() {
    const BUDGETS: [usize; 8] = [1, 2, 3, 4, 7, 16, 64, 256];
    let count = share(1600) / (3 * BUDGETS.len() as u32);
    for budget in BUDGETS {
        for (declined, compat) in [(0, false), (feature::RING_EVENT_IDX, false), (0, true)] {
            let profile = Profile {
                queues: if compat { 1 } else { 4 },
                compat,
                ..Profile::default()
            };
            let setup = Setup {
                profile,
                declined,
                plan: (budget % 2 == 0).then(delays),
                executor: Some(Box::new(Budgeted::new(budget))),
                ..Setup::default()
            };
            many_switches(count.max(8), setup);
        }
    }
}

/// The kernel's simulator: one queue, no INDIRECT, no EVENT_IDX; it loses kicks around SUSPEND.
#[test]
fn switches_of_a_device_as_the_kernels() {
    for batch_mapping in [true, false] {
        let profile = Profile {
            queues: 1,
            compat: true,
            single_maps: !batch_mapping,
            ..Profile::default()
        };
        let setup = Setup {
            profile,
            ..Setup::default()
        };
        let bench = many_switches(share(1000), setup);
        let indirect = feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;
        assert_eq!(bench.switch.offered() & indirect, 0);
    }
}

/// Now and then a SUSPEND leaves requests in flight.
#[test]
fn switches_of_a_device_that_does_not_always_drain() {
    let profile = Profile {
        faults: Faults::new(4).suspend_undrained(100),
        ..Profile::default()
    };
    let plan = Some(delays());
    let bench = many_switches(
        share(1000),
        Setup {
            profile,
            plan,
            ..Setup::default()
        },
    );
    assert!(bench.device.device.sim().fault_counts().undrained > 0);
}

/// Now and then a kick does not reach the device, or an interrupt its driver, on either path. The guest kicks again and
/// looks after a while, and so does the slow path.
#[test]
fn switches_of_a_device_that_loses_kicks_and_interrupts() {
    let profile = Profile {
        faults: Faults::new(5).drop_kicks(10).drop_callbacks(10),
        ..Profile::default()
    };
    let options = SwitchOptions {
        slow: SlowOptions {
            timeout: Some(Duration::from_secs(20)),
            ..SlowOptions::default()
        },
        ..SwitchOptions::default()
    };
    let mut bench = bench(Setup {
        profile,
        options,
        ..Setup::default()
    });
    for queue in &mut bench.guest.queues {
        queue.kicks_again = true;
    }
    move_about(&mut bench, share(600));
    let lost = bench.device.device.sim().fault_counts();
    assert!(lost.kicks > 0 && lost.callbacks > 0, "{lost:?}");
}

/// Now and then the device finds a buffer unmapped, and fails the request: each one is completed once all the
/// same, and data that was not refused is right. (Where not even the status byte is found the device stops: that is
/// no matter of switches.)
#[test]
fn switches_of_a_device_that_misses_mappings() {
    let profile = Profile {
        faults: Faults::new(6).miss_iotlb(5).spare_after_miss(64),
        ..Profile::default()
    };
    let mut bench = bench(Setup {
        profile,
        plan: Some(delays()),
        ..Setup::default()
    });
    for queue in &mut bench.guest.queues {
        queue.takes_errors = true;
    }
    move_about(&mut bench, share(1000));
    assert!(bench.device.device.sim().fault_counts().iotlb > 0);
}

#[test]
fn a_device_without_suspend_needs_paused_vcpus() {
    let profile = Profile {
        suspend: false,
        resume: false,
        ..Profile::default()
    };
    let mut bench = bench(Setup {
        profile,
        plan: Some(delays()),
        ..Setup::default()
    });
    let vcpus = bench.vcpus.clone();
    bench.run(|switch, _, total| {
        progress(total);
        let error = switch.switch_to(DataPath::Slow).unwrap_err();
        assert_eq!(
            (error.step, error.path),
            (SwitchStep::Quiesce, PathState::Fast)
        );
        progress(total);
    });
    vcpus.able.store(true, Ordering::SeqCst);
    bench.run(|switch, _, total| {
        let report = switch.switch_to(DataPath::Slow).unwrap().unwrap();
        assert_eq!(report.method, Some(QuiesceMethod::PausedVcpus));
        assert!(report.phases.vcpus_paused <= report.phases.pause());
        progress(total);
    });
    assert_eq!(vcpus.paused.load(Ordering::SeqCst), 1);
}

#[test]
fn a_device_that_starts_at_0_only_stays_slow() {
    let profile = Profile {
        midway: false,
        ..Profile::default()
    };
    let mut bench = bench(Setup {
        profile,
        ..Setup::default()
    });
    bench.run(|switch, _, total| {
        progress(total);
        switch.switch_to(DataPath::Slow).unwrap().unwrap();
        progress(total);
        let served = switch.path();
        for _ in 0..2 {
            let error = switch.switch_to(DataPath::Fast).unwrap_err();
            // Nothing is stopped and reset in vain: it is known from the driver's start.
            assert_eq!((error.step, error.path), (SwitchStep::Prepare, served));
            progress(total);
        }
    });
}

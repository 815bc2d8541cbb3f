// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue stops at once, whatever its layers hold back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use malformed_queues::on_each_memory;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::runner::{QueueSetup, Service, Stop};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::hot_swap::HoldError;
use virtio_blk_disks::meter::OpClass;
use virtio_blk_disks::stack::{Groups, LayerArg, Stack};
use virtio_blk_driver::request::{ArenaConfig, Request};
use virtio_blk_driver::ring::RingConfig;

/// Far below what any of the limits here would take, far above what a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);

const WRITES: usize = 16;

/// Fills a queue over `layers` with writes, does `before` with the stack, and stops; on each kind of memory.
/// Returns the heads that were not returned, and how many writes the disk underneath saw.
fn stop(layers: &[&str], mode: Stop, before: fn(&Stack)) -> Vec<(usize, u64)> {
    let layers: Vec<LayerArg> = layers.iter().map(|text| text.parse().unwrap()).collect();
    let mut results = Vec::new();
    on_each_memory!(256 * 1024, |mem, space| {
        let base = Arc::new(MemoryDisk::new(1 << 20).unwrap());
        let stack = Stack::live(base, &layers, Groups::default()).unwrap();
        let device = Device::new(stack.disk(), DeviceOptions::default()).unwrap();
        device.accept(device.offered()).unwrap();
        let config = RingConfig {
            event_idx: true,
            indirect: true,
            start: 0,
        };
        let mut driver = space
            .driver(mem.clone(), 64, config, ArenaConfig::default())
            .unwrap();
        let setup = QueueSetup::new(mem.clone(), || {});
        let mut queue = device.start_queue(0, setup, driver.state()).unwrap();
        before(&stack);
        for sector in 0..WRITES {
            driver
                .submit(&Request::write(sector as u64, &[7; 512]))
                .unwrap();
        }
        driver.publish().unwrap();
        while queue.service(64) == Service::More {}
        assert!(queue.in_flight() >= WRITES - 1, "{}", queue.in_flight());
        let begin = Instant::now();
        let stopped = queue.stop(mode);
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        assert!(stopped.error.is_none());
        let mut returned = 0;
        while let Some(done) = driver.poll().unwrap() {
            assert!(done.is_ok());
            returned += 1;
        }
        assert_eq!(returned + stopped.in_flight.len(), WRITES);
        let meter = stack.meter().unwrap();
        let seen = meter.total().class(OpClass::Write).count();
        results.push((stopped.in_flight.len(), seen));
    });
    results
}

fn hold(stack: &Stack) {
    stack.hold(Duration::from_secs(3600)).unwrap();
}

#[test]
fn a_drain_lets_a_throttle_go() {
    let stopped = stop(&["meter", "throttle=iops:1"], Stop::Drain, |_| {});
    assert!(
        stopped.iter().all(|one| *one == (0, WRITES as u64)),
        "{stopped:?}"
    );
}

#[test]
fn a_hand_over_cancels_what_a_throttle_holds() {
    let stopped = stop(&["meter", "throttle=iops:1"], Stop::HandOver, |_| {});
    assert!(
        stopped.iter().all(|(left, _)| *left >= WRITES - 1),
        "{stopped:?}"
    );
}

#[test]
fn a_drain_ends_a_hold() {
    for layers in [&["meter"][..], &["meter", "throttle=iops:1"]] {
        let stopped = stop(layers, Stop::Drain, hold);
        assert!(
            stopped.iter().all(|one| *one == (0, WRITES as u64)),
            "{stopped:?}"
        );
    }
}

#[test]
fn a_hand_over_under_a_hold_moves_nothing() {
    for layers in [&["meter"][..], &["meter", "throttle=iops:1"]] {
        let stopped = stop(layers, Stop::HandOver, hold);
        assert!(stopped.iter().all(|one| *one == (WRITES, 0)), "{stopped:?}");
    }
}

#[test]
fn delays_of_a_fault_layer_end_too() {
    let stopped = stop(&["meter", "fault=delay:3600/seed:3"], Stop::Drain, |_| {});
    assert!(
        stopped.iter().all(|one| *one == (0, WRITES as u64)),
        "{stopped:?}"
    );
}

/// One of two queues is stopped; the other one holds still, and the client that copies learns of it.
#[test]
fn a_hold_that_a_stop_broke_is_told() {
    let base = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let stack = Stack::live(base, &[], Groups::default()).unwrap();
    let disk = stack.disk();
    let mut queues = [disk.open_queue(4).unwrap(), disk.open_queue(4).unwrap()];
    let write = |token| virtio_blk_core::disk::Op {
        token: virtio_blk_core::disk::Token(token),
        kind: virtio_blk_core::disk::OpKind::Write {
            offset: 0,
            fua: false,
        },
        buf: virtio_blk_core::disk::IoBuf::from_vec(vec![1; 512]),
    };
    let mut done = Vec::new();
    hold(&stack);
    for queue in &mut queues {
        queue.submit(write(1));
    }
    // It has nothing to let go: the hold stands.
    disk.open_queue(4).unwrap().release_held();
    stack.extend(Duration::from_secs(3600)).unwrap();
    queues[0].release_held();
    queues[0].reap(&mut done).unwrap();
    queues[1].reap(&mut done).unwrap();
    assert_eq!(done.len(), 1);
    assert!(matches!(
        stack.extend(Duration::ZERO),
        Err(HoldError::Broken { .. })
    ));
    let error = stack.resume().hold.unwrap_err();
    assert!(matches!(error, HoldError::Broken { .. }), "{error}");
    assert!(error.to_string().contains("not of one moment"), "{error}");
    assert_eq!(stack.resume().hold, Err(HoldError::None));
    queues[1].reap(&mut done).unwrap();
    assert_eq!(done.len(), 2);
    // The same by time.
    stack.hold(Duration::ZERO).unwrap();
    assert!(matches!(stack.resume().hold, Err(HoldError::RanOut { .. })));
    assert_eq!(stack.resume().hold, Err(HoldError::None));
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that checks every answer, on a `/dev/vhost-vdpa-N` with a throttle on its slow path: while there is a limit
//! its requests take the slow path, as `SwitchPolicy::Auto` learns from the layers, and the fast one again without it. The
//! lab's `vdpa-throttle` runs it.
//!
//!     vhost-vdpa-throttle NODE QUEUES IOPS SECONDS

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/common/guest.rs"]
mod guest;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use guest::Guest;
use vdpa_bus::VdpaDevice;
use vhost_vdpa_frontend::{
    PathState, PathSwitch, SwitchOptions, SwitchParts, SwitchPolicy, ThreadExecutor, VhostVdpa,
};
use virtio_blk_disks::stack::{Groups, LayerArg, Stack};
use virtio_blk_disks::throttle::{Limits, Rate, ThrottleOptions};
use vm_memory::GuestMemoryAtomic;

fn throttle(iops: Option<u64>) -> [LayerArg; 1] {
    let limits = Limits {
        iops: iops.map(Rate::new),
        ..Limits::default()
    };
    [LayerArg::new(ThrottleOptions {
        limits,
        group: None,
    })]
}

/// Requests that were answered, and in which time.
fn count(total: &AtomicU64, time: Duration) -> (u64, Duration) {
    let (start, before) = (Instant::now(), total.load(Ordering::SeqCst));
    std::thread::sleep(time);
    (total.load(Ordering::SeqCst) - before, start.elapsed())
}

fn main() {
    // A thread that fails must not leave the others waiting.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(1);
    }));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [node, queues, iops, seconds] = args.as_slice() else {
        panic!("NODE QUEUES IOPS SECONDS");
    };
    let (queues, iops): (u16, u64) = (queues.parse().unwrap(), iops.parse().unwrap());
    let time = Duration::from_secs_f32(seconds.parse().unwrap());

    let device = Arc::new(VhostVdpa::open(node).unwrap());
    let mut guest = Guest::new(queues, 32 / queues, device.get_device_features());
    let cell = Arc::new(OnceLock::new());
    let made = cell.clone();
    let parts = SwitchParts {
        device,
        memory: GuestMemoryAtomic::new((*guest.memory).clone()),
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: guest.gate.clone(),
        layers: Some(Box::new(move |slow| {
            let stack = Stack::fixed(slow, &throttle(None), Groups::default()).unwrap();
            made.get_or_init(|| stack).disk()
        })),
    };
    let options = SwitchOptions {
        policy: SwitchPolicy::Auto,
        quiesce_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(60),
        ..SwitchOptions::default()
    };
    let switch = Arc::new(PathSwitch::new(parts, options).unwrap());
    let stack = cell.get().unwrap();
    // The path follows the layers: all that is needed between the two.
    let follower = switch.clone();
    stack.listen(move |sees| follower.set_interception("layers", sees).unwrap());

    for status in [0, 1, 3] {
        switch.set_status(status).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    for (index, queue) in (0..).zip(&guest.queues) {
        switch.set_queue(index, queue.setup()).unwrap();
    }
    switch.set_status(15).unwrap();
    assert_eq!(switch.path(), PathState::Fast);

    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for queue in &mut guest.queues {
            scope.spawn(|| queue.run(&stop, &total));
        }
        let say = |what: &str, (answers, took): (u64, Duration)| {
            let rate = answers as f64 / took.as_secs_f64();
            println!("{what}: {answers} answers in {took:.2?}, {rate:.0} a second");
            answers
        };
        assert!(say("fast path", count(&total, time)) > 0);
        stack.change(&throttle(Some(iops))).unwrap();
        assert_eq!(
            switch.path(),
            PathState::Slow,
            "a limit needs to see requests"
        );
        let counted = count(&total, time);
        let limited = say("slow path, limited", counted);
        // Flushes, one of 32 requests, are not held back; what a late timer may make up for is 10 ms.
        let most = (counted.1.as_secs_f64() + 0.02) * iops as f64 * 32.0 / 31.0 * 1.1 + 32.0;
        assert!(
            limited > 0 && (limited as f64) < most,
            "more than the limit allows"
        );
        let stats = stack.throttles()[0].stats();
        println!(
            "{} were held back, {:.2?} in all",
            stats.released, stats.time
        );
        stack.change(&throttle(None)).unwrap();
        assert_eq!(
            switch.path(),
            PathState::Fast,
            "nobody needs to see requests"
        );
        assert!(say("fast path again", count(&total, time)) > 0);
        stop.store(true, Ordering::SeqCst);
    });
}

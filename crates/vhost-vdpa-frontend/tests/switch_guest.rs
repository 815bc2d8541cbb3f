// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! What a guest and its VMM do while it is moved.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::bench::{Bench, Setup, Switch, advances, bench, delays, other, progress};
use common::device::Profile;
use common::guest::PLUGGED;
use vdpa_bus::Callback;
use vhost_vdpa_frontend::{DataPath, PathError, PathState, SwitchOptions, SwitchPolicy};
use virtio_blk_core::disk::{Caps, Completion, Disk, DiskError, IoQueue, Op, Submit, Wait};
use virtio_blk_disks::meter::OpClass;
use virtio_blk_disks::stack::{Groups, LayerArg, Stack};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

/// What the slow path's disk wears is in the way of each request, and of none on the fast path.
#[test]
fn layers_see_requests_on_the_slow_path_only() {
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    let mut bench = bench(Setup {
        layers: Some(Box::new(|disk| Arc::new(Meter(disk, counter)))),
        ..Setup::default()
    });
    bench.run(|switch, _, total| {
        progress(total);
        assert_eq!(seen.load(Ordering::SeqCst), 0);
        switch.switch_to(DataPath::Slow).unwrap();
        advances(|| seen.load(Ordering::SeqCst));
        switch.switch_to(DataPath::Fast).unwrap();
    });
    let slow = seen.load(Ordering::SeqCst);
    bench.run(|_, _, total| progress(total));
    assert_eq!(seen.load(Ordering::SeqCst), slow);
}

/// Memory is plugged and unplugged while requests are in flight, on both paths and between switches.
#[test]
fn memory_comes_and_goes_on_both_paths() {
    const AT: u64 = 1 << 32;
    let mut bench = bench(Setup::default());
    let (memory, plain) = (bench.memory.clone(), bench.guest.memory.clone());
    let with = |base, len| {
        let region = GuestRegionMmap::new(MmapRegion::new(len).unwrap(), GuestAddress(base));
        plain.insert_region(Arc::new(region.unwrap())).unwrap()
    };
    bench.run(|switch, device, total| {
        for round in 0..40 {
            memory.lock().unwrap().replace(with(AT, 1 << 20));
            switch.sync_memory().unwrap();
            assert!(device.device.is_mapped(AT));
            if round % 2 == 0 {
                switch.switch_to(other(switch.path())).unwrap();
            }
            memory.lock().unwrap().replace((*plain).clone());
            switch.sync_memory().unwrap();
            assert!(!device.device.is_mapped(AT));
            progress(total);
        }
    });
    // Nothing may reach into the shadow window.
    memory.lock().unwrap().replace(with(1 << 46, 4096));
    assert!(matches!(
        bench.switch.sync_memory(),
        Err(PathError::Window { .. })
    ));
}

/// A guest uses memory that it got while its device was on the fast path, or on the slow one.
#[test]
fn memory_that_was_plugged_in_is_used() {
    for path in [DataPath::Fast, DataPath::Slow] {
        let mut bench = bench(Setup::default());
        let (memory, all) = (bench.memory.clone(), bench.guest.memory.clone());
        memory.lock().unwrap().replace(bench.guest.unplugged());
        bench.switch.sync_memory().unwrap();
        assert!(!bench.device.device.is_mapped(PLUGGED.0));
        bench.switch.switch_to(path).unwrap();
        let last = bench.guest.queues.pop().unwrap();
        bench.run(|_, _, total| progress(total));
        bench.guest.queues.push(last);
        memory.lock().unwrap().replace((*all).clone());
        bench.switch.sync_memory().unwrap();
        bench.run(|switch, _, total| {
            progress(total);
            switch.switch_to(other(path)).unwrap();
            progress(total);
        });
    }
}

#[test]
fn auto_follows_who_needs_to_see_requests() {
    let options = SwitchOptions {
        policy: SwitchPolicy::Auto,
        ..SwitchOptions::default()
    };
    let mut bench = bench(Setup {
        options,
        ..Setup::default()
    });
    bench.run(|switch, _, total| {
        assert_eq!(switch.apply_policy().unwrap(), None);
        let throttle = switch.intercept("throttle").unwrap();
        let mirror = switch.intercept("mirror").unwrap();
        assert_eq!(switch.path(), PathState::Slow);
        progress(total);
        drop(throttle);
        assert_eq!(switch.apply_policy().unwrap(), None);
        assert!(switch.switch_to(DataPath::Fast).is_err());
        assert_eq!(switch.reasons(), ["mirror"]);
        drop(mirror);
        assert_eq!(switch.apply_policy().unwrap().unwrap().to, DataPath::Fast);
        progress(total);
    });
    // A driver that is loaded meanwhile starts slow.
    let need = bench.switch.intercept("snapshot").unwrap();
    bench.load_again();
    assert_eq!(bench.switch.path(), PathState::Slow);
    bench.run(|_, _, total| progress(total));
    drop(need);
    assert_eq!(
        bench.switch.apply_policy().unwrap().unwrap().to,
        DataPath::Fast
    );
}

/// A VMM whose layers come and go, as `vblk ctl` has them.
#[test]
fn auto_follows_a_stack_of_layers() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut bench = bench(Setup {
        profile: Profile {
            queues: 8,
            ..Profile::default()
        },
        guest_queues: Some(4),
        options: SwitchOptions {
            policy: SwitchPolicy::Auto,
            ..SwitchOptions::default()
        },
        layers: Some(Box::new(move |disk| {
            let stack = Stack::live(disk, &[], Groups::default()).unwrap();
            let top = stack.disk();
            sender.send(stack).unwrap();
            top
        })),
        ..Setup::default()
    });
    let stack = receiver.recv().unwrap();
    // Layers that can be exchanged take half the queues: so the guest sees those, on both paths.
    assert_eq!(bench.switch.queues(), 4);
    let seen_queues = |switch: &Switch| {
        let mut field = [0; 3];
        switch.read_config(33, &mut field).unwrap();
        u16::from_le_bytes([field[1], field[2]])
    };
    let layers = |text: &[&str]| -> Vec<LayerArg> {
        text.iter().map(|layer| layer.parse().unwrap()).collect()
    };
    let follower = Arc::downgrade(&bench.switch);
    stack.listen(move |sees| {
        let switch = follower.upgrade().unwrap();
        switch.set_interception("layers", sees).unwrap();
    });
    bench.run(|switch, _, total| {
        let change = |text: &[&str]| stack.change(&layers(text)).unwrap();
        for _ in 0..3 {
            change(&[]);
            assert_eq!((switch.path(), seen_queues(switch)), (PathState::Fast, 4));
            progress(total);
            change(&["meter"]);
            assert_eq!((switch.path(), seen_queues(switch)), (PathState::Slow, 4));
            let meter = stack.meter().unwrap();
            advances(|| meter.total().class(OpClass::Read).count());
            // Another layer comes and goes while requests are in flight.
            change(&["meter", "throttle=iops:1000000"]);
            progress(total);
            change(&["meter"]);
            assert_eq!(switch.reasons(), ["layers"]);
            progress(total);
        }
        change(&[]);
        assert_eq!(switch.path(), PathState::Fast);
        progress(total);
    });
}

#[test]
fn a_guest_may_reset_its_device_on_any_path() {
    let mut bench = bench(Setup {
        plan: Some(delays()),
        ..Setup::default()
    });
    let switch = bench.switch.clone();
    for round in 0..20 {
        bench.load_again();
        if round % 2 == 1 {
            switch.switch_to(DataPath::Slow).unwrap().unwrap();
        }
        for queue in &mut bench.guest.queues {
            queue.start_some();
        }
        switch.set_status(0).unwrap();
        assert_eq!((switch.path(), switch.status()), (PathState::Idle, 0));
        assert!(!bench.device.device.is_mapped(1 << 46));
    }
}

/// What a layer holds back does not hold a vCPU up that resets its device, and costs no device.
#[test]
fn a_reset_cancels_what_a_throttle_holds_back() {
    let spec: LayerArg = "throttle=iops:1".parse().unwrap();
    let mut bench = bench(Setup {
        layers: Some(Box::new(move |disk| {
            let stack = Stack::fixed(disk, &[spec], Groups::default());
            stack.unwrap().disk()
        })),
        ..Setup::default()
    });
    bench.switch.switch_to(DataPath::Slow).unwrap().unwrap();
    for queue in &mut bench.guest.queues {
        queue.start_some();
    }
    // In use: one request of the first second was served.
    let irqs = bench.guest.queues.iter().map(|queue| queue.irq.clone());
    let irqs: Vec<_> = irqs.collect();
    while irqs.iter().all(|irq| irq.read().is_err()) {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    bench.switch.set_status(0).unwrap();
    // 31 seconds' worth of requests.
    assert!(begun.elapsed() < Duration::from_secs(2));
    bench.load_again();
    bench.run(|_, _, total| progress(total));
}

#[test]
fn the_guest_sees_one_device() {
    let mut bench = bench(Setup::default());
    let irq = common::eventfd();
    bench.switch.set_status(0).unwrap();
    bench
        .switch
        .set_config_call(Some(Callback::Trigger(irq.clone())));
    bench.load_again();
    let look = |bench: &mut Bench| {
        let mut config = [0; 96];
        bench.switch.read_config(0, &mut config).unwrap();
        let serial = bench.guest.queues[0].serial();
        (
            bench.switch.offered(),
            bench.switch.status(),
            config,
            serial,
        )
    };
    let fast = look(&mut bench);
    assert_eq!(fast.1, 15);
    bench.switch.switch_to(DataPath::Slow).unwrap();
    assert!(look(&mut bench) == fast);
    assert!(irq.read().is_err(), "nothing changed");
}

#[test]
fn a_resize_on_the_fast_path_is_known_on_the_slow_one() {
    let bench = bench(Setup::default());
    let (switch, disk) = (bench.switch.clone(), bench.medium.clone());
    let bytes = disk.caps().capacity * 512;
    switch.set_status(0).unwrap();
    let irq = common::eventfd();
    switch.set_config_call(Some(Callback::Trigger(irq.clone())));
    bench.load_driver();
    let capacity = || {
        let mut field = [0; 8];
        switch.read_config(0, &mut field).unwrap();
        u64::from_le_bytes(field) * 512
    };
    for factor in [2, 3, 4, 5] {
        disk.resize(factor * bytes / 512).unwrap();
        assert_eq!(capacity(), factor * bytes);
        assert!(irq.read().is_ok(), "the guest was told");
        let path = if factor % 2 == 0 {
            DataPath::Slow
        } else {
            DataPath::Fast
        };
        switch.switch_to(path).unwrap().unwrap();
        assert_eq!(capacity(), factor * bytes);
        if path == DataPath::Slow {
            assert_eq!(switch.disk().caps().capacity * 512, factor * bytes);
        }
    }
}

/// Counts operations.
struct Meter(Arc<dyn Disk>, Arc<AtomicU64>);

struct MeterQueue(Box<dyn IoQueue>, Arc<AtomicU64>);

impl Disk for Meter {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        Ok(Box::new(MeterQueue(
            self.0.open_queue(depth)?,
            self.1.clone(),
        )))
    }
}

impl IoQueue for MeterQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.1.fetch_add(1, Ordering::SeqCst);
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

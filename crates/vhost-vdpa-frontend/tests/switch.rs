// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Moving a running guest.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::device::{Profile, TestDevice};
use common::flaky::Flaky;
use common::guest::{Gate, Guest, Memory, disk_bytes};
use sim_backend::Faults;
use vdpa_bus::Callback;
use vhost_vdpa_frontend::{
    Method, OnFailure, Path, PathError, PathSwitch, Policy, SwitchOptions, SwitchParts, SwitchStep,
    ThreadHost, Vmm,
};
use virtio_blk_core::disk::{Caps, Completion, Disk, DiskError, IoQueue, Op, Submit, Wait};
use virtio_blk_core::spec::feature;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::{FaultDisk, FaultPlan};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestRegionMmap, MmapRegion};

type Switch = PathSwitch<Arc<Memory>>;

/// A VMM that stops vCPUs, if it is able to.
#[derive(Default)]
struct Vcpus {
    able: AtomicBool,
    gate: Arc<Gate>,
    paused: AtomicU64,
}

impl Vmm for Vcpus {
    fn pause_vcpus(&self) -> bool {
        let able = self.able.load(Ordering::SeqCst);
        if able {
            self.gate.close();
            self.paused.fetch_add(1, Ordering::SeqCst);
        }
        able
    }

    fn resume_vcpus(&self) {
        self.gate.open();
    }
}

const QUEUES: u16 = 4;
const DEPTH: u16 = 8;

struct Bench {
    switch: Arc<Switch>,
    device: Arc<Flaky>,
    guest: Guest,
    vcpus: Arc<Vcpus>,
}

fn bench(
    profile: Profile,
    plan: Option<FaultPlan>,
    event_idx: bool,
    options: SwitchOptions,
) -> Bench {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(disk_bytes(QUEUES, DEPTH)).unwrap());
    let disk = match plan {
        Some(plan) => Arc::new(FaultDisk::new(disk, plan)),
        None => disk,
    };
    let device = Flaky::new(TestDevice::new(disk, profile));
    let guest = Guest::new(QUEUES, DEPTH, event_idx);
    let vcpus = Arc::new(Vcpus {
        gate: guest.gate.clone(),
        ..Vcpus::default()
    });
    let parts = SwitchParts {
        device: device.clone(),
        memory: guest.memory.clone(),
        host: Box::new(ThreadHost::new(Duration::ZERO)),
        vmm: vcpus.clone(),
        layers: None,
    };
    let switch = Arc::new(Switch::new(parts, options).unwrap());
    let bench = Bench {
        switch,
        device,
        guest,
        vcpus,
    };
    bench.load_driver(event_idx);
    bench.device.window.store(1 << 46, Ordering::SeqCst);
    bench
}

impl Bench {
    /// What a driver does at start.
    fn load_driver(&self, event_idx: bool) {
        let switch = &self.switch;
        switch.set_status(0).unwrap();
        switch.set_status(1).unwrap();
        switch.set_status(3).unwrap();
        let mut features = switch.offered();
        assert_eq!(features & feature::ACCESS_PLATFORM, 0);
        if !event_idx {
            features &= !feature::RING_EVENT_IDX;
        }
        switch.set_features(features).unwrap();
        switch.set_status(11).unwrap();
        assert_eq!(switch.status(), 11);
        for (index, queue) in (0..).zip(&self.guest.queues) {
            switch.set_queue(index, queue.setup()).unwrap();
        }
        switch.set_status(15).unwrap();
    }

    /// Runs the guest on threads while `work` is done.
    fn run<R>(&mut self, work: impl FnOnce(&Switch, &Flaky, &AtomicU64) -> R) -> (R, u64) {
        let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
        let (switch, device) = (self.switch.clone(), self.device.clone());
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .guest
                .queues
                .iter_mut()
                .map(|queue| scope.spawn(|| queue.run(&stop, &total)))
                .collect();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(&switch, &device, &total)
            }));
            stop.store(true, Ordering::SeqCst);
            let answered = threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum();
            match result {
                Ok(result) => (result, answered),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Waits until the guest has had some answers: the path works.
fn progress(total: &AtomicU64) {
    let goal = total.load(Ordering::SeqCst) + 50;
    let deadline = Instant::now() + Duration::from_secs(30);
    while total.load(Ordering::SeqCst) < goal {
        assert!(Instant::now() < deadline, "the guest makes no progress");
        std::thread::yield_now();
    }
}

fn other(path: Path) -> Path {
    match path {
        Path::Fast => Path::Slow,
        Path::Slow => Path::Fast,
        other => panic!("{other:?}"),
    }
}

fn delays() -> FaultPlan {
    FaultPlan::new(11).delay_reaps(0..=6).reorder()
}

#[test]
fn a_guest_runs_on_both_paths() {
    for event_idx in [false, true] {
        let mut bench = bench(
            Profile::default(),
            None,
            event_idx,
            SwitchOptions::default(),
        );
        assert_eq!(bench.switch.path(), Path::Fast);
        let (_, answered) = bench.run(|switch, device, total| {
            progress(total);
            assert!(!device.device.is_mapped(1 << 46));
            let report = switch.switch_to(Path::Slow).unwrap().unwrap();
            assert_eq!((report.from, report.to), (Path::Fast, Path::Slow));
            assert_eq!(report.method, Some(Method::Suspend));
            assert!(report.attempts >= 1 && report.in_flight <= u32::from(QUEUES * DEPTH));
            assert!(device.device.is_mapped(1 << 46));
            progress(total);
            assert_eq!(switch.switch_to(Path::Slow).unwrap(), None);
            let report = switch.switch_to(Path::Fast).unwrap().unwrap();
            assert_eq!(report.method, Some(Method::Drain));
            assert!(!device.device.is_mapped(1 << 46));
            progress(total);
        });
        assert!(answered >= 150);
        assert!(!bench.device.breach.load(Ordering::SeqCst));
    }
}

/// Nothing is lost, repeated, corrupted or stuck: the guest checks each answer and each sector.
fn many_switches(count: u32, profile: Profile, plan: Option<FaultPlan>, event_idx: bool) {
    let mut bench = bench(profile, plan, event_idx, SwitchOptions::default());
    bench.vcpus.able.store(true, Ordering::SeqCst);
    let (_, answered) = bench.run(|switch, _, total| {
        let mut path = Path::Slow;
        for round in 0..count {
            switch.switch_to(path).unwrap().unwrap();
            path = other(path);
            // Sometimes at once, sometimes under full load.
            if round % 8 == 0 {
                progress(total);
            }
        }
        progress(total);
    });
    assert!(answered > u64::from(count));
    assert!(
        !bench.device.breach.load(Ordering::SeqCst),
        "the window was in reach of the guest"
    );
}

/// 10,000 switches in all; fewer where nothing is optimised.
fn share(of_ten_thousand: u32) -> u32 {
    if cfg!(debug_assertions) {
        of_ten_thousand / 20
    } else {
        of_ten_thousand
    }
}

#[test]
fn switches_without_delays() {
    many_switches(share(3000), Profile::default(), None, true);
}

#[test]
fn switches_with_delays_and_reordering() {
    many_switches(share(3000), Profile::default(), Some(delays()), true);
}

#[test]
fn switches_of_an_eventfd_device_without_event_idx() {
    let profile = Profile {
        triggers_only: true,
        single_maps: true,
        features: !feature::RING_EVENT_IDX,
        ..Profile::default()
    };
    many_switches(share(3000), profile, Some(delays()), false);
}

/// Now and then a SUSPEND leaves requests in flight.
#[test]
fn switches_of_a_device_that_does_not_always_drain() {
    let profile = Profile {
        faults: Faults::new(4).suspend_undrained(100),
        ..Profile::default()
    };
    many_switches(share(1000), profile, Some(delays()), true);
}

#[test]
fn an_undrained_device_is_resumed_and_tried_again() {
    let mut bench = bench(
        Profile::default(),
        Some(delays()),
        true,
        SwitchOptions::default(),
    );
    bench.run(|switch, device, total| {
        progress(total);
        device
            .undrained
            .store(i64::from(QUEUES) * 3, Ordering::SeqCst);
        let report = switch.switch_to(Path::Slow).unwrap().unwrap();
        assert_eq!(report.attempts, 4);
        progress(total);
        // One that never drains stays where it is.
        switch.switch_to(Path::Fast).unwrap().unwrap();
        device.undrained.store(i64::MAX, Ordering::SeqCst);
        let error = switch.switch_to(Path::Slow).unwrap_err();
        assert_eq!((error.step, error.path), (SwitchStep::Quiesce, Path::Fast));
        device.undrained.store(0, Ordering::SeqCst);
        progress(total);
        switch.switch_to(Path::Slow).unwrap().unwrap();
        progress(total);
    });
}

/// Each operation of a switch fails once, in both directions: the guest goes on, and so does the next switch.
#[test]
fn each_step_may_fail() {
    let mut bench = bench(
        Profile::default(),
        Some(delays()),
        true,
        SwitchOptions::default(),
    );
    bench.vcpus.able.store(true, Ordering::SeqCst);
    let (steps, _) = bench.run(|switch, device, total| {
        let mut steps = [0; 2];
        for (direction, path) in [Path::Slow, Path::Fast].into_iter().enumerate() {
            loop {
                if switch.path() == path {
                    switch.switch_to(other(path)).unwrap().unwrap();
                }
                device.fail(steps[direction], 1);
                let result = switch.switch_to(path);
                let failed = device.heal();
                if let Err(error) = &result {
                    assert_eq!(failed, 1, "{error}");
                    assert_eq!(error.path, switch.path());
                    assert_ne!(
                        error.path,
                        Path::Failed,
                        "step {}: {error}",
                        steps[direction]
                    );
                }
                progress(total);
                if failed == 0 {
                    result.unwrap();
                    break;
                }
                steps[direction] += 1;
            }
        }
        steps
    });
    assert!(steps[0] > 40 && steps[1] > 30, "{steps:?}");
    assert!(!bench.device.breach.load(Ordering::SeqCst));
}

/// From each operation on everything fails: nobody can serve the guest, until the device is well again.
#[test]
fn a_guest_survives_a_device_that_fails_for_long() {
    let mut bench = bench(
        Profile::default(),
        Some(delays()),
        true,
        SwitchOptions::default(),
    );
    let (failures, _) = bench.run(|switch, device, total| {
        let mut failures = [0; 2];
        for (direction, path) in [Path::Slow, Path::Fast].into_iter().enumerate() {
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
                if switch.path() == Path::Failed {
                    assert_eq!(result.unwrap_err().path, Path::Failed);
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
    assert!(!bench.device.breach.load(Ordering::SeqCst));
}

#[test]
fn failed_requests_are_answered_where_that_is_the_policy() {
    let options = SwitchOptions {
        on_failure: OnFailure::Fail,
        ..SwitchOptions::default()
    };
    let bench = bench(Profile::default(), None, true, options);
    // After the quiescing, at the first reset.
    let mut steps = 0;
    loop {
        bench.device.fail(steps, 1000);
        let result = bench.switch.switch_to(Path::Slow);
        bench.device.heal();
        let error = result.unwrap_err();
        if error.path == Path::Failed && error.step == SwitchStep::Reset {
            break;
        }
        steps += 1;
        assert!(steps < 100);
        bench.load_driver(true);
    }
    let mut guest = bench.guest;
    let queue = &mut guest.queues[0];
    assert_eq!(queue.ask_one(), virtio_blk_driver::wire::S_IOERR);
    bench.switch.retry().unwrap();
    assert_eq!(bench.switch.path(), Path::Fast);
    assert_eq!(queue.ask_one(), virtio_blk_driver::wire::S_OK);
}

#[test]
fn a_device_without_suspend_needs_paused_vcpus() {
    let profile = Profile {
        suspend: false,
        resume: false,
        ..Profile::default()
    };
    let mut bench = bench(profile, Some(delays()), true, SwitchOptions::default());
    let vcpus = bench.vcpus.clone();
    bench.run(|switch, _, total| {
        progress(total);
        let error = switch.switch_to(Path::Slow).unwrap_err();
        assert_eq!((error.step, error.path), (SwitchStep::Quiesce, Path::Fast));
        progress(total);
    });
    vcpus.able.store(true, Ordering::SeqCst);
    bench.run(|switch, _, total| {
        let report = switch.switch_to(Path::Slow).unwrap().unwrap();
        assert_eq!(report.method, Some(Method::PausedVcpus));
        assert!(report.phases.vcpus_paused <= report.phases.pause());
        progress(total);
    });
    assert_eq!(vcpus.paused.load(Ordering::SeqCst), 1);
}

#[test]
fn switches_of_a_device_without_suspend() {
    let profile = Profile {
        suspend: false,
        resume: false,
        ..Profile::default()
    };
    many_switches(share(1000), profile, Some(delays()), true);
}

/// What the slow path's disk wears is in the way of each request, and of none on the fast path.
#[test]
fn layers_see_requests_on_the_slow_path_only() {
    let (seen, mut bench) = {
        let seen = Arc::new(AtomicU64::new(0));
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(disk_bytes(QUEUES, DEPTH)).unwrap());
        let device = Flaky::new(TestDevice::new(disk, Profile::default()));
        let guest = Guest::new(QUEUES, DEPTH, true);
        let layered = seen.clone();
        let parts = SwitchParts {
            device: device.clone(),
            memory: guest.memory.clone(),
            host: Box::new(ThreadHost::new(Duration::ZERO)),
            vmm: Arc::new(()),
            layers: Some(Box::new(move |disk| Arc::new(Meter(disk, layered)))),
        };
        let switch = Arc::new(Switch::new(parts, SwitchOptions::default()).unwrap());
        let bench = Bench {
            switch,
            device,
            guest,
            vcpus: Arc::default(),
        };
        bench.load_driver(true);
        (seen, bench)
    };
    bench.run(|switch, _, total| {
        progress(total);
        assert_eq!(seen.load(Ordering::SeqCst), 0);
        switch.switch_to(Path::Slow).unwrap();
        progress(total);
        switch.switch_to(Path::Fast).unwrap();
    });
    let slow = seen.load(Ordering::SeqCst);
    assert!(slow >= 50);
    bench.run(|_, _, total| progress(total));
    assert_eq!(seen.load(Ordering::SeqCst), slow);
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

/// Memory is plugged and unplugged while requests are in flight, on both paths and between switches.
#[test]
fn memory_comes_and_goes_on_both_paths() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(disk_bytes(QUEUES, DEPTH)).unwrap());
    let device = TestDevice::new(disk, Profile::default());
    let mut guest = Guest::new(QUEUES, DEPTH, true);
    let memory = GuestMemoryAtomic::from(guest.memory.clone());
    let parts = SwitchParts {
        device: device.clone(),
        memory: memory.clone(),
        host: Box::new(ThreadHost::new(Duration::ZERO)),
        vmm: Arc::new(()),
        layers: None,
    };
    let switch = PathSwitch::new(parts, SwitchOptions::default()).unwrap();
    for byte in [1, 3] {
        switch.set_status(byte).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    for (index, queue) in (0..).zip(&guest.queues) {
        switch.set_queue(index, queue.setup()).unwrap();
    }
    switch.set_status(15).unwrap();
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    let plain = guest.memory.clone();
    std::thread::scope(|scope| {
        for queue in &mut guest.queues {
            scope.spawn(|| queue.run(&stop, &total));
        }
        for round in 0..40 {
            let more =
                GuestRegionMmap::new(MmapRegion::new(1 << 20).unwrap(), GuestAddress(1 << 32));
            let larger = plain.insert_region(Arc::new(more.unwrap())).unwrap();
            memory.lock().unwrap().replace(larger);
            switch.sync_memory().unwrap();
            assert!(device.is_mapped(1 << 32));
            if round % 2 == 0 {
                switch
                    .switch_to(if round % 4 == 0 {
                        Path::Slow
                    } else {
                        Path::Fast
                    })
                    .unwrap();
            }
            memory.lock().unwrap().replace((*plain).clone());
            switch.sync_memory().unwrap();
            assert!(!device.is_mapped(1 << 32));
            progress(&total);
        }
        stop.store(true, Ordering::SeqCst);
    });
    // Nothing may reach into the shadow window.
    let region =
        GuestRegionMmap::new(MmapRegion::new(4096).unwrap(), GuestAddress(1 << 46)).unwrap();
    memory
        .lock()
        .unwrap()
        .replace(plain.insert_region(Arc::new(region)).unwrap());
    assert!(matches!(
        switch.sync_memory(),
        Err(PathError::Window { .. })
    ));
}

#[test]
fn a_device_that_starts_at_0_only_stays_slow() {
    let profile = Profile {
        midway: false,
        ..Profile::default()
    };
    let mut bench = bench(profile, None, true, SwitchOptions::default());
    bench.run(|switch, _, total| {
        progress(total);
        switch.switch_to(Path::Slow).unwrap().unwrap();
        progress(total);
        let error = switch.switch_to(Path::Fast).unwrap_err();
        assert_eq!((error.step, error.path), (SwitchStep::Start, Path::Slow));
        progress(total);
        let error = switch.switch_to(Path::Fast).unwrap_err();
        assert_eq!(error.step, SwitchStep::Prepare, "it is not tried again");
    });
}

#[test]
fn auto_follows_who_needs_to_see_requests() {
    let options = SwitchOptions {
        policy: Policy::Auto,
        ..SwitchOptions::default()
    };
    let mut bench = bench(Profile::default(), None, true, options);
    bench.run(|switch, _, total| {
        assert_eq!(switch.settle().unwrap(), None);
        let throttle = switch.intercept("throttle").unwrap();
        let mirror = switch.intercept("mirror").unwrap();
        assert_eq!(switch.path(), Path::Slow);
        progress(total);
        drop(throttle);
        assert_eq!(switch.settle().unwrap(), None);
        assert!(switch.switch_to(Path::Fast).is_err());
        assert_eq!(switch.reasons(), ["mirror"]);
        drop(mirror);
        assert_eq!(switch.settle().unwrap().unwrap().to, Path::Fast);
        progress(total);
    });
    // A driver that is loaded meanwhile starts slow.
    let need = bench.switch.intercept("snapshot").unwrap();
    for queue in &mut bench.guest.queues {
        queue.reset();
    }
    bench.load_driver(true);
    assert_eq!(bench.switch.path(), Path::Slow);
    bench.run(|_, _, total| progress(total));
    drop(need);
    assert_eq!(bench.switch.settle().unwrap().unwrap().to, Path::Fast);
}

#[test]
fn a_guest_may_reset_its_device_on_any_path() {
    let bench = bench(
        Profile::default(),
        Some(delays()),
        true,
        SwitchOptions::default(),
    );
    let Bench {
        switch,
        device,
        mut guest,
        ..
    } = bench;
    for round in 0..20 {
        for queue in &mut guest.queues {
            queue.reset();
        }
        let again = Bench {
            switch: switch.clone(),
            device: device.clone(),
            guest,
            vcpus: Arc::default(),
        };
        again.load_driver(true);
        guest = again.guest;
        if round % 2 == 1 {
            switch.switch_to(Path::Slow).unwrap().unwrap();
        }
        for queue in &mut guest.queues {
            queue.start_some();
        }
        switch.set_status(0).unwrap();
        assert_eq!((switch.path(), switch.status()), (Path::Idle, 0));
        assert!(!device.device.is_mapped(1 << 46));
    }
}

#[test]
fn the_guest_sees_one_device() {
    let mut bench = bench(Profile::default(), None, true, SwitchOptions::default());
    let irq = common::eventfd();
    bench.switch.set_status(0).unwrap();
    bench
        .switch
        .set_config_call(Some(Callback::Trigger(irq.clone())));
    for queue in &mut bench.guest.queues {
        queue.reset();
    }
    bench.load_driver(true);
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
    bench.switch.switch_to(Path::Slow).unwrap();
    assert!(look(&mut bench) == fast);
    assert!(irq.read().is_err(), "nothing changed");
}

/// A device that can't go on after SUSPEND, with requests in flight: the guest is told to reset it, and may.
#[test]
fn a_device_that_is_stuck_asks_for_a_reset() {
    let profile = Profile {
        resume: false,
        ..Profile::default()
    };
    let options = SwitchOptions {
        quiesce: Duration::from_millis(50),
        ..SwitchOptions::default()
    };
    let mut bench = bench(profile, None, true, options);
    bench.run(|_, _, total| progress(total));
    bench.device.undrained.store(i64::MAX, Ordering::SeqCst);
    let error = bench.switch.switch_to(Path::Slow).unwrap_err();
    assert_eq!(error.path, Path::Failed);
    assert_eq!(bench.switch.status(), 15 | 64);
    assert!(bench.switch.retry().is_err());
    bench.device.undrained.store(0, Ordering::SeqCst);
    for queue in &mut bench.guest.queues {
        queue.reset();
    }
    bench.load_driver(true);
    bench.run(|switch, _, total| {
        progress(total);
        switch.switch_to(Path::Slow).unwrap().unwrap();
        progress(total);
    });
}

#[test]
fn a_resize_on_the_fast_path_is_known_on_the_slow_one() {
    let bytes = disk_bytes(QUEUES, DEPTH);
    let disk = Arc::new(MemoryDisk::new(bytes).unwrap());
    let guest = Guest::new(QUEUES, DEPTH, true);
    let parts = SwitchParts {
        device: TestDevice::new(disk.clone(), Profile::default()),
        memory: guest.memory.clone(),
        host: Box::new(ThreadHost::new(Duration::ZERO)),
        vmm: Arc::new(()),
        layers: None,
    };
    let switch = PathSwitch::new(parts, SwitchOptions::default()).unwrap();
    let irq = common::eventfd();
    switch.set_config_call(Some(Callback::Trigger(irq.clone())));
    for byte in [1, 3] {
        switch.set_status(byte).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    for (index, queue) in (0..).zip(&guest.queues) {
        switch.set_queue(index, queue.setup()).unwrap();
    }
    switch.set_status(15).unwrap();
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
            Path::Slow
        } else {
            Path::Fast
        };
        switch.switch_to(path).unwrap().unwrap();
        assert_eq!(capacity(), factor * bytes);
        if path == Path::Slow {
            assert_eq!(switch.disk().caps().capacity * 512, factor * bytes);
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest on both paths.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vdpa_bus::{Callback, VdpaDevice};
use vhost_vdpa_frontend::{
    DataPath, GuestQueue, PathState, PathSwitch, SwitchOptions, SwitchParts, ThreadExecutor,
    VhostVdpa,
};
use vm_memory::GuestMemoryAtomic;

use crate::cpu;
use crate::guest::{Guest, Memory, eventfd};
use crate::kicker::{Count, Mapper, Wire, kick};

const QUEUES: u16 = 2;
/// Requests in flight on each queue.
const DEPTH: u16 = 8;
/// Kicks of one kind that are waited for.
const KICKS: u64 = 50;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Switch = PathSwitch<GuestMemoryAtomic<Memory>>;

/// What a driver does at start.
fn load(switch: &Switch, guest: &Guest, wires: &[Wire]) {
    switch.set_status(0).unwrap();
    switch.set_config_call(Some(Callback::Trigger(eventfd())));
    for status in [1, 3] {
        switch.set_status(status).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    for (index, (queue, wire)) in (0..).zip(guest.queues.iter().zip(wires)) {
        let setup = GuestQueue {
            kick: wire.kick.clone(),
            ..queue.setup()
        };
        switch.set_queue(index, setup).unwrap();
    }
    switch.set_status(15).unwrap();
    assert_eq!((switch.status(), switch.path()), (15, PathState::Fast));
}

/// Waits until there were some more kicks of one kind, and returns how many.
fn more(kicks: &AtomicU64) -> u64 {
    let before = kicks.load(Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let more = kicks.load(Ordering::SeqCst) - before;
        if more >= KICKS {
            return more;
        }
        assert!(Instant::now() < deadline, "{more} kicks in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// On the fast path, and then on the slow one.
fn both_paths(switch: &Switch, count: &Count) {
    let exits = count.exits.load(Ordering::SeqCst);
    more(&count.through);
    let more_exits = count.exits.load(Ordering::SeqCst) - exits;
    assert_eq!(more_exits, 0, "kicks of the fast path exited");
    switch.switch_to(DataPath::Slow).unwrap().unwrap();
    let through = count.through.load(Ordering::SeqCst);
    more(&count.exits);
    let more_through = count.through.load(Ordering::SeqCst) - through;
    assert_eq!(more_through, 0, "kicks of the slow path went past it");
}

pub fn main() {
    // A thread that fails must not leave the others waiting.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(1);
    }));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [node, rounds] = args.as_slice() else {
        panic!("NODE MOVES");
    };
    let device = Arc::new(VhostVdpa::open(node).unwrap());
    assert!(
        device.use_doorbells().unwrap(),
        "{node} has no doorbell pages"
    );
    let doorbells = (0..QUEUES).map(|vq| device.doorbell(vq).unwrap());
    let doorbells = doorbells.collect();
    let mut guest = Guest::new(QUEUES, DEPTH, device.get_device_features());
    let wires: Vec<_> = guest
        .queues
        .iter()
        .map(|queue| Wire {
            wish: queue.kick.clone(),
            kick: eventfd(),
        })
        .collect();
    let (machine, mut cpu) = cpu::machine();
    let parts = SwitchParts {
        device,
        memory: GuestMemoryAtomic::new((*guest.memory).clone()),
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: Arc::new(Mapper {
            gate: guest.gate.clone(),
            machine,
            doorbells,
            mapped: Mutex::new(false),
        }),
        layers: None,
    };
    let options = SwitchOptions {
        quiesce_timeout: PATIENCE,
        drain_timeout: PATIENCE,
        ..SwitchOptions::default()
    };
    let switch = PathSwitch::new(parts, options).unwrap();
    let count = Count::default();
    let (ended, wake) = (AtomicBool::new(false), eventfd());
    let mut completed = 0;
    thread::scope(|scope| {
        scope.spawn(|| kick(&mut cpu, &wires, &count, &ended, &wake));
        for _ in 0..rounds.parse().unwrap() {
            for queue in &mut guest.queues {
                queue.reset();
            }
            load(&switch, &guest, &wires);
            let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
            completed += thread::scope(|scope| {
                let run = |queue| {
                    let (stop, total) = (&stop, &total);
                    let queue: &mut crate::guest::Queue = queue;
                    scope.spawn(move || queue.run(stop, total))
                };
                let threads: Vec<_> = guest.queues.iter_mut().map(run).collect();
                both_paths(&switch, &count);
                stop.store(true, Ordering::SeqCst);
                let joined = threads.into_iter().map(|thread| thread.join().unwrap());
                joined.sum::<u64>()
            });
        }
        ended.store(true, Ordering::SeqCst);
        wake.write(1).unwrap();
    });
    println!("{rounds} moves, {completed} completions checked; doorbells: {count:?}");
}

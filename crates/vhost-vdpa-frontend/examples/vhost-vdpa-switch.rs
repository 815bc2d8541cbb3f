// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that checks every answer and every sector, on `PathSwitch` over a `/dev/vhost-vdpa-N`. The lab's
//! `vdpa-switch` runs it.
//!
//!     vhost-vdpa-switch NODE QUEUES SWITCHES RESETS [gently]
//!
//! In this order: bring-up and configuration, memory that is plugged in on the fast path, resets on both paths with
//! requests in flight, growth of the disk on both paths where the environment's GROW is a shell command that brings it about, moves
//! under load. A device that starts rings at their beginning only stays on the slow path until the guest resets it, and the
//! guest does that before each further move. `gently`: memory changes and resets come while nothing is in flight, for devices
//! that can't take more. Anything that is not as it must be ends it with a message.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/common/guest.rs"]
mod guest;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest::{Guest, Memory, disk_bytes, eventfd};
use vdpa_bus::{Callback, VdpaDevice, backend_feature};
use vhost_vdpa_frontend::{
    DataPath, PathState, PathSwitch, QuiesceMethod, SwitchError, SwitchOptions, SwitchParts,
    SwitchReport, SwitchStep, ThreadExecutor, VhostVdpa,
};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::eventfd::EventFd;

/// Requests in flight, on all queues together.
const IN_FLIGHT: u16 = 32;
/// How long the device may take for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

type Switch = PathSwitch<GuestMemoryAtomic<Memory>>;

struct Machine {
    switch: Switch,
    memory: GuestMemoryAtomic<Memory>,
    guest: Guest,
    config_irq: Arc<EventFd>,
    /// The device starts rings at their beginning only: from the slow path a reset by the guest leads to the fast one.
    one_way: bool,
}

impl Machine {
    fn new(node: &str, queues: u16) -> Self {
        let device = Arc::new(VhostVdpa::open(node).unwrap());
        let suspends = device.get_backend_features() & backend_feature::SUSPEND != 0;
        println!(
            "{node}: {} queues of up to {}, features {:#x}, SUSPEND: {suspends}",
            device.nvqs(),
            device.get_vq_num_max(),
            device.get_device_features()
        );
        assert!(queues <= device.nvqs(), "it has too few queues");
        let guest = Guest::new(queues, IN_FLIGHT / queues, device.get_device_features());
        let memory = GuestMemoryAtomic::new(guest.unplugged());
        let parts = SwitchParts {
            device,
            memory: memory.clone(),
            executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
            vmm: guest.gate.clone(),
            layers: None,
        };
        let options = SwitchOptions {
            quiesce_timeout: PATIENCE,
            drain_timeout: PATIENCE,
            ..SwitchOptions::default()
        };
        let mut machine = Self {
            switch: PathSwitch::new(parts, options).unwrap(),
            memory,
            guest,
            config_irq: eventfd(),
            one_way: false,
        };
        machine.load();
        machine.switch.switch_to(DataPath::Slow).unwrap().unwrap();
        machine.one_way = match machine.switch.switch_to(DataPath::Fast) {
            Ok(_) => false,
            Err(error) => {
                refused(&error);
                machine.reload();
                true
            }
        };
        println!("it starts rings in their middle: {}", !machine.one_way);
        machine
    }

    /// The guest's driver is loaded again.
    fn reload(&mut self) {
        self.switch.set_status(0).unwrap();
        assert_eq!(self.switch.path(), PathState::Idle);
        for queue in &mut self.guest.queues {
            queue.reset();
        }
        self.load();
    }

    /// Brings the guest to a path, by a reset where there is no other way.
    fn go(&mut self, path: DataPath) {
        match self.switch.switch_to(path) {
            Err(error) if self.one_way => {
                refused(&error);
                self.reload();
            }
            moved => drop(moved.unwrap()),
        }
    }

    /// What a driver does at start.
    fn load(&self) {
        let switch = &self.switch;
        switch.set_status(0).unwrap();
        let call = Callback::Trigger(self.config_irq.clone());
        switch.set_config_call(Some(call));
        for status in [1, 3] {
            switch.set_status(status).unwrap();
        }
        switch.set_features(switch.offered()).unwrap();
        switch.set_status(11).unwrap();
        assert_eq!(switch.status(), 11, "the features were refused");
        for (index, queue) in (0..).zip(&self.guest.queues) {
            switch.set_queue(index, queue.setup()).unwrap();
        }
        switch.set_status(15).unwrap();
        assert_eq!((switch.status(), switch.path()), (15, PathState::Fast));
    }

    /// Runs the guest on threads while `work` is done.
    fn run<R>(&mut self, work: impl FnOnce(&Switch, &AtomicU64) -> R) -> (R, u64) {
        let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
        let switch = &self.switch;
        std::thread::scope(|scope| {
            let queues = self.guest.queues.iter_mut();
            let threads: Vec<_> = queues
                .map(|queue| scope.spawn(|| queue.run(&stop, &total)))
                .collect();
            let result = work(switch, &total);
            stop.store(true, Ordering::SeqCst);
            let answered = threads.into_iter().map(|thread| thread.join().unwrap());
            (result, answered.sum())
        })
    }

    /// What the guest sees of its device.
    fn look(&mut self) -> (u64, u8, Vec<u8>, Vec<u8>) {
        let mut config = vec![0; self.switch.device().get_config_size()];
        self.switch.read_config(0, &mut config).unwrap();
        let serial = self.guest.queues[0].serial();
        let (offered, status) = (self.switch.offered(), self.switch.status());
        (offered, status, config, serial)
    }
}

/// That the guest stays slow was known beforehand: nothing was stopped or reset for it.
fn refused(error: &SwitchError) {
    let known = (error.step, error.path) == (SwitchStep::Prepare, PathState::Slow);
    assert!(known, "{error}");
}

/// Waits until the guest has seen some requests complete.
fn progress(total: &AtomicU64) {
    let goal = total.load(Ordering::SeqCst) + u64::from(IN_FLIGHT);
    let deadline = Instant::now() + PATIENCE;
    while total.load(Ordering::SeqCst) < goal {
        assert!(Instant::now() < deadline, "the guest makes no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn other(path: PathState) -> DataPath {
    match path {
        PathState::Fast => DataPath::Slow,
        _ => DataPath::Fast,
    }
}

fn set_up_driver(machine: &mut Machine) {
    let fast = machine.look();
    let sectors = u64::from_le_bytes(fast.2[..8].try_into().unwrap());
    let need = disk_bytes(machine.guest.queues.len() as u16, IN_FLIGHT) / 512;
    assert!(sectors >= need, "{sectors} sectors, {need} are needed");
    machine.switch.switch_to(DataPath::Slow).unwrap().unwrap();
    assert!(machine.look() == fast, "the guest sees another device");
    machine.go(DataPath::Fast);
    assert!(machine.look() == fast, "the guest sees another device");
    let irq = machine.config_irq.read();
    assert!(irq.is_err(), "told of a change that there was not");
    let text = String::from_utf8_lossy(&fast.3);
    let serial = text.trim_end_matches('\0');
    println!("bring-up: {sectors} sectors, serial {serial:?}, the same on both paths");
}

/// `command` makes the disk larger each time it is run: the guest is told, on both paths.
fn growth(machine: &mut Machine, command: &str) {
    for path in [DataPath::Fast, DataPath::Slow, DataPath::Fast] {
        machine.go(path);
        let capacity = |machine: &Machine| {
            let mut field = [0; 8];
            machine.switch.read_config(0, &mut field).unwrap();
            u64::from_le_bytes(field)
        };
        // Those of before are not meant.
        let _ = machine.config_irq.read();
        let before = capacity(machine);
        let shell = Command::new("sh").args(["-c", command]).status().unwrap();
        assert!(shell.success(), "{command}: {shell}");
        let deadline = Instant::now() + PATIENCE;
        while machine.config_irq.read().is_err() {
            assert!(Instant::now() < deadline, "{path:?}: no word of the growth");
            std::thread::sleep(Duration::from_millis(10));
        }
        let after = capacity(machine);
        assert!(after > before, "{path:?}: {before} sectors, then {after}");
        machine.run(|_, total| progress(total));
        println!(
            "{path:?}: the disk grew from {before} to {after} sectors, and the guest was told"
        );
    }
}

fn resets(machine: &mut Machine, count: u32, gently: bool) {
    let mut answered = 0;
    for round in 0..count {
        if round % 2 == 1 {
            machine.switch.switch_to(DataPath::Slow).unwrap().unwrap();
        }
        if !gently {
            for queue in &mut machine.guest.queues {
                queue.start_some();
            }
        }
        machine.reload();
        answered += machine.run(|_, total| progress(total)).1;
    }
    let load = if gently { 0 } else { IN_FLIGHT };
    println!("{count} resets with {load} requests in flight, {answered} answers checked between");
}

fn hot_add(machine: &mut Machine, gently: bool) {
    // Where there are several, the buffers of the last are in memory that is not there yet.
    let several = machine.guest.queues.len() > 1;
    let last = several.then(|| machine.guest.queues.pop().unwrap());
    let all = (*machine.guest.memory).clone();
    let less = machine.guest.unplugged();
    let memory = machine.memory.clone();
    let change = |switch: &Switch, to: &Memory| {
        memory.lock().unwrap().replace(to.clone());
        switch.sync_memory().unwrap();
    };
    for _ in 0..10 {
        for now in [&all, &less] {
            if gently {
                change(&machine.switch, now);
            }
            machine.run(|switch, total| {
                progress(total);
                if !gently {
                    change(switch, now);
                    progress(total);
                }
            });
        }
    }
    change(&machine.switch, &all);
    assert_eq!(machine.switch.path(), PathState::Fast);
    machine.guest.queues.extend(last);
    let (_, answered) = machine.run(|_, total| progress(total));
    println!(
        "memory came and went 10 times on the fast path; {answered} answers, with buffers in it: {several}"
    );
}

/// Moves to the slow path under load; back there is no way but a reset.
fn moves_one_way(machine: &mut Machine, count: u32) -> (Vec<SwitchReport>, u32, u64) {
    let (mut reports, mut answered) = (Vec::new(), 0);
    for _ in 0..count {
        let (report, some) = machine.run(|switch, total| {
            progress(total);
            let report = switch.switch_to(DataPath::Slow).unwrap().unwrap();
            progress(total);
            refused(&switch.switch_to(DataPath::Fast).unwrap_err());
            progress(total);
            report
        });
        machine.reload();
        reports.push(report);
        answered += some;
    }
    (reports, 0, answered)
}

fn moves_both_ways(machine: &mut Machine, count: u32) -> (Vec<SwitchReport>, u32, u64) {
    let ((reports, again), answered) = machine.run(|switch, total| {
        let (mut reports, mut again) = (Vec::new(), 0);
        while reports.len() < count as usize {
            match switch.switch_to(other(switch.path())) {
                Ok(report) => reports.push(report.unwrap()),
                // It could not be stopped at this moment, and was served on.
                Err(error)
                    if error.step == SwitchStep::Quiesce && error.path != PathState::Failed =>
                {
                    println!("again: {error}");
                    again += 1;
                    assert!(again <= count / 10, "too often");
                }
                Err(error) => panic!("{error}"),
            }
            // Sometimes at once, sometimes under full load.
            if reports.len() % 2 == 0 {
                progress(total);
            }
        }
        progress(total);
        (reports, again)
    });
    (reports, again, answered)
}

fn moves(machine: &mut Machine, count: u32) {
    let start = Instant::now();
    let (reports, again, answered) = match machine.one_way {
        true => moves_one_way(machine, count),
        false => moves_both_ways(machine, count),
    };
    let by = |method| reports.iter().filter(|r| r.method == Some(method)).count();
    let most = reports.iter().map(|report| report.in_flight).max();
    println!(
        "{} moves in {:.1} s ({again} tried again): {} by SUSPEND, {} with vCPUs paused, {} by draining the slow path; \
         up to {} requests in flight, {answered} answers checked",
        reports.len(),
        start.elapsed().as_secs_f32(),
        by(QuiesceMethod::Suspend),
        by(QuiesceMethod::PausedVcpus),
        by(QuiesceMethod::Drain),
        most.unwrap_or(0)
    );
    for (name, from) in [
        ("fast to slow", DataPath::Fast),
        ("slow to fast", DataPath::Slow),
    ] {
        let some = reports.iter().filter(|report| report.from == from);
        let mut pauses: Vec<_> = some
            .map(|report: &SwitchReport| report.phases.pause())
            .collect();
        pauses.sort_unstable();
        if let Some(median) = pauses.get(pauses.len() / 2) {
            println!("{name}: p50 {median:?}");
        }
    }
    assert!(answered > u64::from(count), "hardly any load");
}

fn main() {
    // A thread that fails must not leave the others waiting.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(1);
    }));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (args, gently) = match args.as_slice() {
        [args @ .., last] if last == "gently" => (args, true),
        args => (args, false),
    };
    let [node, queues, switches, rounds] = args else {
        panic!("NODE QUEUES SWITCHES RESETS [gently]");
    };
    let mut machine = Machine::new(node, queues.parse().unwrap());
    set_up_driver(&mut machine);
    hot_add(&mut machine, gently);
    resets(&mut machine, rounds.parse().unwrap(), gently);
    if let Ok(command) = std::env::var("GROW") {
        growth(&mut machine, &command);
    }
    moves(&mut machine, switches.parse().unwrap());
}

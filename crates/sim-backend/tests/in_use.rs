// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk is in use while a queue runs, whatever the profile, and never otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use common::Rig;
use sim_backend::{BlkSim, Faults, SimOptions, SimProfile};
use vdpa_bus::VdpaDevice;
use virtio_blk_core::disk::{
    Caps, Completion, Disk, DiskError, DiskListener, IoQueue, Op, Submit, Wait,
};
use virtio_blk_core::spec::status;
use virtio_blk_disks::MemoryDisk;
use virtio_blk_disks::fault::FaultPlan;
use virtio_blk_driver::request::Request;
use virtio_blk_driver::vdpa::negotiate;

/// What a test decides, and what happened.
#[derive(Default)]
struct State {
    /// It can't be taken into use.
    locked: bool,
    /// What it keeps can't be made stable.
    unstable: bool,
    active: bool,
    queues: usize,
}

/// A disk that checks that it is in use whenever it is used, and never otherwise released.
#[derive(Clone)]
struct Kept {
    inner: Arc<MemoryDisk>,
    state: Arc<Mutex<State>>,
}

impl Kept {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(MemoryDisk::new(128 << 20).unwrap()),
            state: Arc::default(),
        })
    }

    fn with<R>(&self, call: impl FnOnce(&mut State) -> R) -> R {
        call(&mut self.state.lock().unwrap())
    }

    fn is_active(&self) -> bool {
        self.with(|state| state.active)
    }
}

impl Disk for Kept {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn IoQueue>, DiskError> {
        self.with(|state| {
            assert!(state.active, "a queue of a disk that is not in use");
            state.queues += 1;
        });
        Ok(Box::new(KeptQueue(
            self.inner.open_queue(depth)?,
            self.clone(),
        )))
    }

    fn activate(&self) -> Result<(), DiskError> {
        self.with(|state| {
            assert!(!state.active, "taken twice");
            state.active = !state.locked;
            match state.locked {
                true => Err(DiskError::Config("another has it".to_owned())),
                false => Ok(()),
            }
        })
    }

    fn deactivate(&self) -> Result<(), DiskError> {
        self.with(|state| {
            assert!(state.active && state.queues == 0, "let go of while in use");
            state.active = false;
            match state.unstable {
                true => Err(DiskError::Config("no room".to_owned())),
                false => Ok(()),
            }
        })
    }

    fn listen(&self, listener: DiskListener) {
        self.inner.listen(listener);
    }
}

struct KeptQueue(Box<dyn IoQueue>, Kept);

impl IoQueue for KeptQueue {
    fn submit(&mut self, op: Op) -> Submit {
        self.0.submit(op)
    }

    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize, DiskError> {
        self.0.reap(done)
    }

    fn wait(&self) -> Wait<'_> {
        self.0.wait()
    }
}

impl Drop for KeptQueue {
    fn drop(&mut self) {
        self.1.with(|state| state.queues -= 1);
    }
}

/// Each profile, with as many queues as it has at most here.
fn profiles() -> [(SimOptions, u16); 2] {
    [
        (SimOptions::strict_queues(2).stepped(), 2),
        (SimOptions::compat().stepped(), 1),
    ]
}

fn works(rig: &mut Rig) {
    assert!(rig.ask(0, &Request::write(1, &[7; 512])).is_ok());
    assert_eq!(rig.read(0, 1, 512), [7; 512]);
}

#[test]
fn the_disk_is_in_use_while_a_queue_runs() {
    for (options, queues) in profiles() {
        let disk = Kept::new();
        let idle = BlkSim::new(disk.clone(), options.clone()).unwrap();
        assert!(!disk.is_active(), "nobody has started it");
        drop(idle);
        let mut rig = Rig::over(disk.clone(), options, queues);
        assert!(disk.is_active());
        works(&mut rig);
        rig.sim.suspend().unwrap();
        assert!(!disk.is_active(), "suspended");
        rig.sim.resume().unwrap();
        assert!(disk.is_active());
        works(&mut rig);
        for vq in (0..queues).rev() {
            assert!(disk.is_active(), "another queue runs");
            rig.sim.set_vq_ready(vq, false).unwrap();
        }
        assert!(!disk.is_active(), "all queues are disabled");
        rig.sim.reset().unwrap();
        rig.restart();
        assert!(disk.is_active());
        works(&mut rig);
        rig.sim.reset().unwrap();
        assert!(!disk.is_active(), "reset");
        rig.restart();
        rig.sim.free();
        assert!(!disk.is_active(), "freed");
    }
}

/// Also if nobody says goodbye.
#[test]
fn a_device_that_is_dropped_lets_go_of_its_disk() {
    for (options, queues) in profiles() {
        let disk = Kept::new();
        let rig = Rig::over(disk.clone(), options, queues);
        assert!(disk.is_active());
        drop(rig);
        assert!(!disk.is_active());
    }
}

#[test]
fn a_disk_that_can_not_be_had_stops_the_device() {
    for (options, queues) in profiles() {
        let is_strict = matches!(options.profile, SimProfile::Strict(_));
        let disk = Kept::new();
        disk.with(|state| state.locked = true);
        let sim = BlkSim::new(disk.clone(), options).unwrap();
        negotiate(&sim, sim.get_device_features()).unwrap();
        for vq in 0..queues {
            sim.set_vq_num(vq, 16).unwrap();
            sim.set_vq_ready(vq, true).unwrap();
        }
        let started = sim.set_status(15);
        if is_strict {
            assert_ne!(sim.get_status() & status::DEVICE_NEEDS_RESET, 0);
        } else {
            assert!(started.unwrap_err().to_string().contains("another has it"));
            assert_eq!(sim.get_status() & status::DRIVER_OK, 0);
        }
        assert!(!disk.is_active());
    }
}

/// The driver must not continue elsewhere with a medium that lacks what it wrote.
#[test]
fn a_suspend_fails_if_data_is_lost_with_it() {
    for (options, queues) in profiles() {
        let disk = Kept::new();
        let mut rig = Rig::over(disk.clone(), options, queues);
        works(&mut rig);
        disk.with(|state| state.unstable = true);
        for _ in 0..2 {
            let said = rig.sim.suspend().unwrap_err().to_string();
            assert!(said.contains("no room"), "{said}");
            // It continues.
            works(&mut rig);
        }
        for vq in 0..queues {
            let disabled = rig.sim.set_vq_ready(vq, false);
            assert_eq!(disabled.is_err(), vq + 1 == queues, "the last");
        }
        rig.sim.suspend().unwrap_err();
        rig.sim.reset().unwrap();
        disk.with(|state| state.unstable = false);
        rig.restart();
        works(&mut rig);
        rig.sim.suspend().unwrap();
    }
}

/// As the kernel's simulators do with `shared_backend`.
#[test]
fn a_shared_disk_is_in_use_while_any_device_uses_it() {
    let disk = Kept::new();
    let [(first, queues), (second, _)] = profiles();
    let first = Rig::over(disk.clone(), first, queues);
    let mut second = Rig::over(disk.clone(), second, 1);
    first.sim.suspend().unwrap();
    assert!(disk.is_active());
    works(&mut second);
    second.sim.suspend().unwrap();
    assert!(!disk.is_active());
    first.sim.resume().unwrap();
    assert!(disk.is_active());
    // Faults of its own make it no other disk.
    let options = SimOptions::compat().stepped();
    let options = options.faults(Faults::new(1).disk(FaultPlan::new(1)));
    let third = Rig::over(disk.clone(), options, 1);
    third.sim.suspend().unwrap();
    assert!(disk.is_active());
}

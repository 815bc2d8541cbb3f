// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VMM does for doorbells, and the thread that kicks for the guest's driver.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use vhost_vdpa_frontend::{Doorbell, Vmm};
use vmm_sys_util::eventfd::EventFd;

use crate::cpu::{Cpu, Machine, Write};
use crate::guest::Gate;

/// The VMM: it pauses the guest, and has its doorbell pages mapped while the device takes kicks.
pub struct Mapper {
    pub gate: Arc<Gate>,
    pub machine: Machine,
    /// By queue.
    pub doorbells: Vec<Arc<Doorbell>>,
    /// Whether the guest has them.
    pub mapped: Mutex<bool>,
}

impl Vmm for Mapper {
    fn pause_vcpus(&self) -> bool {
        self.gate.pause_vcpus()
    }

    fn resume_vcpus(&self) {
        self.gate.resume_vcpus();
    }

    fn map_doorbells(&self) {
        let mut mapped = self.mapped.lock().unwrap();
        if !std::mem::replace(&mut *mapped, true) {
            for (vq, doorbell) in (0..).zip(&self.doorbells) {
                self.machine.give(vq, doorbell.as_ptr());
            }
        }
    }

    fn unmap_doorbells(&self) {
        let mut mapped = self.mapped.lock().unwrap();
        if std::mem::replace(&mut *mapped, false) {
            for (vq, _) in (0..).zip(&self.doorbells) {
                self.machine.take_away(vq);
            }
        }
    }
}

/// How a queue is kicked.
pub struct Wire {
    /// What the driver writes when it wants to kick.
    pub wish: Arc<EventFd>,
    /// What the device, or the slow path, takes for a kick.
    pub kick: Arc<EventFd>,
}

/// How often a doorbell was written to.
#[derive(Debug, Default)]
pub struct Count {
    /// The hardware had it.
    pub through: AtomicU64,
    /// The VMM had it.
    pub exits: AtomicU64,
}

/// Has the CPU ring the doorbell of each queue whose driver wishes it, until `stop` is set and `wake` written.
pub fn kick(cpu: &mut Cpu, wires: &[Wire], count: &Count, stop: &AtomicBool, wake: &EventFd) {
    // SAFETY: open for as long as the borrows live.
    let borrow =
        |event: &EventFd| unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let events: Vec<_> = wires.iter().map(|wire| borrow(&wire.wish)).collect();
    let wake = borrow(wake);
    loop {
        let all = events.iter().chain([&wake]);
        let mut polled: Vec<_> = all
            .map(|event| PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN))
            .collect();
        poll(&mut polled, None).unwrap();
        if stop.load(Ordering::SeqCst) {
            return;
        }
        for (vq, wire) in (0..).zip(wires) {
            if wire.wish.read().is_err() {
                continue;
            }
            match cpu.ring(vq) {
                Write::Through => count.through.fetch_add(1, Ordering::SeqCst),
                Write::Exit => {
                    wire.kick.write(1).unwrap();
                    count.exits.fetch_add(1, Ordering::SeqCst)
                }
            };
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A gate in front of the guest: while it is shut no vCPU executes the guest's code.
//!
//! Less than a pause: a vCPU may be in the midst of an access to a device, and wait there for whoever shut the gate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

use vhost_vdpa_frontend::Vmm;

use crate::bus::lock;
use crate::vcpu::Vcpu;

/// How long to wait between two looks.
const LOOK: Duration = Duration::from_micros(20);

/// The gate of a machine.
#[derive(Default)]
pub struct Gate {
    shut: AtomicBool,
    waiting: Mutex<()>,
    opened: Condvar,
    vcpus: Mutex<Vec<Weak<Vcpu>>>,
}

impl Gate {
    /// One more vCPU goes through it.
    pub fn add(&self, vcpu: &Arc<Vcpu>) {
        lock(&self.vcpus).push(Arc::downgrade(vcpu));
    }

    /// Passes the gate: `inside` is set when this returns. By the vCPU's thread.
    pub fn enter(&self, inside: &AtomicBool) {
        loop {
            // Seen by who shuts it, or sees that it is shut: both have one order.
            inside.store(true, Ordering::SeqCst);
            if !self.shut.load(Ordering::SeqCst) {
                return;
            }
            inside.store(false, Ordering::SeqCst);
            let mut guard = lock(&self.waiting);
            while self.shut.load(Ordering::SeqCst) {
                let waited = self.opened.wait(guard);
                guard = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            }
        }
    }
}

impl Vmm for Gate {
    fn pause_vcpus(&self) -> bool {
        self.shut.store(true, Ordering::SeqCst);
        let vcpus = lock(&self.vcpus);
        for vcpu in vcpus.iter().filter_map(Weak::upgrade) {
            while vcpu.is_inside() {
                vcpu.kick();
                std::thread::sleep(LOOK);
            }
        }
        true
    }

    fn resume_vcpus(&self) {
        let guard = lock(&self.waiting);
        self.shut.store(false, Ordering::SeqCst);
        drop(guard);
        self.opened.notify_all();
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! On either path the guest sees the same device.

use std::sync::atomic::AtomicBool;

use sim_backend::{BlkSim, SimProfile, StrictOptions};

use super::*;
use crate::virtio::vdpa::{VdpaDisk, VdpaSource};

/// Whether the slow path is asked for.
pub const PATHS: [bool; 2] = [false, true];

/// A simulated vDPA device of two queues over a disk.
pub fn vdpa(disk: Arc<dyn Disk>, slow: bool, memory: Memory) -> Box<dyn MachineDisk> {
    let device = DeviceOptions {
        queues: 2,
        ..DeviceOptions::default()
    };
    let mut options = sim_backend::SimOptions::strict();
    options.profile = SimProfile::Strict(StrictOptions {
        device,
        ..StrictOptions::default()
    });
    let source = VdpaSource {
        device: Arc::new(BlkSim::new(disk, options).unwrap()),
        slow: AtomicBool::new(slow),
        layers: None,
    };
    Box::new(VdpaDisk::new(Arc::new(source), memory, Arc::new(())).unwrap())
}

/// A driver that takes a feature beyond those which the device offers.
fn refuses<R: Registers>(guest: &mut Guest<R>, features: u128) {
    guest.registers.set_status(0);
    guest.registers.set_status(3);
    guest.registers.set_features(features | 1 << 32);
    guest.registers.set_status(0xb);
    assert_eq!(guest.registers.status() & status::FEATURES_OK, 0);
    // After a reset it may do better.
    guest.start(0, 1);
    guest.submit(0, 1);
    guest.answer(0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for bit in [5, 39, 63, 64, 100, 127] {
        refuses(&mut Guest::pci(|_| own(memory_disk(), 1)), 1 << bit);
        for path in PATHS {
            let make = |memory| vdpa(memory_disk(), path, memory);
            refuses(&mut Guest::mmio(make), 1 << bit);
        }
    }
}

/// A driver that enables two queues and takes `features`.
fn serves_both<R: Registers>(guest: &mut Guest<R>, features: u64) {
    guest.start(features, 2);
    for queue in [1, 0] {
        guest.submit(queue, 3);
        (0..3).for_each(|_| guest.answer(queue));
    }
    assert_eq!(guest.registers.status(), 0xf);
}

#[test]
fn a_second_queue_is_served_with_and_without_mq() {
    for features in [feature::MQ, 0] {
        serves_both(&mut Guest::pci(|_| own(memory_disk(), 2)), features);
        for path in PATHS {
            let make = |memory| vdpa(memory_disk(), path, memory);
            serves_both(&mut Guest::pci(make), features);
            serves_both(&mut Guest::mmio(make), features);
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What says why there was an interrupt, and messages behind masks.

use virtio_blk_core::disk::Disk;

use super::disk::Growing;
use super::paths::{PATHS, vdpa};
use super::*;

const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

/// The register after resets in the middle of the device's work.
fn resets<R: Registers>(guest: &mut Guest<R>) {
    for round in 0..100 {
        guest.start(0, 1);
        guest.submit(0, 16);
        if round % 2 == 0 {
            guest.answer(0);
        }
        guest.registers.set_status(0);
        assert_eq!(guest.registers.cause(), 0, "round {round}");
    }
}

#[test]
fn no_cause_is_left_by_a_reset() {
    let growing = || Arc::new(Growing(memory_disk()));
    resets(&mut Guest::pci(|_| own(growing(), 1)));
    resets(&mut Guest::mmio(|_| own(growing(), 1)));
    for path in PATHS {
        resets(&mut Guest::pci(|memory| vdpa(memory_disk(), path, memory)));
        resets(&mut Guest::mmio(|memory| vdpa(memory_disk(), path, memory)));
    }
}

/// A change of the disk while no driver runs.
fn changes_before_the_driver<R: Registers>(guest: &mut Guest<R>, disk: &MemoryDisk) {
    guest.start(0, 1);
    guest.registers.set_status(0);
    disk.resize(disk.caps().capacity + 8).unwrap();
    assert_eq!(guest.registers.cause(), 0);
    guest.start(0, 1);
    disk.resize(disk.caps().capacity + 8).unwrap();
    assert_eq!(guest.registers.cause() & CONFIG, CONFIG);
}

#[test]
fn changes_are_told_to_a_driver_that_runs() {
    let disk = memory_disk();
    changes_before_the_driver(&mut Guest::pci(|_| own(disk.clone(), 1)), &disk);
    changes_before_the_driver(&mut Guest::mmio(|_| own(disk.clone(), 1)), &disk);
}

#[test]
fn the_configuration_has_its_bit_with_messages_and_queues_have_not() {
    for path in [None].into_iter().chain(PATHS.map(Some)) {
        let disk = memory_disk();
        let mut guest = Guest::pci(|memory| match path {
            None => own(disk.clone(), 1),
            Some(path) => vdpa(disk.clone(), path, memory),
        });
        guest.start_with_messages();
        let config = guest.queues();
        guest.mask(0, false);
        guest.mask(config, false);
        guest.submit(0, 1);
        guest.answer(0);
        eventually(|| guest.raised(0));
        assert_eq!(guest.registers.cause(), 0, "{path:?}");
        disk.resize(disk.caps().capacity + 8).unwrap();
        eventually(|| guest.raised(config));
        assert_eq!(guest.registers.cause(), CONFIG, "{path:?}");
        // Reading takes it.
        assert_eq!(guest.registers.cause(), 0, "{path:?}");
    }
}

/// Interrupt Status in the PCI status register.
fn shows_interrupt(guest: &mut Guest<PciBlock>) -> bool {
    let mut bytes = [0; 4];
    guest.registers.read_config(4, &mut bytes);
    bytes[2] & 8 != 0
}

#[test]
fn without_messages_each_has_a_bit_and_the_status_register_shows_it() {
    let disk = memory_disk();
    let mut guest = Guest::pci(|_| own(disk.clone(), 1));
    guest.start(0, 1);
    guest.submit(0, 1);
    eventually(|| shows_interrupt(&mut guest));
    assert_eq!(guest.registers.cause(), QUEUE);
    assert!(!shows_interrupt(&mut guest));
    disk.resize(disk.caps().capacity + 8).unwrap();
    assert!(shows_interrupt(&mut guest));
    assert_eq!(guest.registers.cause(), CONFIG);
    // With messages the bit belongs to nobody.
    guest.with_messages();
    disk.resize(disk.caps().capacity + 8).unwrap();
    assert!(!shows_interrupt(&mut guest));
}

#[test]
fn what_waits_behind_a_mask_is_forgotten_at_a_reset() {
    for path in [None].into_iter().chain(PATHS.map(Some)) {
        let disk = memory_disk();
        let mut guest = Guest::pci(|memory| match path {
            None => own(disk.clone(), 1),
            Some(path) => vdpa(disk.clone(), path, memory),
        });
        guest.start_with_messages();
        guest.submit(0, 1);
        disk.resize(disk.caps().capacity + 8).unwrap();
        let config = guest.queues();
        eventually(|| guest.pending() == 1 | 1 << config);
        guest.registers.set_status(0);
        assert_eq!(guest.pending(), 0, "{path:?}");
        guest.with_messages();
        guest.mask(0, false);
        guest.mask(config, false);
        assert!(!guest.raised(0) && !guest.raised(config), "{path:?}");
    }
}

#[test]
fn what_waits_behind_a_mask_comes_once_it_is_open() {
    let mut guest = Guest::pci(|_| own(memory_disk(), 1));
    guest.start_with_messages();
    guest.submit(0, 1);
    eventually(|| guest.pending() == 1);
    assert!(!guest.raised(0));
    guest.mask(0, false);
    assert!(guest.raised(0));
    assert_eq!(guest.pending(), 0);
}

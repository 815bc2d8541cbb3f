// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bus Master Enable: neither memory is accessed nor a message sent while it is off.

use super::disk::Silent;
use super::paths::{PATHS, vdpa};
use super::*;

const ON: [u8; 2] = [6, 0];
const OFF: [u8; 2] = [2, 0];

fn each_backend(mut test: impl FnMut(&mut Guest<PciBlock>, &MemoryDisk)) {
    let disk = memory_disk();
    test(&mut Guest::pci(|_| own(disk.clone(), 2)), &disk);
    for path in PATHS {
        let disk = memory_disk();
        let make = |memory| vdpa(disk.clone(), path, memory);
        test(&mut Guest::pci(make), &disk);
    }
}

#[test]
fn requests_wait_while_it_is_off() {
    each_backend(|guest, _| {
        guest.start(0, 2);
        guest.submit(0, 1);
        guest.answer(0);
        for queue in [0, 1] {
            guest.registers.write_config(4, &OFF);
            guest.submit(queue, 2);
            assert!(guest.is_quiet(queue));
            guest.registers.write_config(4, &ON);
            (0..2).for_each(|_| guest.answer(queue));
        }
        assert_eq!(guest.registers.status(), 0xf);
    });
}

#[test]
fn a_driver_may_be_ready_before_it_is_on() {
    each_backend(|guest, _| {
        guest.registers.write_config(4, &OFF);
        guest.start(0, 1);
        assert_eq!(guest.registers.status(), 0xf);
        guest.submit(0, 1);
        assert!(guest.is_quiet(0));
        guest.registers.write_config(4, &ON);
        guest.answer(0);
        // And what was put off is forgotten at a reset.
        guest.registers.write_config(4, &OFF);
        guest.start(0, 1);
        guest.registers.set_status(0);
        guest.registers.write_config(4, &ON);
        assert_eq!(guest.registers.status(), 0);
    });
}

#[test]
fn messages_wait_while_it_is_off() {
    each_backend(|guest, disk| {
        guest.start_with_messages();
        let config = guest.queues();
        guest.mask(config, false);
        guest.registers.write_config(4, &OFF);
        disk.resize(disk.caps().capacity + 8).unwrap();
        if guest.registers.block.disk.vdpa().is_none() {
            // Beside what each start of a queue signals.
            assert_eq!(guest.pending() & 1 << config, 1 << config);
        }
        assert!(!guest.raised(config));
        guest.registers.write_config(4, &ON);
        // A vDPA device was reset meanwhile and knows nothing of it: it is said in any case.
        assert!(guest.raised(config));
    });
}

#[test]
fn what_the_disk_does_not_finish_is_taken_back() {
    let silent = Silent::default();
    let mut guest = Guest::pci(|_| own(Arc::new(silent.clone()), 1));
    guest.registers.block.patience = Duration::from_millis(50);
    guest.start(0, 1);
    guest.submit(0, 2);
    eventually(|| silent.with(|state| state.taken) == 2);
    // It still has the buffers, which can't be helped, and the driver is told.
    guest.registers.write_config(4, &OFF);
    assert_eq!(guest.registers.status(), 0xf | status::DEVICE_NEEDS_RESET);
    silent.let_go();
    guest.registers.write_config(4, &ON);
    guest.start(0, 1);
    guest.submit(0, 1);
    eventually(|| silent.with(|state| state.taken) == 3);
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts that need no KVM.

use std::sync::{Arc, Mutex};

use serde_json::json;
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, MmioDevice};
use crate::boot::{self, Linux};
use crate::bus::{Bus, BusDevice, lock};
use crate::event::{Command, Way};
use crate::memory::{ACPI_TABLES, COMMAND_LINE, MMIO_WINDOW, ZERO_PAGE, allocate, ranges};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::{BarWindow, ConfigPorts, HostBridge, PciBus};
use crate::virtio::{half, set_half};

/// Remembers what was written.
#[derive(Default)]
struct Memo(Vec<(u64, Vec<u8>)>);

impl BusDevice for Memo {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.push((offset, data.to_vec()));
    }
}

#[test]
fn a_bus_finds_devices_by_their_ranges() {
    let bus = Bus::default();
    let device = Arc::new(Mutex::new(Memo::default()));
    bus.insert(0x100, 0x10, device.clone());
    let mut data = [0; 2];
    for (address, expected) in [
        (0xff, 0xff),
        (0x100, 0),
        (0x10f, 15),
        (0x110, 0xff),
        (u64::MAX, 0xff),
    ] {
        bus.read(address, &mut data);
        assert_eq!(data, [expected; 2], "{address:#x}");
        bus.write(address, &data);
    }
    assert_eq!(lock(&device).0, [(0, vec![0; 2]), (15, vec![15; 2])]);
}

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_8000,
        revision: 1,
        subsystem: (1, 2),
    });
    space.add_bar(0x8000, 0xc000_8000);
    space
}

#[test]
fn a_bar_is_sized_moved_and_switched_on() {
    let mut space = space();
    assert_eq!(space.window(), None);
    space.write(0x10, &[0xff; 4]);
    assert_eq!(space.u32(0x10), 0xffff_8000);
    space.write(0x10, &0xc123_4567u32.to_le_bytes());
    space.write(4, &[2, 0]);
    assert_eq!(space.window(), Some((0xc123_0000, 0x8000)));
    // What identifies the device can't be written.
    space.write(0, &[0; 4]);
    assert_eq!(space.u32(0), 0x1042_1af4);
}

#[test]
fn capabilities_are_linked() {
    let mut space = space();
    let first = space.add_capability(0x11, &[0; 10]);
    let second = space.add_capability(9, &[0; 14]);
    assert_eq!((space.u16(6) & 0x10, space.u16(0x34)), (0x10, first as u16));
    assert_eq!(space.u16(first), 0x11 | (second as u16) << 8);
    assert_eq!(space.u16(second), 9);
    assert!(second.is_multiple_of(4));
}

#[test]
fn configuration_ports_reach_one_function_and_nothing_else() {
    let bus = PciBus::default();
    bus.set(0, Some(Arc::new(Mutex::new(HostBridge::new()))));
    assert_eq!(bus.free_slot(), Some(1));
    let mut ports = ConfigPorts {
        bus: bus.clone(),
        address: 0,
    };
    let mut read = |address: u32, port: u64, len: usize| {
        ports.write(0, &address.to_le_bytes());
        let mut data = vec![0; len];
        ports.read(port, &mut data);
        data
    };
    assert_eq!(read(1 << 31, 4, 4), [0x86, 0x80, 0x37, 0x12]);
    assert_eq!(read(1 << 31, 6, 2), [0x37, 0x12]);
    // Disabled, another slot, another function, another bus, beyond the ports.
    for (address, port) in [
        (0, 4),
        (1 << 31 | 1 << 11, 4),
        (1 << 31 | 1 << 8, 4),
        (1 << 31 | 1 << 16, 4),
        (1 << 31, 7),
    ] {
        assert_eq!(read(address, port, 2), [0xff; 2], "{address:#x} {port}");
    }
    let mut window = BarWindow {
        bus,
        base: 0xc000_0000,
    };
    let mut data = [0; 4];
    window.read(0x1234, &mut data);
    window.write(0x1234, &data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn halves_of_registers() {
    let mut register = 0x1111_2222_3333_4444;
    set_half(&mut register, true, 5);
    assert_eq!(register, 0x5_3333_4444);
    set_half(&mut register, false, 6);
    assert_eq!(register, 0x5_0000_0006);
    assert_eq!(
        [0, 1, 2, u32::MAX].map(|select| half(register, select)),
        [6, 5, 0, 0]
    );
}

#[test]
fn memory_leaves_a_hole_for_devices() {
    assert_eq!(ranges(1 << 30), [(0, 1 << 30)]);
    assert_eq!(ranges(4 << 30), [(0, 3 << 30), (4 << 30, 1 << 30)]);
}

#[test]
fn tables_have_sums_of_zero_and_lead_to_each_other() {
    let memory = allocate(4 << 20).unwrap();
    let mmio = [MmioDevice {
        base: MMIO_WINDOW,
        line: 5,
    }];
    acpi::write(&memory, 3, &mmio).unwrap();
    let read = |address: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    };
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let table = |address: u64| {
        let len = number(&read(address + 4, 4));
        let bytes = read(address, len as usize);
        assert_eq!(sum(&bytes), 0);
        bytes
    };
    let rsdp = read(ACPI_TABLES, 36);
    assert_eq!(
        (&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)),
        (&b"RSD PTR "[..], 0, 0)
    );
    let xsdt = table(number(&rsdp[24..32]));
    let (fadt, madt) = (table(number(&xsdt[36..44])), table(number(&xsdt[44..52])));
    assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
    // 44 bytes of header, three CPUs, an IO-APIC.
    assert_eq!(madt.len(), 44 + 3 * 8 + 12);
    let dsdt = table(number(&fadt[140..148]));
    assert!(dsdt.windows(8).any(|bytes| bytes == b"LNRO0005"));
    let many = [mmio[0]; 4000];
    assert!(acpi::write(&memory, 1, &many).is_err());
}

/// The built-in guest stands for a kernel: it is an ELF file for the same address.
#[test]
fn an_elf_kernel_is_loaded_by_the_64_bit_boot_protocol() {
    let directory = tempfile::tempdir().unwrap();
    let initramfs = directory.path().join("initramfs");
    std::fs::write(&initramfs, [7; 5000]).unwrap();
    let memory = allocate(64 << 20).unwrap();
    let mut linux = Linux {
        kernel: env!("GUEST").into(),
        initramfs: Some(initramfs.clone()),
        command_line: "quiet".to_owned(),
    };
    let entry = boot::load(&memory, &linux).unwrap();
    let image = std::fs::read(env!("GUEST")).unwrap();
    assert_eq!(entry.rip.to_le_bytes(), image[24..32]);
    assert_eq!(entry.rsi, ZERO_PAGE);
    let code: u8 = memory.read_obj(GuestAddress(entry.rip)).unwrap();
    assert_ne!(code, 0);
    // Offsets in `struct boot_params`.
    let word = |offset: u64| -> u32 { memory.read_obj(GuestAddress(ZERO_PAGE + offset)).unwrap() };
    assert_eq!(word(0x202).to_le_bytes(), *b"HdrS");
    assert_eq!(
        (word(0x228), word(0x70)),
        (COMMAND_LINE as u32, ACPI_TABLES as u32)
    );
    assert_eq!(word(0x1e8) & 0xff, 2);
    let text: [u8; 6] = memory.read_obj(GuestAddress(COMMAND_LINE)).unwrap();
    assert_eq!(&text, b"quiet\0");
    let (start, len) = (u64::from(word(0x218)), u64::from(word(0x21c)));
    assert_eq!((start % 4096, len), (0, 5000));
    let last: u8 = memory.read_obj(GuestAddress(start + len - 1)).unwrap();
    assert_eq!(last, 7);
    // Neither of these is a kernel.
    for wrong in [initramfs, directory.path().join("nothing")] {
        linux.kernel = wrong;
        assert!(boot::load(&memory, &linux).is_err());
    }
}

#[test]
fn commands_on_the_wire() {
    let resize: Command =
        serde_json::from_value(json!({"command": "resize", "disk": 1, "mib": 9})).unwrap();
    assert_eq!(resize, Command::Resize { disk: 1, mib: 9 });
    let add = Command::AddDisk {
        name: "memory:1M".into(),
    };
    assert_eq!(
        serde_json::to_value(&add).unwrap(),
        json!({"command": "add-disk", "name": "memory:1M"})
    );
    let switch: Command =
        serde_json::from_value(json!({"command": "switch", "path": "slow"})).unwrap();
    let (path, disk) = (Way::Slow, 0);
    assert_eq!(switch, Command::Switch { path, disk });
    for bad in [
        json!({"command": "explode"}),
        json!({"command": "switch", "path": "sideways"}),
        json!({"command": "resize", "disk": -1, "mib": 9}),
        json!([]),
    ] {
        assert!(serde_json::from_value::<Command>(bad).is_err());
    }
}

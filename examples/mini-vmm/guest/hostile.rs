// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything a driver must not do: rubbish in every register, ring and chain, in every width.

use crate::blk::{Disk, reg};
use crate::io::{self, in8, in16, in32, out8, out16, out32, print, read, write};

const ROUNDS: u64 = 400;
/// Accesses in one round.
const STEPS: u64 = 40;
/// Memory for rubbish rings: 16 MiB on, 1 MiB of it, inside what the VMM gave.
const RINGS: u64 = 16 << 20;
const RINGS_SIZE: u64 = 1 << 20;

const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
const PCI_BAR_SIZE: u64 = 0x8000;

/// splitmix64: small and repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Values that programs trip over.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => 1 << self.below(64),
            4 => RINGS + self.below(RINGS_SIZE),
            5 => self.below(256),
            6 => u64::MAX - self.below(64),
            _ => self.next(),
        }
    }
}

/// Attacks the device at `mmio` and whatever is on the PCI bus.
pub fn run(mmio: u64, seed: u64) {
    let mut random = Random(seed);
    print(b"guest: hostile, seed ");
    io::number(seed);
    print(b"\n");
    for round in 0..ROUNDS {
        rubbish(&mut random);
        match round % 4 {
            0 => rings(mmio, &mut random),
            1 => registers(mmio, 0x200, &mut random),
            2 => config_space(&mut random),
            _ => {
                if let Some(bar) = bar() {
                    registers(bar, PCI_BAR_SIZE, &mut random);
                }
            }
        }
        // The device must still work for a driver that behaves.
        if round % 50 == 0 {
            Disk::probe(mmio).flush();
        }
    }
    print(b"guest: the VMM survived ");
    io::number(ROUNDS);
    print(b" rounds\n");
}

/// Fills a piece of the rings' memory.
fn rubbish(random: &mut Random) {
    let start = RINGS + random.below(RINGS_SIZE - 4096) / 8 * 8;
    for word in 0..random.below(24) {
        let value = if random.below(3) == 0 {
            random.value()
        } else {
            random.below(1 << 20)
        };
        write(start + word * 8, value);
    }
}

/// Any access of any width anywhere in `base..base + size`.
fn registers(base: u64, size: u64, random: &mut Random) {
    for _ in 0..STEPS {
        let address = base + random.below(size - 8);
        let value = random.value();
        match random.below(8) {
            0 => drop(read::<u8>(address)),
            1 => drop(read::<u16>(address)),
            2 => drop(read::<u32>(address)),
            3 => drop(read::<u64>(address)),
            4 => write(address, value as u8),
            5 => write(address, value as u16),
            6 => write(address & !3, value as u32),
            _ => write(address, value),
        }
    }
}

/// A proper start with improper queues, and kicks.
fn rings(mmio: u64, random: &mut Random) {
    let set = |register, value: u64| write(mmio + register, value as u32);
    set(reg::STATUS, 0);
    set(reg::STATUS, 3);
    set(reg::DEVICE_FEATURES_SEL, 0);
    set(reg::DRIVER_FEATURES_SEL, 0);
    // Indirect tables and event indices come and go.
    let wanted = random.next() as u32 | 1 << 28;
    set(
        reg::DRIVER_FEATURES,
        u64::from(read::<u32>(mmio + reg::DEVICE_FEATURES) & wanted),
    );
    set(reg::DRIVER_FEATURES_SEL, 1);
    set(reg::DRIVER_FEATURES, 1);
    set(reg::STATUS, 11);
    set(reg::QUEUE_SEL, 0);
    set(
        reg::QUEUE_SIZE,
        if random.below(4) == 0 {
            random.value()
        } else {
            1 << random.below(9)
        },
    );
    for register in [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE] {
        let address = match random.below(6) {
            0 => random.value(),
            _ => RINGS + random.below(RINGS_SIZE) / 4096 * 4096,
        };
        set(register, address);
        set(register + 4, address >> 32);
    }
    set(reg::QUEUE_READY, 1);
    set(reg::STATUS, 15);
    for _ in 0..STEPS {
        rubbish(random);
        set(reg::QUEUE_NOTIFY, random.below(2));
    }
}

/// Accesses of each width to the configuration space of the first devices, and some beyond.
fn config_space(random: &mut Random) {
    for _ in 0..STEPS {
        out32(
            PCI_ADDRESS,
            1 << 31 | (random.below(4) << 11 | random.below(256)) as u32,
        );
        let port = PCI_DATA + random.below(4) as u16;
        let value = random.value();
        match random.below(6) {
            0 => drop(in8(port)),
            1 => drop(in16(port)),
            2 => drop(in32(port)),
            3 => out8(port, value as u8),
            4 => out16(port, value as u16),
            _ => out32(port, value as u32),
        }
    }
    // Memory decoding on again, at an address that is the device's.
    out32(PCI_ADDRESS, 1 << 31 | 1 << 11 | 0x10);
    out32(
        PCI_DATA,
        (0xc000_0000 + random.below(64) * PCI_BAR_SIZE) as u32,
    );
    out32(PCI_ADDRESS, 1 << 31 | 1 << 11 | 4);
    out16(PCI_DATA, 6);
}

/// Where the first PCI device's registers are, if there is one.
fn bar() -> Option<u64> {
    out32(PCI_ADDRESS, 1 << 31 | 1 << 11);
    if in16(PCI_DATA) != 0x1af4 {
        return None;
    }
    out32(PCI_ADDRESS, 1 << 31 | 1 << 11 | 0x10);
    Some(u64::from(in32(PCI_DATA) & !15))
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio block driver with one queue and one request at a time, over virtio-mmio.

use core::sync::atomic::{Ordering, fence};

use crate::io::{exit, print, read, write};

const SIZE: u16 = 8;

/// Register offsets (virtio 1.4, 4.2.2).
pub mod reg {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const CONFIG: u64 = 0x100;
}

const FLUSH: u32 = 1 << 9;
/// In the upper half.
const VERSION_1: u32 = 1;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

/// All that the device looks at.
#[repr(C, align(4096))]
pub struct Shared {
    pub descriptors: [Descriptor; SIZE as usize],
    pub avail: [u16; 4 + SIZE as usize],
    _pad: u32,
    pub used: [u32; 2 + 2 * SIZE as usize],
    header: Header,
    status: u8,
    /// What GET_ID gives.
    id: [u8; 20],
}

static mut SHARED: Shared = Shared {
    descriptors: [Descriptor {
        addr: 0,
        len: 0,
        flags: 0,
        next: 0,
    }; SIZE as usize],
    avail: [0; 4 + SIZE as usize],
    _pad: 0,
    used: [0; 2 + 2 * SIZE as usize],
    header: Header {
        kind: 0,
        reserved: 0,
        sector: 0,
    },
    status: 0,
    id: [0; 20],
};

/// A running device.
pub struct Disk {
    base: u64,
    taken: u16,
}

impl Disk {
    /// Resets the device, negotiates and starts its first queue.
    pub fn probe(base: u64) -> Self {
        if read::<u32>(base + reg::MAGIC) != u32::from_le_bytes(*b"virt")
            || read::<u32>(base + reg::VERSION) != 2
            || read::<u32>(base + reg::DEVICE_ID) != 2
        {
            print(b"guest: no virtio block device\n");
            exit(3);
        }
        let set = |register, value: u32| write(base + register, value);
        set(reg::STATUS, 0);
        set(reg::STATUS, 1);
        set(reg::STATUS, 3);
        set(reg::DEVICE_FEATURES_SEL, 0);
        set(reg::DRIVER_FEATURES_SEL, 0);
        set(
            reg::DRIVER_FEATURES,
            read::<u32>(base + reg::DEVICE_FEATURES) & FLUSH,
        );
        set(reg::DRIVER_FEATURES_SEL, 1);
        set(reg::DRIVER_FEATURES, VERSION_1);
        set(reg::STATUS, 11);
        if read::<u32>(base + reg::STATUS) & 8 == 0 {
            print(b"guest: the device refuses our features\n");
            exit(3);
        }
        // Word by word: KVM in software has no vector instructions.
        for offset in (0..size_of::<Shared>() as u64).step_by(8) {
            write(descriptors() + offset, 0u64);
        }
        set(reg::QUEUE_SEL, 0);
        set(reg::QUEUE_SIZE, SIZE.into());
        for (register, address) in [
            (reg::QUEUE_DESC, descriptors()),
            (reg::QUEUE_DRIVER, avail()),
            (reg::QUEUE_DEVICE, used()),
        ] {
            set(register, address as u32);
            set(register + 4, (address >> 32) as u32);
        }
        set(reg::QUEUE_READY, 1);
        set(reg::STATUS, 15);
        Self { base, taken: 0 }
    }

    pub fn sectors(&self) -> u64 {
        let low = read::<u32>(self.base + reg::CONFIG);
        let high = read::<u32>(self.base + reg::CONFIG + 4);
        u64::from(high) << 32 | u64::from(low)
    }

    pub fn write(&mut self, sector: u64, data: &[u64]) {
        self.request(T_OUT, sector, data.as_ptr() as u64, size_of_val(data), 0);
    }

    pub fn read(&mut self, sector: u64, data: &mut [u64]) {
        self.request(
            T_IN,
            sector,
            data.as_mut_ptr() as u64,
            size_of_val(data),
            WRITE,
        );
    }

    /// Prints its serial number.
    pub fn print_id(&mut self) {
        let id = descriptors() + core::mem::offset_of!(Shared, id) as u64;
        self.request(T_GET_ID, 0, id, 20, WRITE);
        let bytes = (0..20).map(|offset| read::<u8>(id + offset));
        bytes
            .take_while(|byte| *byte != 0)
            .for_each(|byte| print(&[byte]));
    }

    pub fn flush(&mut self) {
        self.request(T_FLUSH, 0, 0, 0, 0);
    }

    /// One request, from beginning to end.
    fn request(&mut self, kind: u32, sector: u64, data: u64, len: usize, flags: u16) {
        let shared = &raw mut SHARED;
        let header = Header {
            kind,
            reserved: 0,
            sector,
        };
        let descriptor = |index: u64, addr, len: usize, flags, next| {
            let value = Descriptor {
                addr,
                len: len as u32,
                flags,
                next,
            };
            write(descriptors() + index * 16, value);
        };
        // SAFETY: fields of a static; only the device reads and writes them, as told below.
        let (header_at, status_at) =
            unsafe { (&raw mut (*shared).header, &raw mut (*shared).status) };
        write(header_at as u64, header);
        write(status_at as u64, 0xffu8);
        let after_header = if len == 0 { 2 } else { 1 };
        descriptor(0, header_at as u64, 16, NEXT, after_header);
        descriptor(1, data, len, flags | NEXT, 2);
        descriptor(2, status_at as u64, 1, WRITE, 0);
        write(avail() + 4 + u64::from(self.taken % SIZE) * 2, 0u16);
        self.taken = self.taken.wrapping_add(1);
        fence(Ordering::SeqCst);
        write(avail() + 2, self.taken);
        fence(Ordering::SeqCst);
        write(self.base + reg::QUEUE_NOTIFY, 0u32);
        while read::<u16>(used() + 2) != self.taken {
            core::hint::spin_loop();
        }
        fence(Ordering::SeqCst);
        if read::<u8>(status_at as u64) != 0 {
            print(b"guest: a request failed\n");
            exit(4);
        }
    }
}

fn descriptors() -> u64 {
    &raw const SHARED as u64
}

fn avail() -> u64 {
    descriptors() + core::mem::offset_of!(Shared, avail) as u64
}

fn used() -> u64 {
    descriptors() + core::mem::offset_of!(Shared, used) as u64
}

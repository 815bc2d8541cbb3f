// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The built-in guest: no operating system, just enough to drive a virtio block device.
//!
//! The VMM starts it in 64-bit mode with all memory mapped one to one, interrupts off, a stack, and two
//! arguments. It waits by looking: it needs no interrupt controller, no timer and no exception table.

#![no_std]
#![no_main]

mod blk;
mod hostile;
mod io;

use blk::Disk;
use io::{exit, print};

/// What to do; the VMM's `builtin` module has the same numbers.
const HOSTILE: u64 = 1;
const REPEAT: u64 = 2;

/// Bytes of one request.
const CHUNK: usize = 64 << 10;
const SECTOR: usize = 512;
const SECTORS: u64 = (CHUNK / SECTOR) as u64;
const CHUNKS: u64 = 128;

type Buffer = [u64; CHUNK / 8];
static mut WRITTEN: Buffer = [0; CHUNK / 8];
static mut READ: Buffer = [0; CHUNK / 8];

/// `mmio`: where the registers of a virtio-mmio device are.
#[unsafe(no_mangle)]
extern "C" fn _start(mmio: u64, mode: u64, seed: u64) -> ! {
    print(b"guest: up\n");
    if mode & HOSTILE != 0 {
        hostile::run(mmio, seed);
    }
    work(mmio, mode & REPEAT != 0);
    print(b"guest: done\n");
    exit(0)
}

/// Writes, flushes, reads back and compares; with `repeat` until a key is typed.
fn work(mmio: u64, repeat: bool) {
    let mut disk = Disk::probe(mmio);
    print(b"guest: a disk of ");
    io::number(disk.sectors() >> 11);
    print(b" MiB, serial ");
    disk.print_id();
    print(b"\n");

    // SAFETY: the only references to them, on the only CPU.
    let (written, read) = unsafe { (&mut *(&raw mut WRITTEN), &mut *(&raw mut READ)) };
    for (index, word) in (1u64..).zip(written.iter_mut()) {
        *word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let chunks = CHUNKS.min(disk.sectors() / SECTORS);
    let mut compared = 0;
    for pass in 0.. {
        for chunk in 0..chunks {
            stamp(written, pass, chunk);
            disk.write(chunk * SECTORS, written);
        }
        disk.flush();
        for chunk in 0..chunks {
            stamp(written, pass, chunk);
            disk.read(chunk * SECTORS, read);
            if !io::equal(written, read) {
                print(b"guest: the disk gives back something else\n");
                exit(1);
            }
        }
        compared += chunks;
        if !repeat || io::typed() {
            break;
        }
    }
    print(b"guest: wrote, flushed, read and compared ");
    io::number(compared);
    print(b" chunks of 64 KiB\n");
}

/// Makes every sector of a chunk differ from all others on the disk, and from those of other passes. A word of each is
/// enough, and where KVM emulates every instruction, no guest has time for more.
fn stamp(data: &mut Buffer, pass: u64, chunk: u64) {
    for (sector, word) in (chunk * SECTORS..).zip(data.iter_mut().step_by(SECTOR / 8)) {
        *word = pass << 32 | sector;
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print(b"guest: panic\n");
    exit(2)
}

/// `core` names it; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What the compiler calls to fill memory.
///
/// # Safety
/// As in C: `len` bytes at `to` are the caller's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by convention.
    unsafe {
        core::arch::asm!(
            "rep stosb",
            inout("rcx") len => _,
            inout("rdi") to => _,
            in("al") value as u8,
            options(nostack, preserves_flags),
        );
    }
    to
}

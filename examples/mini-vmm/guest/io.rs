// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ports and registers.

use core::arch::asm;

const SERIAL: u16 = 0x3f8;
/// A byte written here ends the machine with this status.
const EXIT: u16 = 0xf4;

pub fn out8(port: u16, value: u8) {
    // SAFETY: port I/O touches no memory of ours.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// A register. Plain moves, which KVM can emulate.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: everything is mapped, and device registers are no memory of the compiler's.
    unsafe { (address as *const T).read_volatile() }
}

pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as above; callers write registers, rings and buffers.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Compares memory: one instruction.
pub fn equal(one: &[u64], other: &[u64]) -> bool {
    let same: u8;
    // SAFETY: reads as many words of both as both have; the direction flag is clear by convention.
    unsafe {
        asm!(
            "cmp rcx, rcx",
            "repe cmpsq",
            "sete {same}",
            same = out(reg_byte) same,
            inout("rcx") one.len().min(other.len()) => _,
            inout("rsi") one.as_ptr() => _,
            inout("rdi") other.as_ptr() => _,
            options(nostack, readonly),
        );
    }
    same != 0
}

pub fn print(text: &[u8]) {
    for byte in text {
        out8(SERIAL, *byte);
    }
}

/// Whether something was typed on the console, and not read yet.
pub fn typed() -> bool {
    const LINE_STATUS: u16 = SERIAL + 5;
    in8(LINE_STATUS) & 1 != 0
}

/// Prints a number.
pub fn number(value: u64) {
    if value >= 10 {
        number(value / 10);
    }
    out8(SERIAL, b'0' + (value % 10) as u8);
}

pub fn exit(status: u8) -> ! {
    loop {
        out8(EXIT, status);
    }
}

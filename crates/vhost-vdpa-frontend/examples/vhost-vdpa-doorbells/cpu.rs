// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine whose CPU can do one thing: write a number to an address.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const PAGE: u64 = 4096;
/// Where the code is, in the guest.
const CODE: u64 = 0;
/// Where the page of the first queue is, behind it those of the others.
const DOORBELLS: u64 = 0x2000;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// There was memory, or a device.
    Through,
    /// There was nothing: the VMM is asked.
    Exit,
}

/// The virtual machine, without its CPU.
pub struct Machine(VmFd);

/// Its CPU.
pub struct Cpu(VcpuFd);

/// Makes both.
pub fn machine() -> (Machine, Cpu) {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    // mov [bx], ax; hlt
    let code = [0x89, 0x07, 0xf4];
    // SAFETY: a new mapping, at an address of the kernel's choice; it stays for as long as the process.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            PAGE as usize,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE,
        )
    };
    let page: *mut u8 = page.unwrap().cast();
    // SAFETY: the page is longer than that, and nobody else knows it.
    unsafe { page.copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    let machine = Machine(vm);
    machine.map(0, CODE, page, PAGE);
    let cpu = machine.0.create_vcpu(0).unwrap();
    // Real mode, as after a reset, but where the code is.
    let mut special = cpu.get_sregs().unwrap();
    (special.cs.base, special.cs.selector) = (CODE, 0);
    cpu.set_sregs(&special).unwrap();
    (machine, Cpu(cpu))
}

impl Machine {
    /// Maps the doorbell page of queue `vq`. It must stay mapped in this process until [`Machine::take_away`].
    pub fn give(&self, vq: u16, page: *mut u8) {
        self.map(slot(vq), address(vq), page, PAGE);
    }

    /// Unmaps it. When this returns the CPU can't write there.
    pub fn take_away(&self, vq: u16) {
        self.map(slot(vq), address(vq), std::ptr::null_mut(), 0);
    }

    fn map(&self, slot: u32, address: u64, page: *mut u8, bytes: u64) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: address,
            memory_size: bytes,
            userspace_addr: page as u64,
            flags: 0,
        };
        // SAFETY: the page is memory for as long as it is mapped in the guest: `machine` leaks its own, and `give` asks
        // for it. Without bytes nothing is mapped.
        unsafe { self.0.set_user_memory_region(region) }.unwrap();
    }
}

impl Cpu {
    /// Writes the number of queue `vq` to where its doorbell is.
    pub fn ring(&mut self, vq: u16) -> Write {
        let mut registers = self.0.get_regs().unwrap();
        (registers.rip, registers.rflags) = (CODE, 2);
        (registers.rax, registers.rbx) = (vq.into(), address(vq));
        self.0.set_regs(&registers).unwrap();
        let mut write = Write::Through;
        loop {
            match self.0.run().unwrap() {
                VcpuExit::MmioWrite(at, data) => {
                    assert_eq!((at, data), (address(vq), &vq.to_le_bytes()[..]));
                    write = Write::Exit;
                }
                VcpuExit::Hlt => return write,
                other => panic!("an exit that is none of its: {other:?}"),
            }
        }
    }
}

fn slot(vq: u16) -> u32 {
    u32::from(vq) + 1
}

fn address(vq: u16) -> u64 {
    DOORBELLS + u64::from(vq) * PAGE
}

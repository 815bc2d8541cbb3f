// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of a vCPU: at the start, and for snapshots.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Context, Error, Result};
use crate::memory::{GDT, Memory, PAGE_TABLES};

/// Where the boot processor starts, in 64-bit mode with memory mapped one to one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    pub rip: u64,
    pub rsp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
}

/// What every vCPU of a machine can do, as far as KVM can.
pub fn features(kvm: &Kvm) -> Result<CpuId> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("the supported CPUID")
}

/// Without it guests don't look for KVM's clock; KVM leaves it to the VMM.
const HYPERVISOR: u32 = 1 << 31;

/// Gives a vCPU its CPUID: what is supported, with its own number in it.
pub fn set_features(fd: &VcpuFd, features: &CpuId, index: u8, cpus: u8) -> Result<()> {
    let mut cpuid = features.clone();
    let width = u32::from(cpus).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & 0xffff | u32::from(index) << 24 | u32::from(cpus) << 16;
                entry.ecx |= HYPERVISOR;
                // HTT: the count above is meant.
                entry.edx = entry.edx & !(1 << 28) | u32::from(cpus > 1) << 28;
            }
            // Threads: one per core. Cores: all of them.
            (0xb | 0x1f, level) => {
                (entry.eax, entry.ebx, entry.ecx) = match level {
                    0 => (0, 1, 0x100),
                    1 => (width, cpus.into(), 0x201),
                    _ => (0, 0, level),
                };
                entry.edx = index.into();
            }
            (0x8000_0008, _) => {
                entry.ecx = entry.ecx & !0xf0ff | width << 12 | u32::from(cpus - 1);
            }
            (0x8000_001e, _) => {
                entry.eax = index.into();
                entry.ebx = entry.ebx & !0xff | u32::from(index);
            }
            _ => {}
        }
    }
    fd.set_cpuid2(&cpuid).context("CPUID")
}

/// Page tables, segments and registers of the boot processor.
pub fn set_entry(fd: &VcpuFd, memory: &Memory, entry: Entry) -> Result<()> {
    write_tables(memory).map_err(|error| Error::Memory(error.to_string()))?;
    let mut sregs = fd.get_sregs().context("system registers")?;
    let segment = |index: u16, type_: u8| kvm_segment {
        selector: index * 8,
        limit: 0xffff_ffff,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        l: 1,
        ..segment(2, 0xb)
    };
    let data = kvm_segment {
        db: 1,
        ..segment(3, 0x3)
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (GDT_ENTRIES.len() * 8 - 1) as u16;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE | CR4_SSE;
    sregs.efer |= EFER_LME | EFER_LMA;
    fd.set_sregs(&sregs).context("system registers")?;
    let regs = kvm_regs {
        // The bit that is always set; interrupts off.
        rflags: 2,
        rip: entry.rip,
        rsp: entry.rsp,
        rdi: entry.rdi,
        rsi: entry.rsi,
        rdx: entry.rdx,
        ..Default::default()
    };
    fd.set_regs(&regs).context("registers")?;
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    fd.set_fpu(&fpu).context("floating-point registers")
}

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// OSFXSR and OSXMMEXCPT.
const CR4_SSE: u64 = 3 << 9;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Null, unused, 64-bit code (selector 0x10), data (0x18): the numbers of Linux' boot protocol.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Maps the first 4 GiB one to one, in pages of 2 MiB.
fn write_tables(memory: &Memory) -> std::result::Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    for (index, entry) in (0..).zip(GDT_ENTRIES) {
        memory.write_obj(entry, GuestAddress(GDT + index * 8))?;
    }
    let (directories, tables) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    memory.write_obj(directories | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..4 {
        let table = tables + gib * 0x1000;
        memory.write_obj(
            table | PRESENT_WRITABLE,
            GuestAddress(directories + gib * 8),
        )?;
        for page in 0..512 {
            let address = gib << 30 | page << 21;
            let entry = address | PRESENT_WRITABLE | LARGE;
            memory.write_obj(entry, GuestAddress(table + page * 8))?;
        }
    }
    Ok(())
}

/// What firmware does to the local APIC: external interrupts and NMIs at its two pins.
pub fn set_local_apic(fd: &VcpuFd) -> Result<()> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4 << 8;
    const MODE_EXTERNAL: u32 = 7 << 8;
    let mut lapic = fd.get_lapic().context("the local APIC")?;
    for (register, mode) in [(LVT_LINT0, MODE_EXTERNAL), (LVT_LINT1, MODE_NMI)] {
        if let Some(bytes) = lapic.regs.get_mut(register..register + 4) {
            for (to, from) in bytes.iter_mut().zip(mode.to_le_bytes()) {
                *to = from as _;
            }
        }
    }
    fd.set_lapic(&lapic).context("the local APIC")
}

/// Memory is cached unless said otherwise: MTRRs on, write-back.
pub fn set_memory_type(fd: &VcpuFd) -> Result<()> {
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    let entry = kvm_msr_entry {
        index: MTRR_DEF_TYPE,
        data: 1 << 11 | 6,
        ..Default::default()
    };
    let msrs =
        Msrs::from_entries(&[entry]).map_err(|_| Error::Control("too many MSRs".to_owned()))?;
    fd.set_msrs(&msrs)
        .context("the default memory type")
        .map(drop)
}

/// All of a vCPU.
#[derive(Serialize, Deserialize)]
pub struct CpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    mp: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Vec<kvm_msr_entry>,
}

/// Reads a paused vCPU. In the order in which KVM wants it: some calls settle what others return.
pub fn save(fd: &VcpuFd) -> Result<CpuState> {
    Ok(CpuState {
        mp: fd.get_mp_state().context("run state")?,
        regs: fd.get_regs().context("registers")?,
        sregs: fd.get_sregs().context("system registers")?,
        xsave: fd.get_xsave().context("extended registers")?,
        xcrs: fd.get_xcrs().context("extended control registers")?,
        debug: fd.get_debug_regs().context("debug registers")?,
        lapic: fd.get_lapic().context("the local APIC")?,
        msrs: save_msrs(fd)?,
        events: fd.get_vcpu_events().context("pending events")?,
    })
}

/// Sets up a vCPU that has its CPUID as it was saved.
pub fn restore(fd: &VcpuFd, state: &CpuState) -> Result<()> {
    fd.set_mp_state(state.mp).context("run state")?;
    fd.set_regs(&state.regs).context("registers")?;
    fd.set_sregs(&state.sregs).context("system registers")?;
    // SAFETY: no feature with a state beyond the 4 KiB of this structure was enabled (that takes
    // arch_prctl), so KVM reads no further.
    unsafe { fd.set_xsave(&state.xsave) }.context("extended registers")?;
    fd.set_xcrs(&state.xcrs)
        .context("extended control registers")?;
    fd.set_debug_regs(&state.debug).context("debug registers")?;
    fd.set_lapic(&state.lapic).context("the local APIC")?;
    // One at a time: KVM stops at the first it doesn't take, and some can only be read here.
    for entry in &state.msrs {
        let one = Msrs::from_entries(std::slice::from_ref(entry))
            .map_err(|_| Error::Snapshot("an MSR".to_owned()))?;
        if fd.set_msrs(&one).context("MSRs")? == 0 {
            log::debug!("MSR {:#x} was not restored", entry.index);
        }
    }
    fd.set_vcpu_events(&state.events).context("pending events")
}

fn save_msrs(fd: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    let kvm = Kvm::new().map_err(Error::NoKvm)?;
    let list = kvm.get_msr_index_list().context("the list of MSRs")?;
    let mut saved = Vec::new();
    for index in list.as_slice() {
        let entry = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        let mut one =
            Msrs::from_entries(&[entry]).map_err(|_| Error::Snapshot("an MSR".to_owned()))?;
        // Not all that are listed exist for this CPU model.
        if fd.get_msrs(&mut one) == Ok(1) {
            saved.extend_from_slice(one.as_slice());
        }
    }
    Ok(saved)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tables by which the guest finds CPUs, interrupt controllers, devices and the power switch.
//!
//! Hardware-reduced ACPI: no PC timers, no PM registers, only what is named here.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE,
    Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Error, Result};
use crate::legacy::{POWER_PORT, RESET_VALUE, SERIAL_LINE, SERIAL_PORT, SLEEP_TYPE_OFF};
use crate::memory::{
    ACPI_TABLES, IO_APIC, LOCAL_APIC, MMIO_SLOT, Memory, PCI_WINDOW, PCI_WINDOW_SIZE, RESET_VECTOR,
};
use crate::pci::ADDRESS_PORT;

const OEM: [u8; 6] = *b"VBLK  ";
const TABLE: [u8; 8] = *b"MINIVMM ";
/// FADT boot flags: no VGA, no CMOS clock.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// A virtio-mmio device for the tables.
#[derive(Clone, Copy, Debug)]
pub struct MmioDevice {
    pub base: u64,
    pub line: u32,
}

/// Writes all tables; the first, which leads to the others, at [`ACPI_TABLES`].
pub fn write(memory: &Memory, cpus: u8, mmio: &[MmioDevice]) -> Result<()> {
    let mut writer = Writer {
        memory,
        next: ACPI_TABLES + Rsdp::len().next_multiple_of(16) as u64,
    };
    let dsdt = writer.put(&dsdt(mmio))?;
    let fadt = writer.put(&fadt(dsdt))?;
    let madt = writer.put(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = writer.put(&xsdt)?;
    writer.next = ACPI_TABLES;
    writer.put(&Rsdp::new(OEM, xsdt)).map(drop)
}

struct Writer<'a> {
    memory: &'a Memory,
    next: u64,
}

impl Writer<'_> {
    /// Writes a table and returns its address.
    fn put(&mut self, table: &dyn Aml) -> Result<u64> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = self.next;
        self.next += bytes.len().next_multiple_of(16) as u64;
        if self.next > RESET_VECTOR {
            return Err(Error::Memory(
                "too many devices for ACPI's tables".to_owned(),
            ));
        }
        self.memory
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|error| Error::Memory(error.to_string()))?;
        Ok(address)
    }
}

fn register(offset: u16) -> GAS {
    let port = u64::from(POWER_PORT + offset);
    GAS::new(RegisterSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.sleep_control_reg = register(0);
    fadt.sleep_status_reg = register(1);
    fadt.reset_reg = register(2);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for index in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(cpus, IO_APIC, 0));
    madt
}

fn dsdt(mmio: &[MmioDevice]) -> Sdt {
    let mut bytes = Vec::new();
    pci_root(&mut bytes);
    serial(&mut bytes);
    for (index, device) in mmio.iter().enumerate() {
        virtio_mmio(&mut bytes, index, *device);
    }
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF])).to_aml_bytes(&mut bytes);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, 1);
    dsdt.append_slice(&bytes);
    dsdt
}

/// A device on the system bus: its name, what it is, which of its kind, and what it takes.
fn device(sink: &mut dyn AmlSink, name: &str, hid: &dyn Aml, uid: usize, takes: Vec<&dyn Aml>) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    // Its DMA is coherent.
    let coherent = Name::new("_CCA".into(), &ONE);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(takes));
    let members: Vec<&dyn Aml> = vec![&hid, &uid, &coherent, &resources];
    let device = Device::new(name.into(), members);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(sink);
}

fn pci_root(sink: &mut dyn AmlSink) {
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(ADDRESS_PORT, ADDRESS_PORT, 1, 8);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW as u32,
        (PCI_WINDOW + PCI_WINDOW_SIZE - 1) as u32,
        None,
    );
    let takes: Vec<&dyn Aml> = vec![&buses, &ports, &window];
    device(sink, "PCI0", &EISAName::new("PNP0A03"), 0, takes);
}

fn serial(sink: &mut dyn AmlSink) {
    let line = Interrupt::new(true, true, false, false, SERIAL_LINE);
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    device(
        sink,
        "COM1",
        &EISAName::new("PNP0501"),
        0,
        vec![&line, &ports],
    );
}

/// Linux finds virtio-mmio by this name, whatever its command line options.
fn virtio_mmio(sink: &mut dyn AmlSink, index: usize, mmio: MmioDevice) {
    let registers = Memory32Fixed::new(true, mmio.base as u32, MMIO_SLOT as u32);
    let line = Interrupt::new(true, true, false, false, mmio.line);
    let name = format!("V{index:03X}");
    device(sink, &name, &"LNRO0005", index, vec![&registers, &line]);
}

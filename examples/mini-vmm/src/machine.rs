// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine from its first instruction to its last: memory, vCPUs, devices.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use virtio_blk_core::device::{Device, Options};
use virtio_blk_core::spec::feature;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::acpi::{self, MmioDevice};
use crate::boot::{self, Linux};
use crate::builtin;
use crate::bus::lock;
use crate::cpu;
use crate::disks::OpenDisk;
use crate::error::{Context, Error, Result};
use crate::interrupt::Router;
use crate::legacy::{self, Console};
use crate::memory::{self, KVM_TSS, MMIO_SLOT, MMIO_WINDOW, Memory, PCI_WINDOW, PCI_WINDOW_SIZE};
use crate::pci::{ADDRESS_PORT, BarWindow, ConfigPorts, HostBridge, PciBus};
use crate::vcpu::{Buses, Vcpu};
use crate::virtio::Block;
use crate::virtio::mmio::MmioBlock;
use crate::virtio::pci::{BAR_SIZE, PciBlock};

/// What happens to a machine, told to its owner.
#[derive(Debug)]
pub enum Event {
    /// The guest wants to start again.
    Reset,
    /// The guest switched itself off; a status for the shell.
    PowerOff(u8),
    /// It can't go on.
    Failed(Error),
}

/// How disks are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Pci,
    Mmio,
}

/// What is run.
#[derive(Clone, Debug)]
pub enum Payload {
    Linux(Linux),
    /// The built-in guest; with a seed it attacks.
    Builtin(Option<u64>),
}

/// A machine to build.
#[derive(Clone, Debug)]
pub struct Config {
    pub memory: u64,
    pub cpus: u8,
    pub transports: Vec<Transport>,
    pub payload: Payload,
}

/// A disk's registers.
pub enum Attached {
    Pci(Arc<Mutex<PciBlock>>),
    Mmio(Arc<Mutex<MmioBlock>>),
}

impl Attached {
    /// Does something with the device behind either transport.
    fn with<R>(&self, call: impl FnOnce(&mut Block) -> R) -> R {
        match self {
            Self::Pci(device) => call(&mut lock(device).block),
            Self::Mmio(device) => call(&mut lock(device).block),
        }
    }
}

/// A machine. Dropping it ends it.
pub struct Machine {
    // First: they use what follows.
    vcpus: Vec<Vcpu>,
    disks: Vec<Attached>,
    console: Arc<Mutex<Console>>,
}

impl Machine {
    /// Builds a machine; [`Machine::resume`] switches it on.
    pub fn new(config: &Config, disks: &[OpenDisk], events: &Sender<Event>) -> Result<Self> {
        let kvm = Kvm::new().map_err(Error::NoKvm)?;
        let vm = Arc::new(kvm.create_vm().context("no virtual machine")?);
        let memory = memory::allocate(config.memory)?;
        set_memory(&vm, &memory)?;
        vm.set_tss_address(KVM_TSS).context("the TSS")?;
        vm.create_irq_chip().context("interrupt controllers")?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).context("the timer")?;
        let mut builder = Builder {
            router: Arc::new(Router::new(vm.clone())?),
            buses: Buses::default(),
            pci: PciBus::default(),
            mmio: Vec::new(),
            memory,
            vm,
        };
        let exit_port = matches!(config.payload, Payload::Builtin(_));
        let console = legacy::attach(&builder.buses.ports, &builder.router, events, exit_port)?;
        builder.attach_pci();
        let disks = disks.iter().zip(&config.transports);
        let disks = disks.map(|(disk, transport)| builder.attach(disk, *transport));
        let disks = disks.collect::<Result<_>>()?;
        acpi::write(&builder.memory, config.cpus, &builder.mmio)?;
        let vcpus = builder.vcpus(&kvm, config, events)?;
        Ok(Self {
            vcpus,
            disks,
            console,
        })
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        for disk in &self.disks {
            disk.with(Block::resume);
        }
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
    }

    pub fn console(&self) -> &Arc<Mutex<Console>> {
        &self.console
    }
}

/// A machine in the making.
struct Builder {
    vm: Arc<VmFd>,
    memory: Memory,
    router: Arc<Router>,
    buses: Buses,
    pci: PciBus,
    mmio: Vec<MmioDevice>,
}

impl Builder {
    fn attach_pci(&mut self) {
        self.pci
            .set(0, Some(Arc::new(Mutex::new(HostBridge::new()))));
        let ports = ConfigPorts {
            bus: self.pci.clone(),
            address: 0,
        };
        let window = BarWindow {
            bus: self.pci.clone(),
            base: PCI_WINDOW,
        };
        let ports = Arc::new(Mutex::new(ports));
        self.buses.ports.insert(ADDRESS_PORT.into(), 8, ports);
        let window = Arc::new(Mutex::new(window));
        self.buses
            .memory
            .insert(PCI_WINDOW, PCI_WINDOW_SIZE, window);
    }

    // ANCHOR: attach
    /// Makes a device over a disk and puts its registers where the guest finds them.
    fn attach(&mut self, disk: &OpenDisk, transport: Transport) -> Result<Attached> {
        let options = Options {
            queues: disk.queues,
            serial: disk.serial.clone(),
            transport_features: feature::RING_RESET,
            ..Options::default()
        };
        let device = Device::new(disk.disk.clone(), options).map_err(|error| disk.error(&error))?;
        let memory = self.memory.clone();
        match transport {
            Transport::Pci => {
                let slot = self.pci.free_slot();
                let slot = slot.ok_or_else(|| disk.error(&"no PCI slot is left"))?;
                let bar = PCI_WINDOW as u32 + slot as u32 * BAR_SIZE;
                let router = self.router.clone();
                let block = PciBlock::new(device, memory, self.vm.clone(), router, bar)?;
                let block = Arc::new(Mutex::new(block));
                self.pci.set(slot, Some(block.clone()));
                Ok(Attached::Pci(block))
            }
            Transport::Mmio => {
                let base = MMIO_WINDOW + self.mmio.len() as u64 * MMIO_SLOT;
                let interrupt = self.router.line(None)?;
                let line = interrupt.number;
                let block = MmioBlock::new(device, memory, interrupt, &self.vm, base)?;
                let block = Arc::new(Mutex::new(block));
                self.buses.memory.insert(base, MMIO_SLOT, block.clone());
                self.mmio.push(MmioDevice { base, line });
                Ok(Attached::Mmio(block))
            }
        }
    }
    // ANCHOR_END: attach

    fn vcpus(&self, kvm: &Kvm, config: &Config, events: &Sender<Event>) -> Result<Vec<Vcpu>> {
        let entry = match &config.payload {
            Payload::Linux(linux) => boot::load(&self.memory, linux)?,
            Payload::Builtin(hostile) => builtin::load(&self.memory, *hostile)?,
        };
        let features = cpu::features(kvm)?;
        let vcpu = |index: u8| {
            let fd = self.vm.create_vcpu(index.into()).context("no vCPU")?;
            cpu::set_features(&fd, &features, index, config.cpus)?;
            if matches!(config.payload, Payload::Linux(_)) {
                cpu::set_local_apic(&fd)?;
                cpu::set_memory_type(&fd)?;
            }
            if index == 0 {
                cpu::set_entry(&fd, &self.memory, entry)?;
            }
            Vcpu::spawn(fd, index, self.buses.clone(), events.clone())
        };
        (0..config.cpus).map(vcpu).collect()
    }
}

fn set_memory(vm: &VmFd, memory: &Memory) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let mapping = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is mapped as long as the machine's devices and vCPUs hold `memory`, and the VM
        // is gone before: its last descriptor is in a vCPU or device that does.
        unsafe { vm.set_user_memory_region(mapping) }.context("guest memory")?;
    }
    Ok(())
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine from its first instruction to its last: memory, vCPUs, devices.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use serde_json::{Value, json};
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::spec::feature;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::acpi::{self, MmioDevice};
use crate::boot;
use crate::builtin;
use crate::bus::lock;
use crate::config::{Config, Payload, Transport};
use crate::cpu::{self, CpuState, Entry};
use crate::disks::{OpenDisk, Source};
use crate::error::{Context, Error, Result};
use crate::event::Event;
use crate::interrupt::Router;
use crate::legacy::{self, Console, Output};
use crate::memory::{self, KVM_TSS, MMIO_SLOT, MMIO_WINDOW, Memory, PCI_WINDOW, PCI_WINDOW_SIZE};
use crate::pci::{ADDRESS_PORT, BarWindow, ConfigPorts, HostBridge, PciBus};
use crate::snapshot::{Chips, SavedDisk, Snapshot};
use crate::vcpu::{Buses, Vcpu, Vcpus};
use crate::virtio::mmio::MmioBlock;
use crate::virtio::pci::{BAR_SIZE, PciBlock};
use crate::virtio::vdpa::VdpaDisk;
use crate::virtio::{Block, MachineDisk, OwnDisk};

/// A disk's registers.
enum Attached {
    Pci {
        slot: usize,
        device: Arc<Mutex<PciBlock>>,
    },
    Mmio(Arc<Mutex<MmioBlock>>),
}

impl Attached {
    /// Does something with the device behind either transport.
    fn with<R>(&self, call: impl FnOnce(&mut Block) -> R) -> R {
        match self {
            Self::Pci { device, .. } => call(&mut lock(device).block),
            Self::Mmio(device) => call(&mut lock(device).block),
        }
    }

    fn save(&self) -> Result<SavedDisk> {
        Ok(match self {
            Self::Pci { slot, device } => SavedDisk::Pci {
                slot: *slot,
                device: lock(device).save()?,
            },
            Self::Mmio(device) => SavedDisk::Mmio(lock(device).save()?),
        })
    }

    fn restore(&self, saved: &SavedDisk) -> Result<()> {
        match (self, saved) {
            (Self::Pci { device, .. }, SavedDisk::Pci { device: saved, .. }) => {
                lock(device).restore(saved)
            }
            (Self::Mmio(device), SavedDisk::Mmio(saved)) => lock(device).restore(saved),
            _ => Err(Error::Snapshot("a disk on another transport".to_owned())),
        }
    }
}

/// A machine. Dropping it ends it.
pub struct Machine {
    vcpus: Arc<Vcpus>,
    /// By number.
    disks: BTreeMap<usize, Attached>,
    console: Arc<Mutex<Console>>,
    board: Board,
    config: Config,
    paused: bool,
}

impl Machine {
    /// Builds a machine; [`Machine::resume`] switches it on. What the guest prints goes to `output`. With a snapshot
    /// and its directory it continues where that was taken.
    pub fn new(
        config: &Config,
        disks: &[OpenDisk],
        output: Output,
        events: &Sender<Event>,
        from: Option<(&Snapshot, &Path)>,
    ) -> Result<Self> {
        let kvm = Kvm::new().map_err(Error::NoKvm)?;
        let mut board = Board::new(&kvm, config.memory)?;
        let exit_port = matches!(config.payload, Payload::Builtin(_));
        let saved = from.map(|(snapshot, _)| &snapshot.console);
        let ports = &board.buses.ports;
        let console = legacy::attach(ports, &board.router, output, events, exit_port, saved)?;
        let mut attached = BTreeMap::new();
        for disk in disks {
            attached.insert(disk.number, board.attach(disk)?);
        }
        legacy::write_firmware(&board.memory)?;
        acpi::write(&board.memory, config.cpus, &board.mmio)?;
        if let Some((_, directory)) = from {
            Snapshot::read_memory(directory, &board.memory)?;
        }
        let saved = from.map(|(snapshot, _)| &snapshot.vcpus[..]);
        board
            .vcpus
            .set(board.make_vcpus(&kvm, config, events, saved)?);
        let machine = Self {
            vcpus: board.vcpus.clone(),
            disks: attached,
            console,
            board,
            config: config.clone(),
            paused: true,
        };
        if let Some((snapshot, _)) = from {
            machine.restore(snapshot)?;
        }
        Ok(machine)
    }

    fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        if !snapshot.disks.keys().eq(self.disks.keys()) {
            return Err(Error::Snapshot("it was taken with other disks".to_owned()));
        }
        for (disk, saved) in self.disks.values().zip(snapshot.disks.values()) {
            disk.restore(saved)?;
        }
        lock(&self.board.config_ports).address = snapshot.pci_address;
        snapshot.chips.restore(&self.board.vm)
    }

    /// Lets the guest run.
    pub fn resume(&mut self) {
        self.paused = false;
        for disk in self.disks.values() {
            disk.with(Block::resume);
        }
        self.vcpus.resume();
    }

    // ANCHOR: pause
    /// Stops the guest, then its devices: nothing is in flight when this returns.
    pub fn pause(&mut self) -> Result<()> {
        self.vcpus.pause();
        self.paused = true;
        let paused = (self.disks.values()).try_for_each(|disk| disk.with(Block::pause));
        if paused.is_err() {
            self.resume();
        }
        paused
    }
    // ANCHOR_END: pause

    /// Writes a snapshot. A machine that runs is paused for it.
    pub fn snapshot(&mut self, directory: &Path) -> Result<()> {
        let running = !self.paused;
        if running {
            self.pause()?;
        }
        let result = self
            .save()
            .and_then(|snapshot| snapshot.write(directory, &self.board.memory));
        if running {
            self.resume();
        }
        result
    }

    fn save(&self) -> Result<Snapshot> {
        let chips = Chips::save(&self.board.vm)?;
        let console = lock(&self.console).save();
        let address = lock(&self.board.config_ports).address;
        let mut snapshot = Snapshot::new(self.config.clone(), chips, console, address);
        snapshot.vcpus = self.vcpus.save()?;
        for (number, disk) in &self.disks {
            snapshot.disks.insert(*number, disk.save()?);
        }
        Ok(snapshot)
    }

    /// Plugs a PCI disk in.
    pub fn add_disk(&mut self, disk: &OpenDisk) -> Result<()> {
        let attached = self.board.attach(disk)?;
        if !self.paused {
            attached.with(Block::resume);
        }
        self.disks.insert(disk.number, attached);
        Ok(())
    }

    /// Pulls a PCI disk.
    pub fn remove_disk(&mut self, number: usize) -> Result<()> {
        let Some(Attached::Pci { slot, .. }) = self.disks.get(&number) else {
            return Err(Error::Control(format!("no disk {number} on PCI")));
        };
        self.board.pci.set(*slot, None);
        if let Some(disk) = self.disks.remove(&number)
            && let Err(error) = disk.with(Block::pause)
        {
            // It is gone for the guest in any case, and with this for us.
            log::warn!("disk {number} was pulled at work: {error}");
        }
        Ok(())
    }

    /// What the disks did: counters of all queues together, by disk; of a vDPA device where it is, and the interrupts
    /// that passed through here.
    pub fn stats(&self) -> Value {
        let disks = self.disks.iter().map(|(number, disk)| {
            let (status, sectors, did, calls) = disk.with(|block| {
                let did = block.disk.report();
                let calls = block.calls_passed();
                (block.status(), block.disk.capacity(), did, calls)
            });
            json!({
                "disk": number,
                "status": status,
                "sectors": sectors,
                "counters": did,
                "interrupts": calls,
            })
        });
        json!({ "paused": self.paused, "disks": disks.collect::<Vec<_>>() })
    }

    /// Does something with the vDPA device of a disk.
    pub fn vdpa<R>(&self, number: usize, call: impl FnOnce(&VdpaDisk) -> Result<R>) -> Result<R> {
        let disk = self.disks.get(&number);
        let disk = disk.ok_or_else(|| Error::Control("no such disk".to_owned()))?;
        disk.with(|block| match block.disk.vdpa() {
            Some(disk) => call(disk),
            None => Err(Error::Control(format!("disk {number} is no vDPA device"))),
        })
    }

    pub fn console(&self) -> &Arc<Mutex<Console>> {
        &self.console
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // First: they use everything else.
        self.vcpus.end();
    }
}

/// Memory, buses and what KVM gives: where disks are plugged in.
struct Board {
    router: Arc<Router>,
    buses: Buses,
    pci: PciBus,
    config_ports: Arc<Mutex<ConfigPorts>>,
    mmio: Vec<MmioDevice>,
    vcpus: Arc<Vcpus>,
    vm: Arc<VmFd>,
    memory: Memory,
}

/// A new virtual machine. KVM gives up when a signal comes meanwhile, or work for an io_uring of a disk; then it is
/// asked again.
fn create_vm(kvm: &Kvm) -> std::result::Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            made => return made,
        }
    }
}

impl Board {
    fn new(kvm: &Kvm, bytes: u64) -> Result<Self> {
        let vm = Arc::new(create_vm(kvm).context("no virtual machine")?);
        let memory = memory::allocate(bytes)?;
        set_memory(&vm, &memory)?;
        vm.set_tss_address(KVM_TSS).context("the TSS")?;
        vm.create_irq_chip().context("interrupt controllers")?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).context("the timer")?;

        let (buses, pci) = (Buses::default(), PciBus::default());
        pci.set(0, Some(Arc::new(Mutex::new(HostBridge::new()))));
        let config_ports = Arc::new(Mutex::new(ConfigPorts {
            bus: pci.clone(),
            address: 0,
        }));
        buses
            .ports
            .insert(ADDRESS_PORT.into(), 8, config_ports.clone());
        let window = Arc::new(Mutex::new(BarWindow {
            bus: pci.clone(),
            base: PCI_WINDOW,
        }));
        buses.memory.insert(PCI_WINDOW, PCI_WINDOW_SIZE, window);
        Ok(Self {
            router: Arc::new(Router::new(vm.clone())?),
            buses,
            pci,
            config_ports,
            mmio: Vec::new(),
            vcpus: Arc::default(),
            memory,
            vm,
        })
    }

    /// Makes a device over a disk and puts its registers where the guest finds them.
    fn attach(&mut self, disk: &OpenDisk) -> Result<Attached> {
        let made: Box<dyn MachineDisk> = match &disk.source {
            Source::Own(source) => Box::new(OwnDisk(own_device(disk, source.clone())?)),
            Source::Vdpa(source) => {
                let (memory, vcpus) = (self.memory.clone(), self.vcpus.clone());
                let made = VdpaDisk::new(source.clone(), memory, vcpus);
                Box::new(made.map_err(|error| disk.error(&error))?)
            }
        };
        let memory = self.memory.clone();
        match disk.transport {
            Transport::Pci => {
                let slot = disk.slot.or_else(|| self.pci.free_slot());
                let slot = slot.ok_or_else(|| disk.error(&"no PCI slot is left"))?;
                let bar = PCI_WINDOW as u32 + slot as u32 * BAR_SIZE;
                let router = self.router.clone();
                let block = PciBlock::new(made, memory, self.vm.clone(), router, bar)?;
                let device = Arc::new(Mutex::new(block));
                self.pci.set(slot, Some(device.clone()));
                Ok(Attached::Pci { slot, device })
            }
            Transport::Mmio => {
                let base = MMIO_WINDOW + self.mmio.len() as u64 * MMIO_SLOT;
                let interrupt = self.router.line(None)?;
                let line = interrupt.number;
                let block = MmioBlock::new(made, memory, interrupt, &*self.vm, base)?;
                let block = Arc::new(Mutex::new(block));
                self.buses.memory.insert(base, MMIO_SLOT, block.clone());
                self.mmio.push(MmioDevice { base, line });
                Ok(Attached::Mmio(block))
            }
        }
    }

    /// The vCPUs, at the start of what is to be run or as `saved`.
    fn make_vcpus(
        &self,
        kvm: &Kvm,
        config: &Config,
        events: &Sender<Event>,
        saved: Option<&[CpuState]>,
    ) -> Result<Vec<Vcpu>> {
        let entry = match &config.payload {
            _ if saved.is_some() => Entry::default(),
            Payload::Linux(linux) => boot::load(&self.memory, linux)?,
            Payload::Builtin(task) => builtin::load(&self.memory, *task)?,
        };
        let features = cpu::features(kvm)?;
        let vcpu = |index: u8| {
            let fd = self.vm.create_vcpu(index.into()).context("no vCPU")?;
            cpu::set_features(&fd, &features, index, config.cpus)?;
            if let Some(saved) = saved {
                let state = saved.get(usize::from(index));
                let state = state.ok_or_else(|| Error::Snapshot("a vCPU less".to_owned()))?;
                cpu::restore(&fd, state)?;
            } else {
                if matches!(config.payload, Payload::Linux(_)) {
                    cpu::set_local_apic(&fd)?;
                    cpu::set_memory_type(&fd)?;
                }
                if index == 0 {
                    cpu::set_entry(&fd, &self.memory, entry)?;
                }
            }
            Vcpu::spawn(fd, index, self.buses.clone(), events.clone())
        };
        (0..config.cpus).map(vcpu).collect()
    }
}

fn own_device(disk: &OpenDisk, source: Arc<dyn Disk>) -> Result<Arc<Device>> {
    // ANCHOR: device
    let options = DeviceOptions {
        queues: disk.queues,
        serial: disk.serial(),
        transport_features: feature::RING_RESET,
        ..DeviceOptions::default()
    };
    let device = Device::new(source, options).map_err(|error| disk.error(&error))?;
    // ANCHOR_END: device
    Ok(device)
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

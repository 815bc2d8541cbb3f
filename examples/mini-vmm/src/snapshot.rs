// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine as files: `state.json` and `memory` in a directory. Disks are not copied: the
//! caller must copy them while the machine is paused.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use crate::config::Config;
use crate::cpu::CpuState;
use crate::error::{Context, Error, OnFile, Result};
use crate::legacy::SavedConsole;
use crate::memory::Memory;
use crate::virtio::mmio::SavedMmio;
use crate::virtio::pci::SavedPci;

/// Changes whenever the structures here do.
const VERSION: u32 = 3;
const STATE: &str = "state.json";
const MEMORY: &str = "memory";

/// Everything but memory and disks.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    pub config: Config,
    pub chips: Chips,
    pub console: SavedConsole,
    pub pci_address: u32,
    pub vcpus: Vec<CpuState>,
    /// By number.
    pub disks: BTreeMap<usize, SavedDisk>,
}

/// A disk's registers and where they were.
#[derive(Serialize, Deserialize)]
pub enum SavedDisk {
    Pci { slot: usize, device: SavedPci },
    Mmio(SavedMmio),
}

impl SavedDisk {
    /// How many queues it had.
    pub fn queues(&self) -> usize {
        match self {
            Self::Pci { device, .. } => device.block.queues(),
            Self::Mmio(device) => device.block.queues(),
        }
    }
}

/// What KVM emulates outside the vCPUs.
#[derive(Serialize, Deserialize)]
pub struct Chips {
    controllers: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl Chips {
    pub fn save(vm: &VmFd) -> Result<Self> {
        let controllers = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ];
        let controllers = controllers.into_iter().map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).context("interrupt controllers")?;
            Ok(chip)
        });
        let mut clock = vm.get_clock().context("the clock")?;
        // What it says about how it was read can't be set.
        clock.flags = 0;
        Ok(Self {
            controllers: controllers.collect::<Result<_>>()?,
            timer: vm.get_pit2().context("the timer")?,
            clock,
        })
    }

    pub fn restore(&self, vm: &VmFd) -> Result<()> {
        for chip in &self.controllers {
            vm.set_irqchip(chip).context("interrupt controllers")?;
        }
        vm.set_pit2(&self.timer).context("the timer")?;
        vm.set_clock(&self.clock).context("the clock")
    }
}

impl Snapshot {
    pub fn new(config: Config, chips: Chips, console: SavedConsole, pci_address: u32) -> Self {
        Self {
            version: VERSION,
            config,
            chips,
            console,
            pci_address,
            vcpus: Vec::new(),
            disks: BTreeMap::new(),
        }
    }

    /// Writes the files; what was there is replaced.
    pub fn write(&self, directory: &Path, memory: &Memory) -> Result<()> {
        fs::create_dir_all(directory).on("make", directory)?;
        let path = directory.join(MEMORY);
        let mut file = File::create(&path).on("create", &path)?;
        for region in memory.iter() {
            let len = region.len() as usize;
            memory
                .write_all_volatile_to(region.start_addr(), &mut file, len)
                .map_err(|error| Error::Snapshot(error.to_string()))?;
        }
        file.sync_all().on("write", &path)?;
        let path = directory.join(STATE);
        let file = File::create(&path).on("create", &path)?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer(&mut file, self)
            .map_err(std::io::Error::from)
            .on("write", &path)?;
        file.flush().on("write", &path)
    }

    /// Reads the state.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(STATE);
        let file = BufReader::new(File::open(&path).on("open", &path)?);
        let snapshot: Self = serde_json::from_reader(file)
            .map_err(|error| Error::Snapshot(format!("{}: {error}", path.display())))?;
        if snapshot.version != VERSION {
            return Err(Error::Snapshot(format!(
                "{} has version {}, this program reads {VERSION}",
                path.display(),
                snapshot.version
            )));
        }
        Ok(snapshot)
    }

    /// Reads the memory that belongs to it.
    pub fn read_memory(directory: &Path, memory: &Memory) -> Result<()> {
        let path = directory.join(MEMORY);
        let mut file = File::open(&path).on("open", &path)?;
        for region in memory.iter() {
            let len = region.len() as usize;
            memory
                .read_exact_volatile_from(region.start_addr(), &mut file, len)
                .map_err(|error| Error::Snapshot(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of both transports as a driver sees them, without KVM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod disk;
mod interrupts;
mod master;
mod paths;
mod stops;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::KvmIrqRouting;
use malformed_queues::testmem::Space;
use virtio_blk_core::device::{Device, DeviceOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_core::spec::{feature, status};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_driver::request::{ArenaConfig, Driver, Request};
use virtio_blk_driver::ring::RingConfig;
use virtio_queue::QueueState;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::mmio::MmioBlock;
use super::pci::PciBlock;
use super::{Block, MachineDisk, OwnDisk};
use crate::bus::{BusDevice, lock};
use crate::interrupt::{KvmEvents, Router};
use crate::memory::{Memory, allocate};
use crate::pci::PciFunction;

/// KVM's place: remembers which eventfds raise which interrupt. Unlike KVM it takes nothing out of them before it is
/// asked, so that others who wait for them may be faster.
#[derive(Default)]
struct NoKvm(Mutex<BTreeMap<u32, Vec<EventFd>>>);

type Asked = Result<(), kvm_ioctls::Error>;

impl KvmEvents for NoKvm {
    fn bind_kick(&self, _: &EventFd, _: u64, _: Option<u32>) -> Asked {
        Ok(())
    }

    fn unbind_kick(&self, _: &EventFd, _: u64, _: Option<u32>) -> Asked {
        Ok(())
    }

    fn bind_interrupt(&self, event: &EventFd, number: u32) -> Asked {
        let mut bound = lock(&self.0);
        bound
            .entry(number)
            .or_default()
            .push(event.try_clone().unwrap());
        Ok(())
    }

    fn unbind_interrupt(&self, _: &EventFd, number: u32) -> Asked {
        // What was bound last goes first: a line's own eventfd stays until the end.
        if let Some(bound) = lock(&self.0).get_mut(&number) {
            bound.pop();
        }
        Ok(())
    }

    fn route(&self, _: &KvmIrqRouting) -> Asked {
        Ok(())
    }
}

impl NoKvm {
    /// Whether this interrupt was raised since the last look.
    fn raised(&self, number: u32) -> bool {
        let bound = lock(&self.0);
        let mut events = bound.get(&number).unwrap().iter();
        events.any(|event| event.read().is_ok())
    }
}

/// The first message's interrupt: those below are lines.
const FIRST_MESSAGE: u32 = 24;

/// What drivers do with a transport's registers.
trait Registers {
    fn block(&mut self) -> &mut Block;
    fn status(&mut self) -> u8;
    fn set_status(&mut self, value: u8);
    fn set_features(&mut self, features: u128);
    fn enable(&mut self, index: u16, queue: &QueueState);
    fn reset_queue(&mut self, index: u16);
    /// The ready and the reset register of a queue.
    fn queue(&mut self, index: u16) -> (bool, bool);
    /// The register that says why there was an interrupt; takes it.
    fn cause(&mut self) -> u8;
}

impl Registers for PciBlock {
    fn block(&mut self) -> &mut Block {
        &mut self.block
    }

    fn status(&mut self) -> u8 {
        let mut byte = [0];
        self.read_bar(20, &mut byte);
        byte[0]
    }

    fn set_status(&mut self, value: u8) {
        self.write_bar(20, &[value]);
    }

    fn set_features(&mut self, features: u128) {
        for half in 0..4u32 {
            self.write_bar(8, &half.to_le_bytes());
            self.write_bar(12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
    }

    fn enable(&mut self, index: u16, queue: &QueueState) {
        self.write_bar(22, &index.to_le_bytes());
        self.write_bar(24, &queue.size.to_le_bytes());
        self.write_bar(32, &queue.desc_table.to_le_bytes());
        self.write_bar(40, &queue.avail_ring.to_le_bytes());
        self.write_bar(48, &queue.used_ring.to_le_bytes());
        self.write_bar(28, &[1, 0]);
    }

    fn reset_queue(&mut self, index: u16) {
        self.write_bar(22, &index.to_le_bytes());
        self.write_bar(58, &[1, 0]);
    }

    fn queue(&mut self, index: u16) -> (bool, bool) {
        self.write_bar(22, &index.to_le_bytes());
        let mut bytes = [0; 2];
        let mut read = |offset| {
            self.read_bar(offset, &mut bytes);
            u16::from_le_bytes(bytes) != 0
        };
        (read(28), read(58))
    }

    fn cause(&mut self) -> u8 {
        let mut byte = [0];
        self.read_bar(0x1000, &mut byte);
        byte[0]
    }
}

impl MmioBlock {
    fn set(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl Registers for MmioBlock {
    fn block(&mut self) -> &mut Block {
        &mut self.block
    }

    fn status(&mut self) -> u8 {
        self.get(0x70) as u8
    }

    fn set_status(&mut self, value: u8) {
        self.set(0x70, value.into());
    }

    fn set_features(&mut self, features: u128) {
        for half in 0..4 {
            self.set(0x24, half);
            self.set(0x20, (features >> (32 * half)) as u32);
        }
    }

    fn enable(&mut self, index: u16, queue: &QueueState) {
        self.set(0x30, index.into());
        self.set(0x38, queue.size.into());
        for (register, address) in [
            (0x80, queue.desc_table),
            (0x90, queue.avail_ring),
            (0xa0, queue.used_ring),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    fn reset_queue(&mut self, index: u16) {
        self.set(0x30, index.into());
        self.set(0xc0, 1);
    }

    fn queue(&mut self, index: u16) -> (bool, bool) {
        self.set(0x30, index.into());
        (self.get(0x44) != 0, self.get(0xc0) != 0)
    }

    fn cause(&mut self) -> u8 {
        let cause = self.get(0x60);
        self.set(0x64, cause);
        cause as u8
    }
}

/// Entries of the rings.
const SIZE: u16 = 256;

/// A device and its driver.
struct Guest<R> {
    registers: R,
    kvm: Arc<NoKvm>,
    memory: Memory,
    space: Space,
    /// By queue.
    drivers: Vec<Driver<Memory>>,
}

impl Guest<PciBlock> {
    /// On PCI, with memory decoding and Bus Master Enable on.
    fn pci(make: impl FnOnce(Memory) -> Box<dyn MachineDisk>) -> Self {
        let (memory, space) = guest_memory();
        let kvm = Arc::<NoKvm>::default();
        let router = Arc::new(Router::new(kvm.clone()).unwrap());
        let disk = make(memory.clone());
        let mut registers =
            PciBlock::new(disk, memory.clone(), kvm.clone(), router, 0xc000_8000).unwrap();
        registers.write_config(4, &[6, 0]);
        Self::new(registers, kvm, memory, space)
    }

    /// Switches messages on: a vector for each queue, then that of the configuration. They are masked.
    fn with_messages(&mut self) {
        // The first capability is that of MSI-X.
        self.registers.write_config(0x40 + 3, &[0x80]);
        for index in 0..self.queues() {
            self.registers.write_bar(22, &index.to_le_bytes());
            self.registers.write_bar(26, &index.to_le_bytes());
        }
        let config = self.queues();
        self.registers.write_bar(16, &config.to_le_bytes());
    }

    /// As [`Guest::start`] with one queue, and messages.
    fn start_with_messages(&mut self) {
        self.negotiate(0);
        self.drivers.clear();
        self.add_queue();
        self.with_messages();
        self.registers.set_status(0xf);
    }

    fn mask(&mut self, vector: u16, masked: bool) {
        let at = 0x4000 + u64::from(vector) * 16 + 12;
        self.registers
            .write_bar(at, &u32::from(masked).to_le_bytes());
    }

    /// The first 64 pending bits.
    fn pending(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.registers.read_bar(0x5000, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn raised(&self, vector: u16) -> bool {
        self.kvm.raised(FIRST_MESSAGE + u32::from(vector))
    }
}

impl Guest<MmioBlock> {
    fn mmio(make: impl FnOnce(Memory) -> Box<dyn MachineDisk>) -> Self {
        let (memory, space) = guest_memory();
        let kvm = Arc::<NoKvm>::default();
        let router = Arc::new(Router::new(kvm.clone()).unwrap());
        let line = router.line(None).unwrap();
        let disk = make(memory.clone());
        let registers = MmioBlock::new(disk, memory.clone(), line, &*kvm, 0xd000_0000).unwrap();
        Self::new(registers, kvm, memory, space)
    }
}

fn guest_memory() -> (Memory, Space) {
    const LEN: u64 = 16 << 20;
    let space = Space::new(&[(GuestAddress(0x10_0000), LEN - 0x10_0000)]);
    (allocate(LEN).unwrap(), space)
}

impl<R: Registers> Guest<R> {
    fn new(registers: R, kvm: Arc<NoKvm>, memory: Memory, space: Space) -> Self {
        Self {
            registers,
            kvm,
            memory,
            space,
            drivers: Vec::new(),
        }
    }

    fn queues(&mut self) -> u16 {
        self.registers.block().disk.device().queues()
    }

    /// Resets and negotiates these features with VERSION_1.
    fn negotiate(&mut self, features: u64) {
        self.registers.set_status(0);
        assert_eq!(self.registers.status(), 0);
        self.registers.set_status(status::ACKNOWLEDGE);
        self.registers
            .set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.registers
            .set_features(u128::from(features | feature::VERSION_1));
        self.registers.set_status(0xb);
        assert_eq!(self.registers.status(), 0xb, "the features are taken");
    }

    /// A driver of a new ring with so many entries.
    fn ring(&mut self, size: u16) -> Driver<Memory> {
        let slots = ArenaConfig {
            slots: 64,
            data_len: 512,
            ..ArenaConfig::default()
        };
        self.space
            .driver(self.memory.clone(), size, RingConfig::default(), slots)
            .unwrap()
    }

    /// Makes a ring for the next queue and enables it.
    fn add_queue(&mut self) {
        let driver = self.ring(SIZE);
        let index = self.drivers.len() as u16;
        self.registers.enable(index, &driver.state());
        self.drivers.push(driver);
    }

    /// A driver from the reset to DRIVER_OK, with so many queues.
    fn start(&mut self, features: u64, queues: usize) {
        self.negotiate(features);
        self.drivers.clear();
        (0..queues).for_each(|_| self.add_queue());
        self.registers.set_status(0xf);
    }

    /// Submits so many reads to a queue and kicks.
    fn submit(&mut self, queue: u16, count: u64) {
        let driver = &mut self.drivers[usize::from(queue)];
        for sector in 0..count {
            driver.submit(&Request::read(sector, 512)).unwrap();
        }
        driver.publish().unwrap();
        self.registers.block().kick(queue.into());
    }

    /// Waits for the next answer of a queue, which must be good.
    fn answer(&mut self, queue: u16) {
        let driver = &mut self.drivers[usize::from(queue)];
        let mut answer = None;
        eventually(|| {
            answer = driver.poll().unwrap();
            answer.is_some()
        });
        assert!(answer.unwrap().is_ok());
    }

    fn is_quiet(&mut self, queue: u16) -> bool {
        let driver = &mut self.drivers[usize::from(queue)];
        driver.poll().unwrap().is_none()
    }
}

/// Waits until something is so.
fn eventually(mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < end, "it never came");
        std::thread::yield_now();
    }
}

/// A device of our own over a disk.
fn own(disk: Arc<dyn Disk>, queues: u16) -> Box<dyn MachineDisk> {
    let options = DeviceOptions {
        queues,
        transport_features: feature::RING_RESET,
        ..DeviceOptions::default()
    };
    Box::new(OwnDisk(Device::new(disk, options).unwrap()))
}

/// A disk of 1 MiB.
fn memory_disk() -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::new(1 << 20).unwrap())
}

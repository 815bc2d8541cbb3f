// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! virtio over MMIO (virtio 1.4, 4.2): a page of registers and one interrupt line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::{Block, Interrupt, MachineDisk, SavedBlock, half, set_half};
use crate::bus::BusDevice;
use crate::error::{Context, Result};
use crate::interrupt::{KvmEvents, Line};
use crate::memory::Memory;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const BLOCK: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"vblk");

/// Register offsets.
mod reg {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    /// Without shared memory the length of each region reads as -1.
    pub const SHM_LEN_LOW: u64 = 0xb0;
    pub const SHM_BASE_HIGH: u64 = 0xbc;
    pub const QUEUE_RESET: u64 = 0xc0;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

const USED: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

/// One line for everything; what happened is in a register.
struct MmioInterrupt {
    line: Line,
    status: AtomicU32,
}

impl MmioInterrupt {
    // ANCHOR: raise
    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::AcqRel);
        self.line.trigger();
    }
    // ANCHOR_END: raise
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _index: u16) {
        self.raise(USED);
    }

    fn config(&self) {
        self.raise(CONFIG_CHANGED);
    }
}

/// The registers.
pub struct MmioBlock {
    pub block: Block,
    interrupt: Arc<MmioInterrupt>,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

/// A device as saved.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedMmio {
    pub block: SavedBlock,
    interrupt_status: u32,
    selectors: [u32; 3],
}

impl MmioBlock {
    /// A device whose registers will be at `base`.
    pub fn new(
        disk: Box<dyn MachineDisk>,
        memory: Memory,
        line: Line,
        vm: &dyn KvmEvents,
        base: u64,
    ) -> Result<Self> {
        let interrupt = Arc::new(MmioInterrupt {
            line,
            status: AtomicU32::new(0),
        });
        let block = Block::new(disk, memory, interrupt.clone())?;
        // ANCHOR: kicks
        // Kicks go to the queue's thread without the vCPU leaving the kernel.
        for (index, kick) in (0..).zip(block.kicks()) {
            vm.bind_kick(kick, base + reg::QUEUE_NOTIFY, Some(index))
                .context("no ioeventfd")?;
        }
        // ANCHOR_END: kicks
        Ok(Self {
            block,
            interrupt,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        })
    }

    fn selected(&self) -> u16 {
        // A number that no device has reads like one beyond the last queue.
        u16::try_from(self.queue_sel).unwrap_or(u16::MAX)
    }

    fn read_register(&mut self, register: u64) -> u32 {
        let resetting = self.block.is_queue_resetting(self.selected());
        let queue = self.block.queue(self.selected());
        match register {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => BLOCK,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => {
                half(self.block.disk.device().offered(), self.device_features_sel)
            }
            reg::QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size.into()),
            reg::QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            reg::INTERRUPT_STATUS => self.interrupt.status.load(Ordering::Acquire),
            reg::STATUS => self.block.status().into(),
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            // A reset is over when the write of it returns, unless the disk does not let go.
            reg::QUEUE_RESET => resetting.into(),
            reg::CONFIG_GENERATION => self.block.disk.device().config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u64, value: u32) {
        let index = self.selected();
        match register {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.block.acknowledge(self.driver_features_sel, value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_READY if value & 1 == 1 => self.block.enable_queue(index),
            reg::QUEUE_READY => self.block.reset_queue(index),
            reg::QUEUE_RESET if value & 1 == 1 => self.block.reset_queue(index),
            reg::QUEUE_NOTIFY => self.block.kick(value.into()),
            reg::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
            }
            reg::QUEUE_SIZE => {
                if let Some(queue) = self.block.queue_setup(index) {
                    queue.size = u16::try_from(value).unwrap_or(0);
                }
            }
            reg::STATUS => {
                let Ok(status) = u8::try_from(value) else {
                    return;
                };
                self.block.set_status(status);
                if status == 0 {
                    // After the queues have stopped (4.2.2.1): they raise interrupts until then.
                    self.interrupt.status.store(0, Ordering::Release);
                }
            }
            _ => {
                if let Some(queue) = self.block.queue_setup(index) {
                    let upper = register & 4 != 0;
                    match register & !4 {
                        reg::QUEUE_DESC => set_half(&mut queue.desc_table, upper, value),
                        reg::QUEUE_DRIVER => set_half(&mut queue.avail_ring, upper, value),
                        reg::QUEUE_DEVICE => set_half(&mut queue.used_ring, upper, value),
                        _ => {}
                    }
                }
            }
        }
    }

    /// The state of a paused device.
    pub fn save(&mut self) -> Result<SavedMmio> {
        Ok(SavedMmio {
            block: self.block.save()?,
            interrupt_status: self.interrupt.status.load(Ordering::Acquire),
            selectors: [
                self.device_features_sel,
                self.driver_features_sel,
                self.queue_sel,
            ],
        })
    }

    /// Takes over saved state.
    pub fn restore(&mut self, saved: &SavedMmio) -> Result<()> {
        self.block.restore(&saved.block)?;
        self.interrupt
            .status
            .store(saved.interrupt_status, Ordering::Release);
        [
            self.device_features_sel,
            self.driver_features_sel,
            self.queue_sel,
        ] = saved.selectors;
        Ok(())
    }
}

impl BusDevice for MmioBlock {
    /// Registers are 32 bits wide and are only answered as such (4.2.2.2); the configuration space has
    /// fields of all widths.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            return self.block.disk.device().read_config(offset, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            // A driver can't be told that it wrote where it must not.
            let _ = self.block.disk.device().write_config(offset, data);
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

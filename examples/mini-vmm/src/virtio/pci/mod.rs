// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! virtio over PCI, modern (virtio 1.4, 4.1): registers in one memory BAR, MSI-X.
//!
//! No INTx: every driver of a modern device can use MSI-X, and a level-triggered line would be most of the
//! code of this file.

mod interrupt;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{Block, MachineDisk, SavedBlock, half, set_half};
use crate::bus::lock;
use crate::error::{Error, Result};
use crate::interrupt::{KvmEvents, Router, Source};
use crate::memory::Memory;
use crate::pci::PciFunction;
use crate::pci::config::{self, ConfigSpace, Identity};
use crate::pci::msix::{ENTRY, Entry, Msix};
use interrupt::{NO_VECTOR, PciInterrupt, Vectors};

const VENDOR: u16 = 0x1af4;
/// 0x1040 plus the device's number: a device without legacy interface.
const BLOCK: u16 = 0x1042;
const MASS_STORAGE: u32 = 0x01_8000;

/// Size of the BAR and what is where in it.
pub const BAR_SIZE: u32 = 0x8000;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
const TABLE: u64 = 4 * PAGE;
const PENDING: u64 = 5 * PAGE;
/// Each queue has an address of its own to be kicked at.
const NOTIFY_MULTIPLIER: u32 = 4;

const CAP_VENDOR: u8 = 9;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
const COMMON_LEN: u64 = 64;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// The function.
pub struct PciBlock {
    pub block: Block,
    config: ConfigSpace,
    interrupt: Arc<PciInterrupt>,
    vm: Arc<dyn KvmEvents>,
    /// Where the kicks are bound now.
    bound: Option<u64>,
    msix_capability: usize,
    /// The capability through which the BAR can be accessed without mapping it (4.1.4.9).
    pci_capability: usize,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u16,
}

/// A device as saved.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedPci {
    pub block: SavedBlock,
    config: Vec<u8>,
    table: Vec<(Entry, bool)>,
    vectors: (u16, Vec<u16>),
    isr: u8,
    selectors: (u32, u32, u16),
}

impl PciBlock {
    /// A device whose BAR is at `bar` until the guest moves it.
    pub fn new(
        disk: Box<dyn MachineDisk>,
        memory: Memory,
        vm: Arc<dyn KvmEvents>,
        router: Arc<Router>,
        bar: u32,
    ) -> Result<Self> {
        let queues = disk.device().queues();
        let msix = Msix::new(queues + 1, router.clone())?;
        let interrupt = Arc::new(PciInterrupt {
            vectors: Mutex::new(Vectors {
                msix,
                config: NO_VECTOR,
                queues: vec![NO_VECTOR; queues.into()],
                sources: Vec::new(),
            }),
            isr: AtomicU8::new(0),
        });
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: BLOCK,
            class: MASS_STORAGE,
            revision: 1,
            subsystem: (VENDOR, BLOCK),
        });
        config.add_bar(BAR_SIZE, bar);
        let msix_capability = config.add_capability(CAP_MSIX, &msix_body(queues));
        config.allow(msix_capability + 3, &[0xc0]);
        let notify_len = u64::from(queues) * u64::from(NOTIFY_MULTIPLIER);
        for (kind, offset, len) in [
            (CFG_COMMON, COMMON, COMMON_LEN),
            (CFG_ISR, ISR, 1),
            (CFG_DEVICE, DEVICE, PAGE),
            (CFG_NOTIFY, NOTIFY, notify_len),
        ] {
            let mut body = virtio_body(kind, offset, len);
            if kind == CFG_NOTIFY {
                body.extend_from_slice(&NOTIFY_MULTIPLIER.to_le_bytes());
                // The capability's length includes what was added.
                body[0] += 4;
            }
            config.add_capability(CAP_VENDOR, &body);
        }
        let mut body = virtio_body(CFG_PCI, 0, 0);
        body[0] += 4;
        body.extend_from_slice(&[0; 4]);
        let pci_capability = config.add_capability(CAP_VENDOR, &body);
        // BAR number, offset, length; the data behind them is not stored.
        config.allow(pci_capability + 4, &[0xff]);
        config.allow(pci_capability + 8, &[0xff; 8]);
        let mut block = Block::new(disk, memory, interrupt.clone())?;
        // Until the guest lets it.
        block.set_dma(false);
        let sources = block
            .calls()
            .take(queues.into())
            .map(|event| Source::new(event.clone(), router.clone()));
        lock(&interrupt.vectors).sources = sources.collect();
        Ok(Self {
            block,
            config,
            interrupt,
            vm,
            bound: None,
            msix_capability,
            pci_capability,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        })
    }

    /// Makes everything agree with the configuration space after a write to it.
    fn config_written(&mut self) {
        let control = self.config.u16(self.msix_capability + 2);
        let master = self.config.is_bus_master();
        let mut vectors = lock(&self.interrupt.vectors);
        // Without Bus Master Enable a function sends no messages: they wait as behind a mask.
        let masked = control & MSIX_MASK != 0 || !master;
        vectors.msix.set_control(control & MSIX_ENABLE != 0, masked);
        vectors.bind_sources();
        drop(vectors);
        self.block.set_dma(master);
        self.bind_kicks(self.config.window().map(|(base, _)| base));
    }

    /// Tells KVM where the queues are kicked; `None`: nowhere.
    fn bind_kicks(&mut self, base: Option<u64>) {
        if self.bound == base {
            return;
        }
        for (index, kick) in (0u64..).zip(self.block.kicks()) {
            let at = |base| base + NOTIFY + index * u64::from(NOTIFY_MULTIPLIER);
            if let Some(old) = self.bound
                && let Err(error) = self.vm.unbind_kick(kick, at(old), None)
            {
                log::debug!("a kick was not bound: {error}");
            }
            // Another device at the same address has it already. The guest then kicks through a write.
            if let Some(new) = base
                && let Err(error) = self.vm.bind_kick(kick, at(new), None)
            {
                log::debug!("kicks take the slow way: {error}");
            }
        }
        self.bound = base;
    }

    /// The common configuration (4.1.4.3) as bytes.
    fn common(&mut self) -> [u8; COMMON_LEN as usize] {
        let mut bytes = [0; COMMON_LEN as usize];
        let mut put = |offset: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
                *to = *from;
            }
        };
        let resetting = self.block.is_queue_resetting(self.queue_sel);
        let device = self.block.disk.device();
        let offered = half(device.offered(), self.device_features_sel);
        let driver = half(self.block.driver_features, self.driver_features_sel);
        put(0, &self.device_features_sel.to_le_bytes());
        put(4, &offered.to_le_bytes());
        put(8, &self.driver_features_sel.to_le_bytes());
        put(12, &driver.to_le_bytes());
        put(18, &device.queues().to_le_bytes());
        put(21, &[device.config_generation() as u8]);
        put(22, &self.queue_sel.to_le_bytes());
        if let Some(queue) = self.block.queue(self.queue_sel) {
            put(24, &queue.size.to_le_bytes());
            put(28, &u16::from(queue.ready).to_le_bytes());
            put(30, &self.queue_sel.to_le_bytes());
            put(32, &queue.desc_table.to_le_bytes());
            put(40, &queue.avail_ring.to_le_bytes());
            put(48, &queue.used_ring.to_le_bytes());
            put(56, &self.queue_sel.to_le_bytes());
        }
        // A reset is over when the write of it returns, unless the disk does not let go.
        put(58, &u16::from(resetting).to_le_bytes());
        let vectors = lock(&self.interrupt.vectors);
        let queue = vectors.queues.get(usize::from(self.queue_sel));
        put(16, &vectors.config.to_le_bytes());
        put(26, &queue.copied().unwrap_or(NO_VECTOR).to_le_bytes());
        drop(vectors);
        put(20, &[self.block.status()]);
        bytes
    }

    /// A write to the common configuration: a field, or half of one that is 64 bits wide.
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let value = data
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        let index = self.queue_sel;
        match (offset, data.len()) {
            (0, 4) => self.device_features_sel = value as u32,
            (8, 4) => self.driver_features_sel = value as u32,
            (12, 4) => self
                .block
                .acknowledge(self.driver_features_sel, value as u32),
            (16, 2) => {
                let mut vectors = lock(&self.interrupt.vectors);
                vectors.config = vectors.known(value as u16);
                vectors.bind_sources();
            }
            (20, 1) => {
                self.block.set_status(value as u8);
                if value == 0 {
                    // After the queues have stopped: they raise interrupts until then.
                    self.reset_interrupts();
                }
            }
            (22, 2) => self.queue_sel = value as u16,
            (26, 2) => {
                let mut vectors = lock(&self.interrupt.vectors);
                let vector = vectors.known(value as u16);
                if let Some(place) = vectors.queues.get_mut(usize::from(index)) {
                    *place = vector;
                }
                vectors.bind_sources();
            }
            (28, 2) if value == 1 => self.block.enable_queue(index),
            (58, 2) if value == 1 => self.block.reset_queue(index),
            _ => self.write_queue(index, offset, data.len(), value),
        }
    }

    fn write_queue(&mut self, index: u16, offset: u64, len: usize, value: u64) {
        let Some(queue) = self.block.queue_setup(index) else {
            return;
        };
        let register = match offset & !4 {
            32 => &mut queue.desc_table,
            40 => &mut queue.avail_ring,
            48 => &mut queue.used_ring,
            _ => {
                if (offset, len) == (24, 2) {
                    queue.size = value as u16;
                }
                return;
            }
        };
        match len {
            4 => set_half(register, offset & 4 != 0, value as u32),
            8 if offset & 4 == 0 => *register = value,
            _ => {}
        }
    }

    fn reset_interrupts(&mut self) {
        let mut vectors = lock(&self.interrupt.vectors);
        vectors.config = NO_VECTOR;
        vectors.queues.fill(NO_VECTOR);
        vectors.msix.forget_pending();
        vectors.bind_sources();
        self.interrupt.isr.store(0, Ordering::Release);
    }

    /// What the access capability points to: an offset in the BAR, if it is a proper one.
    fn indirect(&self, len: usize) -> Option<u64> {
        let at = self.pci_capability;
        let (bar, offset) = (self.config.u32(at + 4) as u8, self.config.u32(at + 8));
        let wanted = self.config.u32(at + 12) as usize;
        let proper = bar == 0
            && matches!(wanted, 1 | 2 | 4)
            && len == wanted
            && (offset as usize).is_multiple_of(wanted)
            && offset < BAR_SIZE;
        proper.then_some(offset.into())
    }

    /// The state of a paused device.
    pub fn save(&mut self) -> Result<SavedPci> {
        let block = self.block.save()?;
        let vectors = lock(&self.interrupt.vectors);
        Ok(SavedPci {
            block,
            config: self.config.bytes().to_vec(),
            table: vectors.msix.save(),
            vectors: (vectors.config, vectors.queues.clone()),
            isr: self.interrupt.isr.load(Ordering::Acquire),
            selectors: (
                self.device_features_sel,
                self.driver_features_sel,
                self.queue_sel,
            ),
        })
    }

    /// Takes over saved state.
    pub fn restore(&mut self, saved: &SavedPci) -> Result<()> {
        self.block.restore(&saved.block)?;
        let mut vectors = lock(&self.interrupt.vectors);
        if saved.vectors.1.len() != vectors.queues.len() || saved.table.len() != vectors.msix.len()
        {
            let text = "vectors of another number of queues".to_owned();
            return Err(Error::Snapshot(text));
        }
        (vectors.config, vectors.queues) = saved.vectors.clone();
        vectors.msix.restore(&saved.table);
        drop(vectors);
        // Only what the guest could have written comes from the file.
        self.config.write(0, &saved.config);
        self.interrupt.isr.store(saved.isr, Ordering::Release);
        (
            self.device_features_sel,
            self.driver_features_sel,
            self.queue_sel,
        ) = saved.selectors;
        self.config_written();
        Ok(())
    }
}

impl PciFunction for PciBlock {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if offset == self.pci_capability + 16
            && let Some(at) = self.indirect(data.len())
        {
            return self.read_bar(at, data);
        }
        self.config.read(offset, data);
        // Interrupt Status (4.1.4.5.1), though no line comes of it.
        let at = config::STATUS.checked_sub(offset);
        if let Some(byte) = at.and_then(|at| data.get_mut(at))
            && !lock(&self.interrupt.vectors).msix.enabled
            && self.interrupt.isr.load(Ordering::Acquire) != 0
        {
            *byte |= config::STATUS_INTERRUPT;
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if offset == self.pci_capability + 16
            && let Some(at) = self.indirect(data.len())
        {
            return self.write_bar(at, data);
        }
        self.config.write(offset, data);
        self.config_written();
    }

    fn window(&self) -> Option<(u64, u64)> {
        self.config.window()
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset & !(PAGE - 1) {
            COMMON => {
                let bytes = self.common();
                for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset as usize)) {
                    *to = *from;
                }
            }
            // Reading acknowledges.
            ISR if offset == ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.interrupt.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE => self.block.disk.device().read_config(offset - DEVICE, data),
            TABLE => lock(&self.interrupt.vectors)
                .msix
                .read_table(offset - TABLE, data),
            PENDING => lock(&self.interrupt.vectors)
                .msix
                .read_pending(offset - PENDING, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match offset & !(PAGE - 1) {
            COMMON => self.write_common(offset, data),
            // A driver can't be told that it wrote where it must not.
            DEVICE => drop(self.block.disk.device().write_config(offset - DEVICE, data)),
            NOTIFY => self
                .block
                .kick((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)),
            TABLE => {
                let mut vectors = lock(&self.interrupt.vectors);
                vectors.msix.write_table(offset - TABLE, data);
                vectors.bind_sources();
            }
            _ => {}
        }
    }
}

impl Drop for PciBlock {
    fn drop(&mut self) {
        self.bind_kicks(None);
    }
}

/// Message control and the places of table and pending bits, both in BAR 0.
fn msix_body(queues: u16) -> Vec<u8> {
    // The size is given as one less: one vector per queue and one for the configuration.
    let control = queues.to_le_bytes();
    let (table, pending) = ((TABLE as u32).to_le_bytes(), (PENDING as u32).to_le_bytes());
    debug_assert!(u64::from(queues) < PAGE / ENTRY);
    [&control[..], &table, &pending].concat()
}

/// `struct virtio_pci_cap` behind its first two bytes.
fn virtio_body(kind: u8, offset: u64, len: u64) -> Vec<u8> {
    const LEN: u8 = 16;
    let (offset, len) = ((offset as u32).to_le_bytes(), (len as u32).to_le_bytes());
    [&[LEN, kind, 0, 0, 0, 0][..], &offset, &len].concat()
}

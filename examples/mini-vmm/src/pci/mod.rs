// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One PCI bus: configuration space through ports 0xcf8 and 0xcfc, memory BARs in one window.

pub mod config;
pub mod msix;

use std::sync::{Arc, Mutex};

use crate::bus::{BusDevice, lock};

/// Devices on the bus; the first is the host bridge.
pub const SLOTS: usize = 32;
pub const ADDRESS_PORT: u16 = 0xcf8;

/// A device with one function.
pub trait PciFunction: Send {
    /// `offset + data.len()` is at most 256.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// The addresses that its BAR decodes, while it does.
    fn window(&self) -> Option<(u64, u64)>;
    fn read_bar(&mut self, offset: u64, data: &mut [u8]);
    fn write_bar(&mut self, offset: u64, data: &[u8]);
}

type Slot = Option<Arc<Mutex<dyn PciFunction>>>;

/// The bus.
#[derive(Clone, Default)]
pub struct PciBus(Arc<Mutex<[Slot; SLOTS]>>);

impl PciBus {
    /// Plugs a device in, or with `None` out. Returns what was there.
    pub fn set(&self, slot: usize, function: Slot) -> Slot {
        match lock(&self.0).get_mut(slot) {
            Some(place) => std::mem::replace(place, function),
            None => None,
        }
    }

    /// The lowest slot without a device.
    pub fn free_slot(&self) -> Option<usize> {
        lock(&self.0).iter().position(Option::is_none)
    }

    fn get(&self, slot: usize) -> Slot {
        lock(&self.0).get(slot).cloned().flatten()
    }

    /// Whose BAR covers `address`.
    fn find(&self, address: u64) -> Option<(Arc<Mutex<dyn PciFunction>>, u64)> {
        let slots = lock(&self.0).clone();
        slots.into_iter().flatten().find_map(|function| {
            let (base, size) = lock(&function).window()?;
            let offset = address.checked_sub(base)?;
            (offset < size).then_some((function, offset))
        })
    }
}

/// Ports 0xcf8 to 0xcff.
pub struct ConfigPorts {
    pub bus: PciBus,
    pub address: u32,
}

impl ConfigPorts {
    /// The addressed function and the offset in its configuration space.
    fn target(&self, port: u64) -> Option<(Arc<Mutex<dyn PciFunction>>, usize)> {
        const ENABLE: u32 = 1 << 31;
        // Bus 0, function 0.
        const ELSEWHERE: u32 = 0x00ff_0700;
        if self.address & ENABLE == 0 || self.address & ELSEWHERE != 0 {
            return None;
        }
        let function = self.bus.get((self.address >> 11 & 31) as usize)?;
        Some((
            function,
            (self.address & 0xfc) as usize + (port & 3) as usize,
        ))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
            return;
        }
        data.fill(0xff);
        let fits = offset >= 4 && offset + data.len() as u64 <= 8;
        if let Some((function, offset)) = self.target(offset).filter(|_| fits) {
            lock(&function).read_config(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address = u32::from_le_bytes(address);
            return;
        }
        let fits = offset >= 4 && offset + data.len() as u64 <= 8;
        if let Some((function, offset)) = self.target(offset).filter(|_| fits) {
            lock(&function).write_config(offset, data);
        }
    }
}

/// The window of all memory BARs, at `base`.
pub struct BarWindow {
    pub bus: PciBus,
    pub base: u64,
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.bus.find(self.base + offset) {
            Some((function, offset)) => lock(&function).read_bar(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.bus.find(self.base + offset) {
            lock(&function).write_bar(offset, data);
        }
    }
}

/// The host bridge: something for the guest to find at slot 0.
pub struct HostBridge(pub config::ConfigSpace);

impl HostBridge {
    pub fn new() -> Self {
        // Intel's 440FX, which guests know not to worry about.
        Self(config::ConfigSpace::new(config::Identity {
            vendor: 0x8086,
            device: 0x1237,
            class: 0x06_0000,
            revision: 0,
            subsystem: (0, 0),
        }))
    }
}

impl PciFunction for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn window(&self) -> Option<(u64, u64)> {
        None
    }

    fn read_bar(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&mut self, _offset: u64, _data: &[u8]) {}
}

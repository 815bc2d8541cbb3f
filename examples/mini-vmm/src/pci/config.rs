// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A configuration space: 256 bytes, and which bits of them can be written.

/// The bits of the command register that do something.
const COMMAND: usize = 4;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const COMMAND_WRITABLE: [u8; 2] = [0b110, 0b100];
/// Where the status register is.
pub const STATUS: usize = 6;
/// Its bit that says that an interrupt is pending without messages.
pub const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

/// What a device is.
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    /// Class, subclass and interface.
    pub class: u32,
    pub revision: u8,
    pub subsystem: (u16, u16),
}

/// One function's registers.
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Where the next capability goes.
    free: usize,
    /// The byte that is to point to it.
    link: usize,
    bar_size: u32,
}

impl ConfigSpace {
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; 256],
            writable: [0; 256],
            free: FIRST_CAPABILITY,
            link: CAPABILITIES,
            bar_size: 0,
        };
        let class = identity.class << 8 | u32::from(identity.revision);
        space.set(0, &identity.vendor.to_le_bytes());
        space.set(2, &identity.device.to_le_bytes());
        space.set(8, &class.to_le_bytes());
        space.set(0x2c, &identity.subsystem.0.to_le_bytes());
        space.set(0x2e, &identity.subsystem.1.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a 32-bit memory BAR 0 of `size` bytes, a power of two, at `address`.
    pub fn add_bar(&mut self, size: u32, address: u32) {
        self.bar_size = size;
        self.set(BAR0, &address.to_le_bytes());
        // The bits below the size read as 0 whatever is written: that is how it is probed.
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability with these bytes after its two of header. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        self.set(self.link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        self.set(STATUS, &[STATUS_CAPABILITIES]);
        at
    }

    /// Sets bytes, whatever the guest may write.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }

    /// Lets the guest write these bits.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(offset).zip(mask) {
            *to = *from;
        }
    }

    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let range = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((to, mask), from) in range.zip(data) {
            *to = *to & !mask | from & mask;
        }
    }

    /// Two bytes.
    pub fn u16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Four bytes.
    pub fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Whether the function may access memory and send messages (Bus Master Enable).
    pub fn is_bus_master(&self) -> bool {
        self.u16(COMMAND) & u16::from(COMMAND_BUS_MASTER) != 0
    }

    /// Start and size of BAR 0 while memory decoding is on.
    pub fn window(&self) -> Option<(u64, u64)> {
        let on = self
            .bytes
            .get(COMMAND)
            .is_some_and(|c| c & COMMAND_MEMORY != 0);
        let base = self.u32(BAR0) & !15;
        (on && self.bar_size != 0).then_some((base.into(), self.bar_size.into()))
    }

    /// All of it, for a snapshot.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

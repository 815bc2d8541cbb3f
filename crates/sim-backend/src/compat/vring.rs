// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device side of a split ring as the kernel's vringh has it.
//!
//! Not the core's ring, which resolves a ring once, refuses what is misaligned, latches errors, and returns
//! malformed chains. This one translates each access, trusts the driver's indices, and loses a chain
//! that it can't read: the behaviour that drivers of the kernel's simulator meet.

use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::ring::MAX_QUEUE_SIZE;

use super::access::{Fault, Iov, Stream, read, read_u16, write, write_u16};
use crate::address_space::MissTable;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
/// Most buffers of a chain in one direction: the kernel's list of them is doubled until an allocation of 4 MiB, the
/// largest it makes, is full.
const MAX_BUFFERS: usize = 262_144;
/// Offset of the index and of the first entry, in both rings.
const IDX: u64 = 2;
const ENTRIES: u64 = 4;
const DESC_SIZE: u32 = 16;

/// A split ring.
#[derive(Clone, Debug)]
pub(super) struct Vring {
    num: u32,
    desc: u64,
    avail: u64,
    used: u64,
    pub(super) last_avail: u16,
    last_used: u16,
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Where a walk through descriptors is.
enum Level {
    Direct,
    /// In an indirect table; the descriptor of the ring to continue at, if any.
    Indirect(Option<u16>),
}

impl Vring {
    /// As after a reset: at address 0.
    pub(super) const fn new(num: u32) -> Self {
        Self {
            num,
            desc: 0,
            avail: 0,
            used: 0,
            last_avail: 0,
            last_used: 0,
        }
    }

    /// Takes over what the driver set, and continues at the index where it stands. A number of descriptors that
    /// can't be leaves everything else as it was.
    pub(super) const fn init(&mut self, num: u32, desc: u64, avail: u64, used: u64) {
        let last_avail = self.last_avail;
        // Larger ones don't get through vhost.
        if num.is_power_of_two() && num <= MAX_QUEUE_SIZE as u32 {
            *self = Self {
                num,
                desc,
                avail,
                used,
                last_avail,
                last_used: last_avail,
            };
        }
        // Requests in flight can't be taken over.
        self.last_used = last_avail;
    }

    const fn slot(&self, index: u16) -> u64 {
        (index as u32 & (self.num - 1)) as u64
    }

    /// Takes the next chain. `None` if there is none.
    ///
    /// # Errors
    /// Ring or chain can't be read or make no sense. The head was consumed if it was read.
    pub(super) fn next_chain(
        &mut self,
        memory: &MissTable,
        readable: &mut Stream,
        writable: &mut Stream,
    ) -> Result<Option<u16>, Fault> {
        let ring = memory.table();
        if read_u16(ring, self.avail.wrapping_add(IDX))? == self.last_avail {
            return Ok(None);
        }
        let entry = ENTRIES + 2 * self.slot(self.last_avail);
        let head = read_u16(ring, self.avail.wrapping_add(entry))?;
        if u32::from(head) >= self.num {
            return Err(Fault);
        }
        self.last_avail = self.last_avail.wrapping_add(1);
        self.walk(memory, head, readable, writable)?;
        Ok(Some(head))
    }

    fn walk(
        &self,
        memory: &MissTable,
        head: u16,
        readable: &mut Stream,
        writable: &mut Stream,
    ) -> Result<(), Fault> {
        readable.clear();
        writable.clear();
        let mut level = Level::Direct;
        let (mut table, mut entries) = (self.desc, self.num);
        let mut index = u32::from(head);
        // Of the ring's table, and of the indirect one it is in.
        let (mut direct, mut indirect) = (0, 0);
        loop {
            let at = table.wrapping_add(u64::from(index * DESC_SIZE));
            let desc = match level {
                Level::Direct => descriptor(memory.table(), at),
                Level::Indirect(_) => descriptor(memory, at),
            }?;
            if desc.flags & INDIRECT != 0 {
                // Whether it was negotiated is not looked at.
                if matches!(level, Level::Indirect(_)) || !desc.len.is_multiple_of(DESC_SIZE) {
                    return Err(Fault);
                }
                level = Level::Indirect((desc.flags & NEXT != 0).then_some(desc.next));
                (table, entries, index) = (desc.addr, desc.len / DESC_SIZE, 0);
                continue;
            }
            match level {
                Level::Direct => direct += 1,
                Level::Indirect(_) => indirect += 1,
            }
            if direct > self.num || indirect > entries {
                // A loop. Indirect tables may have more than the ring, and a descriptor that names one is not counted.
                return Err(Fault);
            }
            let stream = if desc.flags & WRITE != 0 {
                &mut *writable
            } else if writable.iov.is_empty() {
                &mut *readable
            } else {
                return Err(Fault);
            };
            if stream.iov.len() == MAX_BUFFERS {
                return Err(Fault);
            }
            stream.iov.push(Iov {
                addr: desc.addr,
                len: desc.len as usize,
            });
            index = if desc.flags & NEXT != 0 {
                u32::from(desc.next)
            } else if let Level::Indirect(Some(next @ 1..)) = level {
                // One whose next descriptor is 0 ends there.
                level = Level::Direct;
                indirect = 0;
                (table, entries) = (self.desc, self.num);
                u32::from(next)
            } else {
                return Ok(());
            };
            if index >= entries {
                return Err(Fault);
            }
        }
    }

    /// Returns a chain.
    pub(super) fn complete(&mut self, ring: &IotlbTable, head: u16, len: u32) -> Result<(), Fault> {
        let entry = ENTRIES + 8 * self.slot(self.last_used);
        let element = u64::from(head) | u64::from(len) << 32;
        write(ring, self.used.wrapping_add(entry), &element.to_le_bytes())?;
        let idx = self.last_used.wrapping_add(1);
        write_u16(ring, self.used.wrapping_add(IDX), idx)?;
        self.last_used = idx;
        Ok(())
    }

    /// Whether the driver wants to be notified of it.
    pub(super) fn needs_notify(&self, ring: &IotlbTable) -> bool {
        // The index must be visible before the driver's wish is read.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        read_u16(ring, self.avail).is_ok_and(|flags| flags & NO_INTERRUPT == 0)
    }
}

fn descriptor<M: vm_memory::GuestMemory>(memory: &M, at: u64) -> Result<Descriptor, Fault> {
    let mut bytes = [0; DESC_SIZE as usize];
    read(memory, at, &mut bytes)?;
    let value = u128::from_le_bytes(bytes);
    Ok(Descriptor {
        addr: value as u64,
        len: (value >> 64) as u32,
        flags: (value >> 96) as u16,
        next: (value >> 112) as u16,
    })
}

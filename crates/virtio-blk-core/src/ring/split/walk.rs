// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains of any shape: descriptor by descriptor, through indirect tables. And those that can't be taken: where their
//! last writable byte lies.

use super::areas::DESC_SIZE;
use super::{DESC_F_INDIRECT, DESC_F_NEXT, Descriptor, SplitRing};
use crate::memory::{DeviceMemory, GuestMap, Permissions, read_16};
use crate::ring::chain::Parts;
use crate::ring::{Chain, ChainError, LastWritable, MAX_CHAIN, Segment};

/// Bytes of an indirect table that can be addressed: a `next` field has 16 bits.
const MAX_TABLE: usize = (u16::MAX as usize + 1) * DESC_SIZE;

impl SplitRing {
    /// Reads the chain from `head` on, which was checked, into `chain`, each descriptor once.
    #[inline(always)]
    pub(super) fn walk<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), ChainError> {
        let mut steps = 0;
        let result = self.walk_counted(map, head, chain, &mut steps);
        self.steps = steps;
        result
    }

    #[inline(always)]
    fn walk_counted<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
        steps: &mut u32,
    ) -> Result<(), ChainError> {
        let segments = chain.clear(head);
        let mut parts = Parts::default();
        let mut index = head;
        for direct in 0..self.size {
            let desc = self.direct(index).ok_or(ChainError::NextIndex)?;
            *steps += 1;
            if desc.flags & DESC_F_INDIRECT != 0 {
                let limit = MAX_CHAIN - u32::from(direct);
                self.walk_table(map, &desc, limit, segments, &mut parts, steps)?;
                return chain.set(parts);
            }
            parts.append(segments, desc.segment(), desc.is_writable())?;
            if desc.flags & DESC_F_NEXT == 0 {
                return chain.set(parts);
            }
            index = desc.next;
            if index >= self.size {
                return Err(ChainError::NextIndex);
            }
        }
        Err(ChainError::TooLong)
    }

    /// A descriptor of the queue's own table.
    #[inline(always)]
    fn direct(&self, index: u16) -> Option<Descriptor> {
        let halves = self.areas.desc.read_16(usize::from(index) * DESC_SIZE);
        halves.map(Descriptor::new)
    }

    fn walk_table<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        table: &Descriptor,
        limit: u32,
        segments: &mut Vec<Segment>,
        parts: &mut Parts,
        steps: &mut u32,
    ) -> Result<(), ChainError> {
        let count = self.open_table(map, table)?;
        let pieces = &self.table;
        // An entry is looked for piece by piece. There are at most 2^8 + 1 of 4096 bytes in a table.
        let step = pieces.len() as u32;
        let mut index = 0u16;
        for _ in 0..limit {
            if usize::from(index) >= count {
                return Err(ChainError::NextIndex);
            }
            let desc = Descriptor::new(read_entry(pieces, usize::from(index) * DESC_SIZE));
            *steps = steps.saturating_add(step);
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(ChainError::IndirectMisplaced);
            }
            parts.append(segments, desc.segment(), desc.is_writable())?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(ChainError::TooLong)
    }

    /// Looks an indirect table up. Returns how many descriptors it has that can be named.
    #[inline(always)]
    fn open_table<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        table: &Descriptor,
    ) -> Result<usize, ChainError> {
        // The device ignores the WRITE flag here (virtio 1.4, 2.7.5.3.2).
        if !self.indirect {
            return Err(ChainError::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(ChainError::IndirectMisplaced);
        }
        let len = table.len as usize;
        if len == 0 || !len.is_multiple_of(DESC_SIZE) {
            return Err(ChainError::IndirectLength(table.len));
        }
        let count = (len / DESC_SIZE).min(MAX_TABLE / DESC_SIZE);
        let pieces = &mut self.table;
        pieces.clear();
        map.translate(
            table.addr,
            count * DESC_SIZE,
            Permissions::Read,
            |base, len| {
                pieces.push((base, len));
            },
        )?;
        Ok(count)
    }
}

/// Reads the 16 bytes at `offset` of a table in pieces. The table covers them (checked by the caller).
#[inline]
fn read_entry(pieces: &[(*mut u8, usize)], mut offset: usize) -> [u64; 2] {
    let mut entry = [0; DESC_SIZE];
    let mut done = 0;
    for &(base, len) in pieces {
        if offset >= len {
            offset -= len;
            continue;
        }
        if done == 0 && len - offset >= DESC_SIZE {
            // SAFETY: `base` is mapped for `len` bytes.
            return unsafe { read_16(base.wrapping_add(offset)) };
        }
        let part = (len - offset).min(DESC_SIZE - done);
        if let Some(target) = entry.get_mut(done..done + part) {
            // SAFETY: `base` is mapped for `len` bytes; `target` is private.
            unsafe {
                std::ptr::copy_nonoverlapping(base.wrapping_add(offset), target.as_mut_ptr(), part)
            };
        }
        done += part;
        offset = 0;
        if done == DESC_SIZE {
            break;
        }
    }
    let (low, high) = entry.split_at(8);
    let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    [half(low), half(high)]
}

/// The last writable byte so far.
#[derive(Default)]
struct Writable {
    last: Option<u64>,
    bytes: u64,
    /// The descriptors of the table at hand that were looked at: in a loop, the status is at its end.
    seen: Vec<bool>,
    /// What was done, in descriptors read, and how many of those a look at one in the table at hand counts.
    steps: u32,
    step: u32,
}

impl Writable {
    /// Begins a table of so many descriptors, in so many pieces of memory.
    fn begin(&mut self, count: usize, pieces: usize) {
        self.step = u32::try_from(pieces).unwrap_or(u32::MAX);
        // Sixty-four flags are cleared in the time of one look.
        self.steps = self.steps.saturating_add((count / 64) as u32);
        self.seen.clear();
        self.seen.resize(count, false);
    }

    /// Whether a descriptor is in the table, and was not looked at before.
    fn is_new(&mut self, index: u16) -> bool {
        self.steps = self.steps.saturating_add(self.step);
        let seen = self.seen.get_mut(usize::from(index));
        seen.is_some_and(|seen| !std::mem::replace(seen, true))
    }

    /// Whether another descriptor follows, and which.
    fn look_at(&mut self, desc: &Descriptor) -> Option<u16> {
        if desc.is_writable() && desc.segment().len != 0 {
            let segment = desc.segment();
            self.bytes += u64::from(segment.len);
            self.last = Some(segment.addr.wrapping_add(u64::from(segment.len) - 1));
        }
        (desc.flags & DESC_F_NEXT != 0).then_some(desc.next)
    }
}

impl SplitRing {
    /// See [`Ring::last_writable`](super::Ring::last_writable).
    #[cold]
    pub(super) fn find_last_writable<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
    ) -> LastWritable {
        let mut writable = Writable::default();
        let ended = self.look_through(map, head, &mut writable);
        self.steps = self.steps.saturating_add(writable.steps);
        match writable.last {
            Some(addr) => LastWritable::At {
                addr,
                alone: writable.bytes == 1,
            },
            None if ended => LastWritable::Nowhere,
            None => LastWritable::Unknown,
        }
    }

    /// Whether the chain's end was found.
    fn look_through<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        writable: &mut Writable,
    ) -> bool {
        writable.begin(self.size.into(), 1);
        let mut index = head;
        while writable.is_new(index) {
            let Some(desc) = self.direct(index) else {
                return false;
            };
            if desc.flags & DESC_F_INDIRECT != 0 {
                return self.look_through_table(map, &desc, writable);
            }
            match writable.look_at(&desc) {
                Some(next) => index = next,
                None => return true,
            }
        }
        false
    }

    fn look_through_table<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        table: &Descriptor,
        writable: &mut Writable,
    ) -> bool {
        let Ok(count) = self.open_table(map, table) else {
            return false;
        };
        writable.begin(count, self.table.len());
        let mut index = 0u16;
        while writable.is_new(index) {
            let desc = Descriptor::new(read_entry(&self.table, usize::from(index) * DESC_SIZE));
            if desc.flags & DESC_F_INDIRECT != 0 {
                return false;
            }
            match writable.look_at(&desc) {
                Some(next) => index = next,
                None => return true,
            }
        }
        false
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules for malformed queues as the plainest device that follows them; and, on request, one that
//! breaks one of them.
#![allow(dead_code, missing_docs)]

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use malformed_queues::{Health, Setup, Subject};
use virtio_blk_driver::ring::SplitLayout;
use virtio_blk_driver::wire::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, S_IOERR, S_OK, S_UNSUPP, T_FLUSH,
    T_GET_ID, T_IN, T_OUT,
};
use virtio_blk_driver::{Memory, Segment};
use vm_memory::GuestAddress;

/// Most descriptors of a chain, whatever the queue's size.
const MAX_CHAIN: u16 = 32768;

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    ReadableAfterWritable,
    NestedIndirect,
    IndirectAlways,
    IndirectThenNext,
    PartialTable,
    LimitsToQueueSize,
    IgnoresBadHead,
    IgnoresIndexJump,
    IgnoresDuplicate,
    NoRingCheck,
    StopsAtBrokenChain,
    SwallowsBrokenChain,
    NoStatusOnBrokenChain,
    ReturnsUnanswerable,
    LenOnError,
    LenTooSmall,
    StatusFirst,
    ShortHeader,
    RejectsEmpty,
    WritesHeader,
    UnknownIsIoerr,
    UsesInReverse,
    SetsUsedFlags,
}

struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// A chain whose structure is broken.
#[derive(Default)]
struct Broken {
    /// Its last writable byte, as far as it could be read.
    status: Option<GuestAddress>,
    /// Whether that is the only one.
    alone: bool,
    /// Whether it was read to its end.
    ended: bool,
}

impl Broken {
    fn new(writable: &[Segment], ended: bool) -> Self {
        let last = writable.iter().rfind(|s| s.len > 0);
        let status = last.map(|s| GuestAddress(s.addr.0.wrapping_add(u64::from(s.len) - 1)));
        let bytes: u64 = writable.iter().map(|s| u64::from(s.len)).sum();
        Self {
            status,
            alone: bytes == 1,
            ended,
        }
    }
}

/// What was broken before the chain's end.
enum End {
    Fine,
    Wrong,
}

pub struct Model<'m> {
    mem: &'m dyn Memory,
    disk: Vec<u8>,
    flaw: Flaw,
    setup: Option<(Setup, SplitLayout)>,
    avail: u16,
    used: u16,
    latched: bool,
    held: Vec<Chain>,
}

impl<'m> Model<'m> {
    pub fn new(mem: &'m dyn Memory, flaw: Flaw) -> Self {
        Self {
            mem,
            disk: vec![0x77; 64 * 512],
            flaw,
            setup: None,
            avail: 0,
            used: 0,
            latched: false,
            held: Vec::new(),
        }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn latch(&mut self) -> Health {
        self.latched = true;
        Health::Latched
    }

    fn put_used(&mut self, layout: &SplitLayout, head: u16, len: u32) {
        let slot = u64::from(self.used % layout.size());
        let at = GuestAddress(layout.used().0 + 4 + 8 * slot);
        let element = u64::from(head) | u64::from(len) << 32;
        // May fail only with `NoRingCheck`.
        let _ = self.mem.write_at(at, &element.to_le_bytes());
        self.used = self.used.wrapping_add(1);
        let index = GuestAddress(layout.used().0 + 2);
        let _ = self.mem.store_u16(index, self.used, Ordering::Release);
    }

    fn desc(&self, table: u64, index: u64) -> Option<Descriptor> {
        let mut bytes = [0; 16];
        let addr = table.checked_add(16 * index)?;
        self.mem.read_at(GuestAddress(addr), &mut bytes).ok()?;
        Some(Descriptor::from_bytes(bytes))
    }

    fn parse(&self, setup: &Setup, layout: &SplitLayout, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let (mut table, mut len) = (layout.desc().0, u64::from(layout.size()));
        let (mut index, mut inside, mut steps, mut total) = (u64::from(head), false, 0, 0_u64);
        let limit = if self.has(Flaw::LimitsToQueueSize) {
            layout.size()
        } else {
            MAX_CHAIN
        };
        let mut end = End::Fine;
        let mut seen = HashSet::new();
        loop {
            let cut = |chain: &Chain| Err(Broken::new(&chain.writable, false));
            if index >= len || !seen.insert((table, inside, index)) {
                return cut(&chain);
            }
            let Some(desc) = self.desc(table, index) else {
                return cut(&chain);
            };
            let has_next = desc.flags & DESC_F_NEXT != 0;
            if desc.flags & DESC_F_INDIRECT != 0 {
                if (!setup.indirect && !self.has(Flaw::IndirectAlways))
                    || (inside && !self.has(Flaw::NestedIndirect))
                    || (has_next && !self.has(Flaw::IndirectThenNext))
                    || desc.len == 0
                    || (desc.len % 16 != 0 && !self.has(Flaw::PartialTable))
                    || !self.is_mapped(desc.addr, desc.len)
                {
                    return cut(&chain);
                }
                (table, len) = (desc.addr.0, u64::from(desc.len / 16));
                (index, inside) = (0, true);
                continue;
            }
            steps += 1;
            if steps > limit {
                return cut(&chain);
            }
            total += u64::from(desc.len);
            if total > u64::from(u32::MAX) || desc.len == 0 && self.has(Flaw::RejectsEmpty) {
                end = End::Wrong;
            }
            let segment = Segment::new(desc.addr, desc.len);
            if desc.flags & DESC_F_WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() || self.has(Flaw::ReadableAfterWritable) {
                chain.readable.push(segment);
            } else {
                end = End::Wrong;
            }
            if !has_next {
                let read = Broken::new(&chain.writable, true);
                return match (end, read.status) {
                    (End::Fine, Some(at)) if !self.mem.is_mapped(at, 1) => Err(read),
                    (End::Fine, _) => Ok(chain),
                    (End::Wrong, _) => Err(read),
                };
            }
            index = u64::from(desc.next);
        }
    }

    /// Whether a table is there, as far as it can be named.
    fn is_mapped(&self, addr: GuestAddress, len: u32) -> bool {
        self.has(Flaw::PartialTable) || self.mem.is_mapped(addr, (len as usize).min(16 << 16))
    }

    /// Returns a chain that can't be taken. `false`: the driver can't be told.
    fn refuse(&mut self, layout: &SplitLayout, head: u16, broken: &Broken) -> bool {
        let told = match broken.status {
            Some(at) if self.has(Flaw::NoStatusOnBrokenChain) => self.mem.is_mapped(at, 1),
            Some(at) => self.mem.write_at(at, &[S_IOERR]).is_ok(),
            None => broken.ended,
        };
        if told || self.has(Flaw::ReturnsUnanswerable) {
            self.put_used(layout, head, u32::from(broken.alone));
            return true;
        }
        false
    }

    /// Executes a request, whose status byte is there; returns the used length.
    fn execute(&mut self, chain: &Chain) -> u32 {
        let readable: Vec<u8>;
        let writable: u64 = chain.writable.iter().map(|s| u64::from(s.len)).sum();
        let Some(last) = chain.writable.iter().rfind(|s| s.len > 0) else {
            return 0;
        };
        let mut status_at = GuestAddress(last.addr.0.wrapping_add(u64::from(last.len) - 1));
        if self.has(Flaw::StatusFirst) {
            status_at = last.addr;
        }
        let data_in = writable - 1;
        let status = match self.gather(&chain.readable) {
            Some(bytes) => {
                readable = bytes;
                self.serve(chain, &readable, data_in)
            }
            None => S_IOERR,
        };
        if self.has(Flaw::WritesHeader) && chain.readable.first().is_some_and(|s| s.len == 16) {
            let _ = self.mem.write_at(chain.readable[0].addr, &[0xff]);
        }
        self.mem.write_at(status_at, &[status]).unwrap();
        match status {
            S_OK if self.has(Flaw::LenTooSmall) => writable as u32 - 1,
            S_OK => writable as u32,
            _ if data_in == 0 || self.has(Flaw::LenOnError) => writable as u32,
            _ => 0,
        }
    }

    /// What can be read, if all of it can, and if it is not more than any good request has.
    fn gather(&self, list: &[Segment]) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        for segment in list.iter().filter(|s| s.len > 0) {
            if all.len() + segment.len as usize > self.disk.len() + 16 {
                return None;
            }
            let mut bytes = vec![0; segment.len as usize];
            self.mem.read_at(segment.addr, &mut bytes).ok()?;
            all.extend(bytes);
        }
        Some(all)
    }

    fn serve(&mut self, chain: &Chain, readable: &[u8], data_in: u64) -> u8 {
        let mut header = [0; 16];
        if readable.len() < 16 && !self.has(Flaw::ShortHeader) {
            return S_IOERR;
        }
        let seen = readable.len().min(16);
        header[..seen].copy_from_slice(&readable[..seen]);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let range = |len: u64| {
            let start = sector.checked_mul(512)?;
            let end = start.checked_add(len)?;
            let good = len.is_multiple_of(512) && end <= 64 * 512;
            good.then_some(start as usize..end as usize)
        };
        match kind {
            T_IN => match range(data_in) {
                Some(range) => self.scatter(chain, &self.disk[range]),
                None => S_IOERR,
            },
            T_OUT => {
                let data = &readable[seen..];
                match range(data.len() as u64) {
                    Some(range) => {
                        self.disk[range].copy_from_slice(data);
                        S_OK
                    }
                    None => S_IOERR,
                }
            }
            T_FLUSH => S_OK,
            T_GET_ID => self.scatter(chain, b"a model device\0\0\0\0\0\0"),
            _ if self.has(Flaw::UnknownIsIoerr) => S_IOERR,
            _ => S_UNSUPP,
        }
    }

    fn scatter(&self, chain: &Chain, mut data: &[u8]) -> u8 {
        for segment in &chain.writable {
            let (part, rest) = data.split_at(data.len().min(segment.len as usize));
            if self.mem.write_at(segment.addr, part).is_err() {
                return S_IOERR;
            }
            data = rest;
        }
        S_OK
    }

    fn finish(&mut self, layout: &SplitLayout, chain: &Chain) {
        let len = self.execute(chain);
        self.put_used(layout, chain.head, len);
    }
}

impl Subject for Model<'_> {
    fn start(&mut self, setup: &Setup) -> Health {
        let state = &setup.state;
        let layout = SplitLayout::new(
            state.size,
            GuestAddress(state.desc_table),
            GuestAddress(state.avail_ring),
            GuestAddress(state.used_ring),
        );
        let Ok(layout) = layout else {
            return self.latch();
        };
        let size = state.size;
        let mapped = [
            (layout.desc(), SplitLayout::desc_len(size)),
            (layout.avail(), SplitLayout::avail_len(size)),
            (layout.used(), SplitLayout::used_len(size)),
        ]
        .iter()
        .all(|(addr, len)| self.mem.is_mapped(*addr, *len as usize));
        if (!mapped && !self.has(Flaw::NoRingCheck)) || size > state.max_size {
            return self.latch();
        }
        (self.avail, self.used) = (state.next_avail, state.next_used);
        if self.has(Flaw::SetsUsedFlags) {
            let _ = self.mem.store_u16(layout.used(), 1, Ordering::Relaxed);
        }
        self.setup = Some((*setup, layout));
        Health::Running
    }

    fn service(&mut self) -> Health {
        let Some((setup, layout)) = self.setup else {
            return Health::Latched;
        };
        for chain in std::mem::take(&mut self.held) {
            self.finish(&layout, &chain);
        }
        if self.latched {
            return Health::Latched;
        }
        let idx_at = GuestAddress(layout.avail().0 + 2);
        let mut batch = Vec::new();
        loop {
            let Ok(index) = self.mem.load_u16(idx_at, Ordering::Acquire) else {
                return Health::Running;
            };
            let ahead = index.wrapping_sub(self.avail);
            if ahead > layout.size() && !self.has(Flaw::IgnoresIndexJump) {
                return self.latch();
            }
            if ahead == 0 || ahead > layout.size() {
                break;
            }
            let slot = u64::from(self.avail % layout.size());
            let at = GuestAddress(layout.avail().0 + 4 + 2 * slot);
            let Ok(head) = self.mem.load_u16(at, Ordering::Relaxed) else {
                return Health::Running;
            };
            if head >= layout.size() {
                if self.has(Flaw::IgnoresBadHead) {
                    self.avail = self.avail.wrapping_add(1);
                    continue;
                }
                return self.latch();
            }
            let duplicate = self.held.iter().any(|chain| chain.head == head);
            if duplicate && !self.has(Flaw::IgnoresDuplicate) {
                return self.latch();
            }
            self.avail = self.avail.wrapping_add(1);
            match self.parse(&setup, &layout, head) {
                Ok(chain) if setup.deferred => self.held.push(chain),
                Ok(chain) => batch.push(chain),
                Err(_) if self.has(Flaw::StopsAtBrokenChain) => return self.latch(),
                Err(_) if self.has(Flaw::SwallowsBrokenChain) => {}
                Err(broken) if self.refuse(&layout, head, &broken) => {}
                Err(_) => return self.latch(),
            }
        }
        if self.has(Flaw::UsesInReverse) {
            batch.reverse();
        }
        for chain in batch {
            self.finish(&layout, &chain);
        }
        Health::Running
    }
}

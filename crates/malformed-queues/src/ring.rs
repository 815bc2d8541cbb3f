// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue in which everything can be set.

use std::sync::atomic::Ordering;

use virtio_queue::QueueState;
use vm_memory::GuestAddress;

use crate::testmem::{OutOfSpace, Space};
use virtio_blk_driver::ring::SplitLayout;
use virtio_blk_driver::wire::{DESC_LEN, Descriptor, S_UNWRITTEN, T_IN, header};
use virtio_blk_driver::{AccessError, Memory};

/// Offsets of the index and of the first entry in the available and the used ring.
const IDX: u64 = 2;
const ENTRIES: u64 = 4;

/// The address `offset` bytes behind `base`.
const fn behind(base: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(base.0 + offset)
}

/// Why a hostile queue could not be built.
#[derive(Debug, thiserror::Error)]
pub enum HostileError {
    /// Its own memory can't be accessed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The test memory is too small.
    #[error(transparent)]
    Space(#[from] OutOfSpace),
}

/// A chain that was made available, and what may be checked when it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its first descriptor.
    pub head: u16,
    /// Where its status byte lies, if it has one that is mapped.
    pub status: Option<GuestAddress>,
    /// The most bytes the device can have written from the first writable one on without a gap.
    pub max_len: u32,
}

/// A queue in guest memory in which every field can be set to anything.
///
/// Indices given for ring entries are free running and taken modulo the size. Buffers come from a
/// [`Space`]; the device is told what [`HostileRing::state`] says, which may have nothing to do with
/// where the ring really is.
pub struct HostileRing<'m> {
    mem: &'m dyn Memory,
    layout: SplitLayout,
    space: Space,
    /// What the device is told. It starts out right.
    pub state: QueueState,
    /// Whether the device is told that indirect descriptors are negotiated. On at first.
    pub indirect: bool,
    /// Whether the device should keep requests in flight (see [`Setup::deferred`](crate::Setup::deferred)).
    pub deferred: bool,
    planned: Vec<Planned>,
    /// What the device must not change.
    readable: Vec<(GuestAddress, u32)>,
    next: u16,
    raw_index: bool,
}

impl<'m> HostileRing<'m> {
    /// A clean queue of `size` descriptors whose indices start at `start`.
    ///
    /// # Errors
    /// [`HostileError`] if there is no room or no memory.
    ///
    /// # Panics
    /// If `size` is not a queue size.
    pub fn new(
        mem: &'m dyn Memory,
        mut space: Space,
        size: u16,
        start: u16,
        event_idx: bool,
    ) -> Result<Self, HostileError> {
        let layout = space.layout(size)?;
        let state = QueueState {
            max_size: size,
            next_avail: start,
            next_used: start,
            event_idx_enabled: event_idx,
            size,
            ready: true,
            desc_table: layout.desc().0,
            avail_ring: layout.avail().0,
            used_ring: layout.used().0,
        };
        let zeroes = vec![0; SplitLayout::footprint(size) as usize];
        mem.write_at(layout.desc(), &zeroes)?;
        mem.store_u16(behind(layout.avail(), IDX), start, Ordering::Relaxed)?;
        mem.store_u16(behind(layout.used(), IDX), start, Ordering::Relaxed)?;
        Ok(Self {
            mem,
            layout,
            space,
            state,
            indirect: true,
            deferred: false,
            planned: Vec::new(),
            readable: Vec::new(),
            next: start,
            raw_index: false,
        })
    }

    /// Descriptors in the table.
    pub const fn size(&self) -> u16 {
        self.layout.size()
    }

    /// The place of a free-running index in a ring.
    fn slot(&self, index: u16) -> u64 {
        u64::from(index % self.size())
    }

    /// Where the ring really is.
    pub const fn layout(&self) -> &SplitLayout {
        &self.layout
    }

    /// The memory.
    pub fn memory(&self) -> &'m dyn Memory {
        self.mem
    }

    /// A page that is not mapped.
    pub const fn unmapped(&self) -> GuestAddress {
        self.space.unmapped()
    }

    /// The end of mapped memory.
    pub const fn edge(&self) -> GuestAddress {
        self.space.edge()
    }

    /// Sets a descriptor.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn descriptor(&mut self, index: u16, desc: Descriptor) -> Result<(), HostileError> {
        let at = behind(self.layout.desc(), DESC_LEN * self.slot(index));
        Ok(self.mem.write_at(at, &desc.to_bytes())?)
    }

    /// Sets descriptors from `first` on, each linked to the next one, and the last as it is.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn chain(&mut self, first: u16, list: &[Descriptor]) -> Result<(), HostileError> {
        for (index, desc) in (first..).zip(linked(list, first)) {
            self.descriptor(index, desc)?;
        }
        Ok(())
    }

    /// Puts an indirect table of descriptors, each linked to the next one and the last as it is, into
    /// memory. Returns the descriptor that points to it.
    ///
    /// # Errors
    /// [`HostileError`].
    pub fn table(&mut self, list: &[Descriptor]) -> Result<Descriptor, HostileError> {
        let len = DESC_LEN as u32 * list.len() as u32;
        let addr = self.space.take(len.into(), 16)?;
        self.table_at(addr, list)?;
        Ok(Descriptor::indirect(addr, len))
    }

    /// Puts an indirect table at `addr`, as [`HostileRing::table`] does.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn table_at(
        &mut self,
        addr: GuestAddress,
        list: &[Descriptor],
    ) -> Result<(), HostileError> {
        let bytes: Vec<u8> = linked(list, 0).flat_map(Descriptor::to_bytes).collect();
        self.mem.write_at(addr, &bytes)?;
        self.readable.push((addr, bytes.len() as u32));
        Ok(())
    }

    /// Sets the entry of the available ring that `index` stands for.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn avail_entry(&mut self, index: u16, head: u16) -> Result<(), HostileError> {
        let at = behind(self.layout.avail(), ENTRIES + 2 * self.slot(index));
        Ok(self.mem.store_u16(at, head, Ordering::Relaxed)?)
    }

    /// Sets the available index, and gives up following it.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn avail_idx(&mut self, index: u16) -> Result<(), HostileError> {
        self.raw_index = true;
        Ok(self.store_avail_idx(index)?)
    }

    fn store_avail_idx(&self, index: u16) -> Result<(), AccessError> {
        let at = behind(self.layout.avail(), IDX);
        self.mem.store_u16(at, index, Ordering::Release)
    }

    /// Sets the flags of the available ring.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn avail_flags(&mut self, flags: u16) -> Result<(), HostileError> {
        let at = self.layout.avail();
        Ok(self.mem.store_u16(at, flags, Ordering::Relaxed)?)
    }

    /// Sets `used_event`.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn used_event(&mut self, index: u16) -> Result<(), HostileError> {
        let at = behind(self.layout.avail(), ENTRIES + 2 * u64::from(self.size()));
        Ok(self.mem.store_u16(at, index, Ordering::Relaxed)?)
    }

    /// The available index up to which [`HostileRing::offer`] got.
    pub const fn next(&self) -> u16 {
        self.next
    }

    /// Makes a chain available and notes what to check.
    ///
    /// # Errors
    /// [`HostileError::Access`].
    pub fn offer(&mut self, planned: Planned) -> Result<(), HostileError> {
        self.avail_entry(self.next, planned.head)?;
        self.planned.push(planned);
        self.next = self.next.wrapping_add(1);
        if !self.raw_index {
            self.store_avail_idx(self.next)?;
        }
        Ok(())
    }

    /// The chains made available.
    pub fn planned(&self) -> &[Planned] {
        &self.planned
    }

    /// Whether the available index was set by hand.
    pub(super) const fn has_raw_index(&self) -> bool {
        self.raw_index
    }

    /// A buffer the device may read, with this content.
    ///
    /// # Errors
    /// [`HostileError`].
    pub fn readable(&mut self, bytes: &[u8]) -> Result<Descriptor, HostileError> {
        let addr = self.space.take(bytes.len() as u64, 16)?;
        self.mem.write_at(addr, bytes)?;
        self.readable.push((addr, bytes.len() as u32));
        Ok(Descriptor::readable(addr, bytes.len() as u32))
    }

    /// A buffer the device may write, filled with [`S_UNWRITTEN`].
    ///
    /// # Errors
    /// [`HostileError`].
    pub fn writable(&mut self, len: u32) -> Result<Descriptor, HostileError> {
        let addr = self.space.take(len.into(), 16)?;
        self.mem.write_at(addr, &vec![S_UNWRITTEN; len as usize])?;
        Ok(Descriptor::writable(addr, len))
    }

    /// A header of a read of sector 0.
    ///
    /// # Errors
    /// [`HostileError`].
    pub fn read_header(&mut self) -> Result<Descriptor, HostileError> {
        self.readable(&header(T_IN, 0, 0))
    }

    /// Where what the device must not change lies: descriptors, available ring, readable buffers.
    pub(super) fn untouchable(&self) -> Vec<(GuestAddress, u32)> {
        let size = self.layout.size();
        let mut list = self.readable.clone();
        list.push((self.layout.desc(), SplitLayout::desc_len(size) as u32));
        list.push((self.layout.avail(), SplitLayout::avail_len(size) as u32));
        list
    }

    /// The used index.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn used_idx(&self) -> Result<u16, AccessError> {
        self.mem
            .load_u16(behind(self.layout.used(), IDX), Ordering::Acquire)
    }

    /// The flags of the used ring.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn used_flags(&self) -> Result<u16, AccessError> {
        let at = self.layout.used();
        self.mem.load_u16(at, Ordering::Relaxed)
    }

    /// The used entry that `index` stands for: id and length.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn used_entry(&self, index: u16) -> Result<(u32, u32), AccessError> {
        let mut bytes = [0; 8];
        self.mem.read_at(
            behind(self.layout.used(), ENTRIES + 8 * self.slot(index)),
            &mut bytes,
        )?;
        let element = u64::from_le_bytes(bytes);
        Ok((element as u32, (element >> 32) as u32))
    }
}

/// Each descriptor of `list` linked to the next, which starts at index `first`; the last as it is.
fn linked(list: &[Descriptor], first: u16) -> impl Iterator<Item = Descriptor> {
    let last = list.len().saturating_sub(1);
    list.iter().enumerate().map(move |(index, desc)| {
        if index < last {
            desc.then(first.wrapping_add(index as u16).wrapping_add(1))
        } else {
            *desc
        }
    })
}

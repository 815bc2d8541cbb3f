// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One shadow queue: its ring in the window, and what requests need beside their data.

use virtio_blk_driver::ring::{RingConfig, RingError, SplitDriver, SplitLayout};
use virtio_blk_driver::wire::{self, DESC_LEN, Descriptor, HEADER_LEN, S_UNWRITTEN};
use virtio_blk_driver::{Memory, Segment};
use vm_memory::GuestAddress;

use super::iova_window::IovaWindow;
use super::limits::Limits;
use crate::PathError;

/// Alignment of shadow queues and bounce buffers.
const PAGE: u64 = 4096;
/// Places in a slot.
const RANGE: u64 = HEADER_LEN as u64;
const LIFETIME: u64 = 32;
const STATUS: u64 = 40;
const TABLE: u64 = 64;

/// Where the parts of a shadow queue lie in its memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShadowLayout {
    /// Entries of the ring, and slots: each chain has that of its head.
    pub(super) size: u16,
    /// Data segments of a request.
    pub(super) segments: usize,
    /// Bounce buffers, and the bytes of each.
    pub(super) bounces: u16,
    pub(super) bounce_len: u32,
}

impl ShadowLayout {
    const fn slots_at(&self) -> u64 {
        SplitLayout::footprint(self.size).next_multiple_of(64)
    }

    const fn stride(&self) -> u64 {
        (TABLE + DESC_LEN * (self.segments as u64 + 2)).next_multiple_of(64)
    }

    const fn bounces_at(&self) -> u64 {
        (self.slots_at() + self.stride() * self.size as u64).next_multiple_of(PAGE)
    }

    /// Bytes of a shadow queue.
    pub(super) const fn len(&self) -> u64 {
        self.bounces_at() + self.bounces as u64 * (self.bounce_len as u64).next_multiple_of(PAGE)
    }
}

/// The addresses of one request's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot(u64);

impl Slot {
    pub(super) const fn header(self) -> Segment {
        Segment::new(GuestAddress(self.0), HEADER_LEN)
    }

    pub(super) const fn range(self) -> Segment {
        Segment::new(GuestAddress(self.0 + RANGE), 16)
    }

    pub(super) const fn lifetime(self) -> Segment {
        Segment::new(GuestAddress(self.0 + LIFETIME), 6)
    }

    pub(super) const fn status(self) -> Segment {
        Segment::new(GuestAddress(self.0 + STATUS), 1)
    }

    pub(super) const fn table(self) -> GuestAddress {
        GuestAddress(self.0 + TABLE)
    }
}

/// A read or write of one data segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct OneSegment {
    /// Whether the device writes the segment: a read.
    pub(super) is_read: bool,
    pub(super) sector: u64,
    pub(super) data: Segment,
}

/// Descriptors of such a request: header, data, status.
const ONE_SEGMENT: u16 = 3;
/// Bytes of a slot up to the end of its table.
const ONE_SEGMENT_LEN: usize = TABLE as usize + DESC_LEN as usize * ONE_SEGMENT as usize;

/// A shadow queue. It belongs to the path while no queue of the disk has it.
pub(super) struct ShadowQueue {
    /// Index of the device's queue.
    pub(super) index: u16,
    base: u64,
    layout: ShadowLayout,
    /// Where the first slot is, and the bytes from one to the next.
    slots: u64,
    stride: u64,
    pub(super) ring: SplitDriver,
    pub(super) indirect: bool,
    /// Whether header and status are in the table of a slot, as a request of one segment has them.
    prepared: Vec<bool>,
    bounces: Vec<u16>,
}

impl ShadowQueue {
    pub(super) fn new(
        index: u16,
        base: u64,
        layout: ShadowLayout,
        window: &IovaWindow,
    ) -> Result<Self, PathError> {
        let refuse = |why: String| PathError::Queue { index, why };
        let rings = SplitLayout::contiguous(layout.size, GuestAddress(base))
            .map_err(|error| refuse(error.to_string()))?;
        let ring = SplitDriver::new(window, rings, RingConfig::default())
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            index,
            base,
            slots: base + layout.slots_at(),
            stride: layout.stride(),
            layout,
            ring,
            indirect: false,
            prepared: vec![false; layout.size.into()],
            bounces: (0..layout.bounces).collect(),
        })
    }

    /// As new, for a device that was reset and took these `features`.
    pub(super) fn reset(
        &mut self,
        window: &IovaWindow,
        event_idx: bool,
        indirect: bool,
    ) -> Result<(), RingError> {
        let config = RingConfig {
            event_idx,
            indirect,
            start: 0,
        };
        if self.ring.config() == config {
            self.ring.reset(window, 0)?;
        } else {
            self.ring = SplitDriver::new(window, *self.ring.layout(), config)?;
        }
        self.indirect = indirect;
        self.prepared.fill(false);
        self.bounces.clear();
        self.bounces.extend(0..self.layout.bounces);
        Ok(())
    }

    /// Data segments of one request, for what was negotiated.
    pub(super) fn segments(&self, limits: &Limits) -> usize {
        if self.indirect {
            limits.segments
        } else {
            limits.segments.min(usize::from(self.layout.size) - 2)
        }
    }

    /// The places of the slot of `head`.
    #[inline]
    pub(super) const fn slot(&self, head: u16) -> Slot {
        Slot(self.slots + self.stride * head as u64)
    }

    /// Takes a bounce buffer.
    pub(super) fn take_bounce(&mut self) -> Option<u16> {
        self.bounces.pop()
    }

    pub(super) fn give_bounce(&mut self, bounce: u16) {
        self.bounces.push(bounce);
    }

    /// Where a bounce buffer lies.
    pub(super) const fn bounce(&self, index: u16) -> u64 {
        let stride = (self.layout.bounce_len as u64).next_multiple_of(PAGE);
        self.base + self.layout.bounces_at() + stride * index as u64
    }

    /// Bytes of a bounce buffer.
    pub(super) const fn bounce_len(&self) -> u32 {
        self.layout.bounce_len
    }

    /// Writes header and unwritten status into the slot of `head`, for a chain of any shape.
    pub(super) fn prepare(
        &mut self,
        window: &IovaWindow,
        head: u16,
        header: &[u8; 16],
    ) -> Result<(), RingError> {
        if let Some(prepared) = self.prepared.get_mut(usize::from(head)) {
            *prepared = false;
        }
        let slot = self.slot(head);
        window.write_at(slot.header().addr, header)?;
        window.write_at(slot.status().addr, &[S_UNWRITTEN])?;
        Ok(())
    }

    /// Puts a request into the ring, which must have indirect tables. `None`: there is no room.
    #[inline(always)]
    pub(super) fn add_one(
        &mut self,
        window: &IovaWindow,
        request: &OneSegment,
    ) -> Result<Option<u16>, RingError> {
        let Some(head) = self.ring.next_head() else {
            return Ok(None);
        };
        let slot = self.slot(head);
        let (Some(at), Some(prepared)) = (
            window.host(slot.0, ONE_SEGMENT_LEN),
            self.prepared.get_mut(usize::from(head)),
        ) else {
            return Ok(None);
        };
        if !*prepared {
            *prepared = true;
            write_ends(window, slot)?;
        }
        let Segment { addr, len } = request.data;
        let (kind, data, writable) = if request.is_read {
            (wire::T_IN, Descriptor::writable(addr, len), len + 1)
        } else {
            (wire::T_OUT, Descriptor::readable(addr, len), 1)
        };
        let header = wire::header(kind, 0, request.sector);
        let at_data = at.wrapping_add((TABLE + DESC_LEN) as usize);
        // SAFETY: `at` has `ONE_SEGMENT_LEN` bytes in the window, and the device has nothing of the slot: its head is free.
        unsafe {
            at.cast::<[u8; 16]>().write(header);
            at_data.cast::<[u8; 16]>().write(data.then(2).to_bytes());
            at.wrapping_add(STATUS as usize).write(S_UNWRITTEN);
        }
        let table = slot.table();
        let added = self.ring.add_table(window, table, ONE_SEGMENT, writable, 0);
        added.map(Some)
    }

    /// The status byte.
    #[inline]
    pub(super) fn status(&self, window: &IovaWindow, slot: Slot) -> u8 {
        let mut byte = [S_UNWRITTEN];
        match window.read_at(slot.status().addr, &mut byte) {
            Ok(()) => byte[0],
            Err(_) => S_UNWRITTEN,
        }
    }
}

/// Writes the descriptors of header and status into a slot's table, where a request of one segment has them.
#[cold]
fn write_ends(window: &IovaWindow, slot: Slot) -> Result<(), RingError> {
    let (header, status) = (slot.header(), slot.status());
    let first = Descriptor::readable(header.addr, header.len).then(1);
    let last = Descriptor::writable(status.addr, status.len);
    let table = slot.table();
    window.write_at(table, &first.to_bytes())?;
    window.write_at(GuestAddress(table.0 + 2 * DESC_LEN), &last.to_bytes())?;
    Ok(())
}

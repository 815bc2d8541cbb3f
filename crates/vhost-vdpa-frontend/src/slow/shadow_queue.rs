// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One shadow queue: its ring in the window, and what requests need beside their data.

use virtio_blk_driver::ring::{RingConfig, RingError, SplitDriver, SplitLayout};
use virtio_blk_driver::wire::{DESC_LEN, HEADER_LEN, S_UNWRITTEN};
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
    /// Entries of the ring, and slots.
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

/// A shadow queue. It belongs to the path while no queue of the disk has it.
pub(super) struct ShadowQueue {
    /// Index of the device's queue.
    pub(super) index: u16,
    base: u64,
    layout: ShadowLayout,
    pub(super) ring: SplitDriver,
    pub(super) indirect: bool,
    slots: Vec<u16>,
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
            layout,
            ring,
            indirect: false,
            slots: (0..layout.size).collect(),
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
        self.slots.clear();
        self.slots.extend(0..self.layout.size);
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

    /// The places of slot `index`.
    #[inline]
    pub(super) const fn slot(&self, index: u16) -> Slot {
        Slot(self.base + self.layout.slots_at() + self.layout.stride() * index as u64)
    }

    /// Takes a slot.
    #[inline]
    pub(super) fn take_slot(&mut self) -> Option<u16> {
        self.slots.pop()
    }

    #[inline]
    pub(super) fn give_slot(&mut self, slot: u16) {
        self.slots.push(slot);
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

    /// Writes header and unwritten status.
    #[inline]
    pub(super) fn prepare(
        &self,
        window: &IovaWindow,
        slot: Slot,
        header: &[u8; 16],
    ) -> Result<(), RingError> {
        window.write_at(slot.header().addr, header)?;
        window.write_at(slot.status().addr, &[S_UNWRITTEN])?;
        Ok(())
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

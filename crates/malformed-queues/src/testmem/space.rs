// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocation of guest memory.

use vm_memory::GuestAddress;

use virtio_blk_driver::Memory;
use virtio_blk_driver::request::{Arena, ArenaConfig, Driver};
use virtio_blk_driver::ring::{RingConfig, SplitLayout};

/// There is no room for a buffer in any one range of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {0} contiguous bytes are left in the test memory: make it larger")]
pub struct OutOfSpace(pub u64);

/// The mapped ranges of a guest memory, to take buffers from. Nothing is given back.
#[derive(Clone, Debug)]
pub struct Space {
    /// What is left: first byte and the one after the last.
    ranges: Vec<(u64, u64)>,
    edge: u64,
}

impl Space {
    /// A space of ranges (first byte, bytes) that are mapped, contiguous each, in ascending order.
    pub fn new(ranges: &[(GuestAddress, u64)]) -> Self {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|&(base, len)| (base.0, base.0.saturating_add(len)))
            .collect();
        let edge = ranges.last().map_or(0, |range| range.1);
        Self { ranges, edge }
    }

    /// Takes `len` bytes aligned to `align`, a power of two, from the first range that has them.
    ///
    /// # Errors
    /// [`OutOfSpace`] if no range has them.
    pub fn take(&mut self, len: u64, align: u64) -> Result<GuestAddress, OutOfSpace> {
        for (start, end) in &mut self.ranges {
            let base = start.next_multiple_of(align);
            if base <= *end && *end - base >= len {
                *start = base + len;
                return Ok(GuestAddress(base));
            }
        }
        Err(OutOfSpace(len))
    }

    /// The end of mapped memory: the byte before it is mapped, this one and the page it is in are not.
    pub const fn edge(&self) -> GuestAddress {
        GuestAddress(self.edge)
    }

    /// A page that is not mapped, far from everything.
    pub const fn unmapped(&self) -> GuestAddress {
        GuestAddress(0x00ff_ffff_dead_0000)
    }

    /// Takes room for a ring of `size` descriptors.
    ///
    /// # Errors
    /// [`OutOfSpace`].
    ///
    /// # Panics
    /// If `size` is not a queue size.
    pub fn layout(&mut self, size: u16) -> Result<SplitLayout, OutOfSpace> {
        let base = self.take(SplitLayout::footprint(size), SplitLayout::DESC_ALIGN)?;
        #[allow(clippy::expect_used)]
        Ok(SplitLayout::contiguous(size, base).expect("a queue size"))
    }

    /// Takes room for a ring and an arena and makes a driver there.
    ///
    /// # Errors
    /// What there is no room for, or what is wrong with the arguments.
    pub fn driver<G>(
        &mut self,
        mem: G,
        size: u16,
        ring: RingConfig,
        arena: ArenaConfig,
    ) -> Result<Driver<G>, Box<dyn std::error::Error + Send + Sync>>
    where
        G: std::ops::Deref,
        G::Target: Memory,
    {
        let layout = self.layout(size)?;
        let arena = Arena::new(self.take(arena.footprint(), 1)?, arena)?;
        Ok(Driver::new(mem, layout, ring, arena)?)
    }
}

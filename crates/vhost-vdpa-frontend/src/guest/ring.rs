// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading the indices of a guest's split ring while a device serves it.

use std::sync::atomic::{AtomicU16, Ordering};

use virtio_blk_core::memory::{IotlbTable, Permissions};
use virtio_blk_driver::ring::SplitLayout;
use virtio_blk_driver::wire::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::GuestQueue;

/// Offset of the index in the available and the used ring.
const IDX: u64 = 2;

/// A split ring in guest memory that stays mapped with it.
pub(crate) struct RingView {
    memory: IotlbTable,
    layout: SplitLayout,
}

impl RingView {
    /// `None`: the ring does not lie in memory, or is misaligned.
    pub(crate) fn new(memory: &IotlbTable, queue: &GuestQueue) -> Option<Self> {
        let at = GuestAddress;
        let address = queue.address;
        let layout = SplitLayout::new(
            queue.size,
            at(address.desc),
            at(address.driver),
            at(address.device),
        )
        .ok()?;
        let view = Self {
            memory: memory.clone(),
            layout,
        };
        // What can be read once can be read again: the memory stays mapped.
        view.load(address.driver)?;
        view.load(address.device)?;
        Some(view)
    }

    pub(crate) const fn layout(&self) -> &SplitLayout {
        &self.layout
    }

    /// The index of the ring at `ring`.
    fn load(&self, ring: u64) -> Option<u16> {
        let at = ring.checked_add(IDX)?;
        let mapping = self.memory.find(at, at + 1).first()?;
        if mapping.iova() > at
            || mapping.last() < at + 1
            || !mapping.permissions().allow(Permissions::Read)
        {
            return None;
        }
        let host = mapping
            .memory()
            .as_ptr()
            .wrapping_add((at - mapping.iova()) as usize);
        let host = host.cast::<u16>();
        if !host.is_aligned() {
            return None;
        }
        // SAFETY: two mapped, aligned bytes, which others access as a word too.
        Some(u16::from_le(
            unsafe { AtomicU16::from_ptr(host) }.load(Ordering::Acquire),
        ))
    }

    /// The driver's available index.
    pub(crate) fn avail_idx(&self) -> u16 {
        self.load(self.layout.avail().0).unwrap_or(0)
    }

    /// The device's used index.
    pub(crate) fn used_idx(&self) -> u16 {
        self.load(self.layout.used().0).unwrap_or(0)
    }

    /// The 16 bytes at `addr` as a descriptor. `None`: not in memory.
    pub(crate) fn descriptor(&self, addr: u64) -> Option<Descriptor> {
        let mut bytes = [0; 16];
        addr.checked_add(16)?;
        if !self
            .memory
            .check_range(GuestAddress(addr), 16, Permissions::Read)
        {
            return None;
        }
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .ok()?;
        Some(Descriptor::from_bytes(bytes))
    }
}

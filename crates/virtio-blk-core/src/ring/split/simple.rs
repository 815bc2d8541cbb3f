// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The chain that nearly every request is: told apart by its shape, without a list of segments.

use super::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, Descriptor, SplitRing};
use crate::memory::{DeviceMemory, GuestMap, read_16};
use crate::ring::Segment;
use crate::spec::HEADER_SIZE;

/// A header, one range of data and a status byte, in a descriptor each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SimpleChain {
    pub(crate) head: u16,
    /// Guest address of the header.
    pub(crate) header: u64,
    pub(crate) data: Segment,
    /// Whether the data is for the device to write.
    pub(crate) writable: bool,
    /// Guest address of the status byte.
    pub(crate) status: u64,
}

impl SimpleChain {
    /// Its descriptors.
    pub(crate) const DESCRIPTORS: u16 = 3;
    /// The most data that fits a used length with the rest.
    const MAX_DATA: u32 = u32::MAX - HEADER_SIZE as u32 - 1;
}

impl SplitRing {
    /// The chain from `head` on, which was checked, if it is a usual one. `None` says nothing about it, and
    /// nothing is kept of what was looked at: `walk` reads it anew.
    #[inline(always)]
    pub(super) fn simple<M: DeviceMemory>(
        &self,
        map: &GuestMap<M>,
        head: u16,
    ) -> Option<SimpleChain> {
        const TABLE: usize = SimpleChain::DESCRIPTORS as usize * DESC_SIZE;
        // Smaller queues may not have chains of that length. The limit for tables is not below the size.
        if self.size < SimpleChain::DESCRIPTORS {
            return None;
        }
        let direct = |index| self.areas.desc.read_16(usize::from(index) * DESC_SIZE);
        let first = Descriptor::new(direct(head)?);
        if first.flags & DESC_F_INDIRECT == 0 {
            return shape(head, &first, self.size, direct);
        }
        if !self.indirect || first.flags & DESC_F_NEXT != 0 || first.len as usize != TABLE {
            return None;
        }
        let table = map.host(first.addr, TABLE)?;
        let indirect = |index| {
            // SAFETY: the table is mapped, and has as many entries as `shape` is told.
            Some(unsafe { read_16(table.wrapping_add(usize::from(index) * DESC_SIZE)) })
        };
        let first = Descriptor::new(indirect(0)?);
        shape(head, &first, SimpleChain::DESCRIPTORS, indirect)
    }
}

/// Looks at a chain that begins with `first`, in a table of `size` descriptors, each of which is read once.
/// Flags that have no meaning make it an unusual one.
#[inline(always)]
fn shape(
    head: u16,
    first: &Descriptor,
    size: u16,
    read: impl Fn(u16) -> Option<[u64; 2]>,
) -> Option<SimpleChain> {
    if first.flags != DESC_F_NEXT || first.len != HEADER_SIZE as u32 {
        return None;
    }
    if first.next >= size {
        return None;
    }
    let data = Descriptor::new(read(first.next)?);
    if data.flags & !DESC_F_WRITE != DESC_F_NEXT || data.next >= size {
        return None;
    }
    if data.len == 0 || data.len > SimpleChain::MAX_DATA {
        return None;
    }
    let status = Descriptor::new(read(data.next)?);
    if status.flags != DESC_F_WRITE || status.len != 1 {
        return None;
    }
    Some(SimpleChain {
        head,
        header: first.addr,
        data: data.segment(),
        writable: data.is_writable(),
        status: status.addr,
    })
}

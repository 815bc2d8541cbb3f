// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The chain that nearly every request is: told apart by its shape, without a list of segments.

use super::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, Descriptor, SplitRing};
use crate::memory::{DeviceMemory, GuestMap, read_16};
use crate::ring::SimpleChain;

/// Descriptors of a simple chain.
const DESCRIPTORS: u16 = 3;

impl SplitRing {
    /// See [`Ring::read_simple`](crate::ring::Ring::read_simple): `read` reads anew what is not simple.
    #[inline(always)]
    pub(super) fn simple<const FIRST: u32, const LAST: u32, M: DeviceMemory>(
        &self,
        map: &GuestMap<M>,
        head: u16,
    ) -> Option<SimpleChain> {
        const TABLE: usize = DESCRIPTORS as usize * DESC_SIZE;
        // Smaller queues may not have chains of that length. The limit for tables is not below the size.
        if self.size < DESCRIPTORS {
            return None;
        }
        let direct = |index| self.areas.desc.read_16(usize::from(index) * DESC_SIZE);
        let first = Descriptor::new(direct(head)?);
        if first.flags & DESC_F_INDIRECT == 0 {
            return shape::<FIRST, LAST>(head, &first, self.size, direct);
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
        shape::<FIRST, LAST>(head, &first, DESCRIPTORS, indirect)
    }
}

/// Looks at a chain that begins with `first`, in a table of `size` descriptors, each of which is read once.
/// A flag without a meaning makes it another chain.
#[inline(always)]
fn shape<const FIRST: u32, const LAST: u32>(
    head: u16,
    first: &Descriptor,
    size: u16,
    read: impl Fn(u16) -> Option<[u64; 2]>,
) -> Option<SimpleChain> {
    if first.flags != DESC_F_NEXT || first.len != FIRST {
        return None;
    }
    if first.next >= size {
        return None;
    }
    let data = Descriptor::new(read(first.next)?);
    if data.flags & !DESC_F_WRITE != DESC_F_NEXT || data.next >= size {
        return None;
    }
    // The most that fits a used length with the rest.
    if data.len == 0 || data.len > u32::MAX - FIRST - LAST {
        return None;
    }
    let last = Descriptor::new(read(data.next)?);
    if last.flags != DESC_F_WRITE || last.len != LAST {
        return None;
    }
    Some(SimpleChain {
        head,
        first: first.addr,
        data: data.segment(),
        writable: data.is_writable(),
        last: last.addr,
    })
}

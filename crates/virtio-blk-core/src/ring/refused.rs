// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that can't be taken: where their last writable byte lies.

use super::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_SIZE, Descriptor, read_entry};
use super::{LastWritable, SplitRing};
use crate::memory::{DeviceMemory, GuestMap};

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

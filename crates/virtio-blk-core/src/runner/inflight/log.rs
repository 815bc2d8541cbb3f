// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log of one queue in the area.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::AtomicInteger;

use super::{DESC_NUM, ENTRY, HEADER, LAST_BATCH_HEAD, LAYOUT, UNUSED, USED_IDX, VERSION, field};
use crate::memory::HostMemory;
use crate::runner::InFlightLog;

/// One queue's log in an [`InFlightArea`].
#[derive(Debug)]
pub(in crate::runner) struct SplitLog {
    pub(super) memory: HostMemory,
    pub(super) base: usize,
    pub(super) size: u16,
    /// The most descriptors that the area has room for.
    pub(super) capacity: u16,
    /// The order of the next request.
    pub(super) counter: u64,
}

impl SplitLog {
    pub(super) fn load<T: AtomicInteger>(&self, offset: usize) -> T::V
    where
        T::V: Default,
    {
        // Offsets are inside the area by construction; an absent one reads as untouched.
        field::<T>(&self.memory, self.base + offset)
            .map(|field| field.load(Ordering::Acquire))
            .unwrap_or_default()
    }

    pub(super) fn store<T: AtomicInteger>(&self, offset: usize, value: T::V) {
        if let Some(field) = field::<T>(&self.memory, self.base + offset) {
            field.store(value, Ordering::Release);
        }
    }

    pub(super) fn entry(head: u16) -> usize {
        HEADER + ENTRY * usize::from(head)
    }

    pub(super) fn in_flight(&self, head: u16) -> bool {
        self.load::<AtomicU8>(Self::entry(head)) != 0
    }

    pub(super) fn set_in_flight(&self, head: u16, value: bool) {
        self.store::<AtomicU8>(Self::entry(head), u8::from(value));
    }

    pub(super) fn next(head: u16) -> usize {
        Self::entry(head) + 6
    }

    pub(super) fn order(head: u16) -> usize {
        Self::entry(head) + 8
    }

    /// Completes a batch that was cut off, and lists what is in flight.
    pub(super) fn recover(&mut self, used_idx: u16) -> Vec<u16> {
        if self.load::<AtomicU16>(VERSION) == UNUSED {
            for head in 0..self.capacity {
                self.set_in_flight(head, false);
            }
            self.store::<AtomicU16>(USED_IDX, used_idx);
            self.store::<AtomicU16>(VERSION, LAYOUT);
        }
        // A guest's next boot may choose another size; the area has room for the largest.
        self.store::<AtomicU16>(DESC_NUM, self.size);
        // A batch is in the used ring and still marked here: the process died between the two.
        let unmarked = used_idx.wrapping_sub(self.load::<AtomicU16>(USED_IDX));
        let mut head = self.load::<AtomicU16>(LAST_BATCH_HEAD);
        for _ in 0..unmarked.min(self.size) {
            if head >= self.size {
                break;
            }
            self.set_in_flight(head, false);
            head = self.load::<AtomicU16>(Self::next(head));
        }
        self.store::<AtomicU16>(USED_IDX, used_idx);
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.in_flight(head))
            .map(|head| (self.load::<AtomicU64>(Self::order(head)), head))
            .collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(order, _)| order.wrapping_add(1));
        heads.into_iter().map(|(_, head)| head).collect()
    }
}

impl InFlightLog for SplitLog {
    fn taken(&mut self, head: u16) {
        if head < self.size {
            self.store::<AtomicU64>(Self::order(head), self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.set_in_flight(head, true);
        }
    }

    fn returning(&mut self, heads: &[u16], _used_idx: u16) {
        // A list from the last head back to the first, for `recover`.
        let mut last = self.load::<AtomicU16>(LAST_BATCH_HEAD);
        for &head in heads.iter().filter(|&&head| head < self.size) {
            self.store::<AtomicU16>(Self::next(head), last);
            last = head;
        }
        self.store::<AtomicU16>(LAST_BATCH_HEAD, last);
    }

    fn returned(&mut self, heads: &[u16], used_idx: u16) {
        for &head in heads.iter().filter(|&&head| head < self.size) {
            self.set_in_flight(head, false);
        }
        self.store::<AtomicU16>(USED_IDX, used_idx);
    }
}

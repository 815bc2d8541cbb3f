// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A descriptor chain in private memory: two byte streams.

/// One contiguous guest range of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: u64,
    /// Bytes; not 0.
    pub len: u32,
}

/// A descriptor chain as two byte streams: what the device reads, then what it writes. Reused from one
/// chain to the next, so that taking a chain allocates nothing in the long run.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub(super) head: u16,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
    pub(super) readable_len: u32,
    pub(super) writable_len: u32,
}

impl Chain {
    /// An empty chain.
    pub const fn new() -> Self {
        Self {
            head: 0,
            readable: Vec::new(),
            writable: Vec::new(),
            readable_len: 0,
            writable_len: 0,
        }
    }

    /// The index of the first descriptor: how ring and driver name the chain.
    #[inline]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// The device-readable segments, in order.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// The device-writable segments, in order.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Bytes the device may read.
    #[inline]
    pub const fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes the device may write. With the readable ones at most 2^32 - 1.
    #[inline]
    pub const fn writable_len(&self) -> u32 {
        self.writable_len
    }

    #[inline]
    pub(super) fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A descriptor chain in private memory: two byte streams.

use super::ChainError;

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
    /// Readable segments that were taken off the front.
    cut: usize,
    pub(super) writable: Vec<Segment>,
    pub(super) readable_len: u64,
    pub(super) writable_len: u64,
}

impl Chain {
    /// An empty chain.
    pub const fn new() -> Self {
        Self {
            head: 0,
            readable: Vec::new(),
            cut: 0,
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
        self.readable.get(self.cut..).unwrap_or_default()
    }

    /// The device-writable segments, in order.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Bytes the device may read.
    #[inline]
    pub const fn readable_len(&self) -> u32 {
        self.readable_len as u32
    }

    /// Bytes the device may write. With the readable ones at most 2^32 - 1.
    #[inline]
    pub const fn writable_len(&self) -> u32 {
        self.writable_len as u32
    }

    /// Takes the last writable byte off the chain and answers its guest address. `None` if there is none,
    /// or its segment wraps around the address space.
    #[inline(always)]
    pub(crate) fn cut_last_writable(&mut self) -> Option<u64> {
        let last = self.writable.last_mut()?;
        let rest = last.len - 1;
        let addr = last.addr.checked_add(u64::from(rest))?;
        if rest == 0 {
            self.writable.pop();
        } else {
            last.len = rest;
        }
        self.writable_len -= 1;
        Some(addr)
    }

    /// Takes `len` readable bytes off the front of the chain, if the first segment has that many, and
    /// answers their guest address.
    #[inline(always)]
    pub(crate) fn cut_first_readable(&mut self, len: u32) -> Option<u64> {
        let first = self.readable.get_mut(self.cut)?;
        let addr = first.addr;
        if first.len == len {
            self.cut += 1;
        } else {
            first.len = first.len.checked_sub(len)?;
            first.addr = addr.wrapping_add(u64::from(len));
        }
        self.readable_len -= u64::from(len);
        Some(addr)
    }

    /// Refuses a chain whose bytes don't fit a used length.
    #[inline]
    pub(super) fn check_len(&self) -> Result<(), ChainError> {
        if self.readable_len + self.writable_len > u64::from(u32::MAX) {
            return Err(ChainError::TooLarge);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.cut = 0;
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

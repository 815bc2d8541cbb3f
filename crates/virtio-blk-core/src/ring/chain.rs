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

/// A chain of three segments that is told apart by its shape, without a list: one that the device reads, data
/// that it reads or writes, and one that it writes. What the first and the last hold is up to the device type,
/// which says how long they are ([`Ring::read_simple`](super::Ring::read_simple)).
#[derive(Clone, Copy, Debug)]
pub struct SimpleChain {
    /// As for [`Chain::head`].
    pub head: u16,
    /// Guest address of the first segment.
    pub first: u64,
    /// The data; not empty. The lengths of all segments add up to less than 2^32.
    pub data: Segment,
    /// Whether the data is for the device to write.
    pub writable: bool,
    /// Guest address of the last segment.
    pub last: u64,
}

/// A descriptor chain as two byte streams: what the device reads, then what it writes. Reused from one
/// chain to the next, so that taking a chain allocates nothing in the long run.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    head: u16,
    /// The readable segments, then the writable ones, then what earlier chains left.
    segments: Vec<Segment>,
    /// Where the readable segments begin: behind those that were taken off the front.
    start: usize,
    parts: Parts,
}

/// Where the streams of a chain end, and their lengths. Kept apart while a chain is walked, so that it stays
/// in registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    /// Where the writable segments begin.
    split: usize,
    /// Where they end.
    end: usize,
    readable_len: u64,
    writable_len: u64,
}

impl Parts {
    /// Appends a descriptor's range to its stream.
    #[inline(always)]
    pub(super) fn append(
        &mut self,
        segments: &mut Vec<Segment>,
        segment: Segment,
        writable: bool,
    ) -> Result<(), ChainError> {
        if !writable && self.split != self.end {
            return Err(ChainError::ReadableAfterWritable);
        }
        if segment.len == 0 {
            return Ok(());
        }
        match segments.get_mut(self.end) {
            Some(place) => *place = segment,
            None => lengthen(segments, segment),
        }
        self.end += 1;
        // At most 2^16 lengths of 32 bits: no overflow.
        if writable {
            self.writable_len += u64::from(segment.len);
        } else {
            self.readable_len += u64::from(segment.len);
            self.split = self.end;
        }
        Ok(())
    }
}

/// The list grows to the longest chain that was seen.
#[cold]
fn lengthen(segments: &mut Vec<Segment>, segment: Segment) {
    segments.push(segment);
}

impl Chain {
    /// An empty chain.
    pub const fn new() -> Self {
        Self {
            head: 0,
            segments: Vec::new(),
            start: 0,
            parts: Parts {
                split: 0,
                end: 0,
                readable_len: 0,
                writable_len: 0,
            },
        }
    }

    /// How ring and driver name the chain: by the index of its first descriptor in a split ring, by its buffer ID
    /// in a packed one.
    #[inline]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// The device-readable segments, in order.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        let range = self.start..self.parts.split;
        self.segments.get(range).unwrap_or_default()
    }

    /// The device-writable segments, in order.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        let range = self.parts.split..self.parts.end;
        self.segments.get(range).unwrap_or_default()
    }

    /// Bytes the device may read.
    #[inline]
    pub const fn readable_len(&self) -> u32 {
        self.parts.readable_len as u32
    }

    /// Bytes the device may write. With the readable ones at most 2^32 - 1.
    #[inline]
    pub const fn writable_len(&self) -> u32 {
        self.parts.writable_len as u32
    }

    /// Takes the last writable byte off the chain and returns its guest address. `None` if there is none,
    /// or its segment wraps around the address space.
    #[inline(always)]
    pub(crate) fn cut_last_writable(&mut self) -> Option<u64> {
        let Parts { split, end, .. } = self.parts;
        if split == end {
            return None;
        }
        let last = self.segments.get_mut(end - 1)?;
        let rest = last.len - 1;
        let addr = last.addr.checked_add(u64::from(rest))?;
        if rest == 0 {
            self.parts.end = end - 1;
        } else {
            last.len = rest;
        }
        self.parts.writable_len -= 1;
        Some(addr)
    }

    /// Takes `len` readable bytes off the front of the chain, if the first segment has that many, and
    /// returns their guest address.
    #[inline(always)]
    pub(crate) fn cut_first_readable(&mut self, len: u32) -> Option<u64> {
        if self.start == self.parts.split {
            return None;
        }
        let first = self.segments.get_mut(self.start)?;
        let addr = first.addr;
        if first.len == len {
            self.start += 1;
        } else {
            first.len = first.len.checked_sub(len)?;
            first.addr = addr.wrapping_add(u64::from(len));
        }
        self.parts.readable_len -= u64::from(len);
        Some(addr)
    }

    /// Empties the chain, and returns where to put the segments of the next.
    #[inline(always)]
    pub(super) fn clear(&mut self, head: u16) -> &mut Vec<Segment> {
        self.head = head;
        self.start = 0;
        self.parts = Parts::default();
        &mut self.segments
    }

    /// Becomes a simple chain with a first segment of `FIRST` bytes and a last one of `LAST`.
    pub fn set_simple<const FIRST: u32, const LAST: u32>(&mut self, simple: &SimpleChain) {
        let segment = |addr, len| Segment { addr, len };
        let parts_of = [
            (segment(simple.first, FIRST), false),
            (simple.data, simple.writable),
            (segment(simple.last, LAST), true),
        ];
        let mut parts = Parts::default();
        let segments = self.clear(simple.head);
        for (segment, writable) in parts_of {
            // Never refused: readable before writable.
            let _ = parts.append(segments, segment, writable);
        }
        self.parts = parts;
    }

    /// Takes over what was put into the list, unless its bytes don't fit a used length.
    #[inline(always)]
    pub(super) fn set(&mut self, parts: Parts) -> Result<(), ChainError> {
        if parts.readable_len + parts.writable_len > u64::from(u32::MAX) {
            return Err(ChainError::TooLarge);
        }
        self.parts = parts;
        Ok(())
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests in flight, keyed by our own token and never by the guest's head.

use std::sync::Arc;

use crate::disk::{IoBuf, Token};
use crate::memory::{DeviceMemory, GuestMap, KeepAlive};
use crate::request::{ByteRange, RangeKind};
use crate::ring::Segment;
use crate::spec::RequestType;

/// The part of a token that says which slot; the rest is the slot's generation.
const INDEX: u64 = 0xffff_ffff;

/// A request with more segments of data than this is long. Drivers make up to about 1,000.
const LONG: usize = 1024;

/// Long requests in flight together have at most about this many segments: while there are as many, no request
/// is taken. A chain may have 32,768 segments, in a table that many chains share, so that a driver could make
/// this side keep half a megabyte for each descriptor of its ring.
const MAX_LONG_SEGMENTS: usize = 64 * 1024;

/// What a request in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Read,
    Write,
    Flush,
    Lifetime,
    Ranges { kind: RangeKind, fua: bool },
}

impl RequestKind {
    /// The request type it counts as.
    #[inline]
    pub(super) const fn wire(self) -> RequestType {
        match self {
            Self::Read => RequestType::In,
            Self::Write => RequestType::Out,
            Self::Flush => RequestType::Flush,
            Self::Lifetime => RequestType::GetLifetime,
            Self::Ranges { .. } => RequestType::Discard,
        }
    }

    /// The request it is.
    pub(super) const fn request(self) -> RequestType {
        match self {
            Self::Ranges { kind, .. } => match kind {
                RangeKind::Discard => RequestType::Discard,
                RangeKind::WriteZeroes => RequestType::WriteZeroes,
                RangeKind::SecureErase => RequestType::SecureErase,
            },
            _ => self.wire(),
        }
    }
}

/// Where the status byte of a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusByte {
    /// Host address, mapped while the slot's `keep` lives.
    pub(super) host: *mut u8,
    /// Guest address.
    pub(super) guest: u64,
}

/// One request in flight. Its vectors and owners are reused by the next request in the slot.
pub(super) struct Slot {
    pub(super) busy: bool,
    generation: u32,
    pub(super) head: u16,
    pub(super) kind: RequestKind,
    /// Counts requests: the order in which they were taken.
    pub(super) sequence: u64,
    pub(super) status: StatusByte,
    /// Keeps `status` mapped, with the generation of the map it is from.
    keep: Option<Arc<dyn KeepAlive>>,
    map_generation: u64,
    /// First byte on the disk of the operation that runs.
    pub(super) offset: u64,
    /// Bytes of it on the disk, for ranges.
    pub(super) range_len: u64,
    /// Bytes of data in the guest's buffers.
    pub(super) data_len: u32,
    /// Bytes of the writable data, without the status.
    pub(super) writable_len: u32,
    /// The guest data. With the disk while a read or write runs.
    pub(super) buf: IoBuf,
    /// The writable data in guest addresses; only filled where dirty pages are tracked.
    pub(super) dirty: Vec<Segment>,
    /// Ranges not yet submitted, in reverse order.
    pub(super) ranges: Vec<ByteRange>,
    /// Segments of the data, if they are so many that they count against [`MAX_LONG_SEGMENTS`]; else 0.
    long: usize,
}

// SAFETY: `status.host` is only used while `keep` holds its memory mapped, from whatever thread runs the
// queue.
unsafe impl Send for Slot {}

impl Slot {
    /// Keeps the map's present memory while the request runs.
    #[inline(always)]
    pub(super) fn hold<M: DeviceMemory>(&mut self, map: &GuestMap<M>) {
        // Generations start at 1.
        if self.map_generation != map.generation() {
            self.keep = Some(map.keep().clone());
            self.map_generation = map.generation();
        }
    }
}

impl Slot {
    /// Notes the range that is worked on.
    pub(super) fn at(&mut self, range: &ByteRange) {
        self.offset = range.offset;
        self.range_len = range.len;
    }

    /// The bytes on the disk that the running operation covers, as offset and length.
    #[cold]
    pub(super) fn place(&self) -> (u64, u64) {
        match self.kind {
            RequestKind::Read | RequestKind::Write => (self.offset, u64::from(self.data_len)),
            RequestKind::Ranges { .. } => (self.offset, self.range_len),
            RequestKind::Flush | RequestKind::Lifetime => (0, 0),
        }
    }

    /// Lets go of the request's memory, unless it is the map's present one, which the next will need.
    #[inline(always)]
    pub(super) fn release_other<M: DeviceMemory>(&mut self, map: &GuestMap<M>) {
        if self.map_generation != map.generation() {
            self.release_memory();
        }
    }

    #[cold]
    fn release_memory(&mut self) {
        self.keep = None;
        self.map_generation = 0;
        self.buf.release();
    }

    /// The token of the next request in this slot, which is slot `index`.
    fn next_token(&self, index: u32) -> Token {
        Token(u64::from(self.generation.wrapping_add(1)) << 32 | u64::from(index))
    }

    /// Another token for the request, in place of `token`, which names nothing any more.
    pub(super) fn renew(&mut self, token: Token) -> Token {
        self.generation = self.generation.wrapping_add(1);
        Token(u64::from(self.generation) << 32 | token.0 & INDEX)
    }

    /// Takes the buffer back from the disk. One of nothing: the disk has not had it.
    #[inline(always)]
    pub(super) fn put_back(&mut self, buf: IoBuf) {
        if !buf.is_allocated() {
            return;
        }
        let old = std::mem::replace(&mut self.buf, buf);
        if old.is_allocated() {
            drop(old);
        } else {
            std::mem::forget(old);
        }
    }
}

/// Slots, with a list of the free ones. As many as the queue has descriptors: a queue can't have more
/// chains in flight than that.
pub(super) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The token of the next request, while a slot is free.
    next: Token,
    sequence: u64,
    /// Sum of all [`Slot::long`].
    long: usize,
}

impl Slab {
    pub(super) fn new(size: u16) -> Self {
        let slot = || Slot {
            busy: false,
            generation: 0,
            head: 0,
            kind: RequestKind::Flush,
            sequence: 0,
            status: StatusByte {
                host: std::ptr::null_mut(),
                guest: 0,
            },
            keep: None,
            map_generation: 0,
            offset: 0,
            range_len: 0,
            data_len: 0,
            writable_len: 0,
            buf: IoBuf::new(),
            dirty: Vec::new(),
            ranges: Vec::new(),
            long: 0,
        };
        let mut slab = Self {
            slots: (0..size).map(|_| slot()).collect(),
            free: (0..u32::from(size)).rev().collect(),
            next: Token(0),
            sequence: 0,
            long: 0,
        };
        slab.find_next();
        slab
    }

    /// The token that [`Slab::reserve`] gives out next, while a slot is free: one is for each chain that was taken.
    #[inline(always)]
    pub(super) const fn next(&self) -> Token {
        self.next
    }

    /// Makes `next` fit the list of free slots.
    fn find_next(&mut self) {
        if let Some(&index) = self.free.last()
            && let Some(slot) = self.slots.get(index as usize)
        {
            self.next = slot.next_token(index);
        }
    }

    /// Notes that the request of `slot` has `segments` segments of data.
    #[inline(always)]
    pub(super) fn note_segments(&mut self, token: Token, segments: usize) {
        if segments > LONG {
            self.note_long(token, segments);
        }
    }

    #[cold]
    fn note_long(&mut self, token: Token, segments: usize) {
        if let Some(slot) = self.get(token) {
            slot.long = segments;
            self.long += segments;
        }
    }

    /// Whether requests in flight have so many segments that no more requests are to be taken.
    #[inline(always)]
    pub(super) fn is_crowded(&self) -> bool {
        self.long >= MAX_LONG_SEGMENTS
    }

    /// Frees the lists of a request with many segments.
    #[cold]
    fn release_long(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            self.long -= std::mem::take(&mut slot.long);
            slot.release_memory();
            slot.dirty = Vec::new();
        }
    }

    /// Reserves a slot. `None` only if more chains are in flight than the queue holds, which the ring
    /// rules out.
    #[inline(always)]
    pub(super) fn reserve(&mut self) -> Option<(Token, &mut Slot)> {
        self.free.pop()?;
        let token = self.next;
        self.find_next();
        let slot = self.slots.get_mut(index(token))?;
        slot.busy = true;
        slot.generation = (token.0 >> 32) as u32;
        slot.sequence = self.sequence;
        self.sequence += 1;
        Some((token, slot))
    }

    /// The busy slot of a token; `None` for a token that was never given out or is done.
    #[inline(always)]
    pub(super) fn get(&mut self, token: Token) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index(token))?;
        (slot.busy && u64::from(slot.generation) == token.0 >> 32).then_some(slot)
    }

    /// Frees a busy slot.
    #[inline(always)]
    pub(super) fn release(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(index(token)) {
            slot.busy = false;
            self.next = slot.next_token(index(token) as u32);
            self.free.push(index(token) as u32);
            if slot.long != 0 {
                self.release_long(index(token));
            }
        }
    }

    /// How many slots are busy.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The tokens of all busy slots, in the order in which they were taken.
    pub(super) fn busy(&self) -> Vec<Token> {
        let mut busy: Vec<(u64, Token)> = self
            .slots
            .iter()
            .zip(0u64..)
            .filter(|(slot, _)| slot.busy)
            .map(|(slot, index)| {
                (
                    slot.sequence,
                    Token(u64::from(slot.generation) << 32 | index),
                )
            })
            .collect();
        busy.sort_unstable_by_key(|(sequence, _)| *sequence);
        busy.into_iter().map(|(_, token)| token).collect()
    }

    /// Lets go of memory that idle slots keep mapped.
    pub(super) fn release_memory(&mut self) {
        for slot in self.slots.iter_mut().filter(|s| !s.busy) {
            slot.release_memory();
        }
    }
}

/// The index part of a token.
#[inline]
const fn index(token: Token) -> usize {
    (token.0 & INDEX) as usize
}

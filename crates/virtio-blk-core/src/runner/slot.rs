// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One request in flight, named by our own token and never by the guest's head.

use std::sync::Arc;

use crate::disk::{IoBuf, Token};
use crate::memory::{DeviceMemory, GuestMap, KeepAlive};
use crate::request::{ByteRange, RangeKind};
use crate::ring::Segment;
use crate::spec::RequestType;

/// The part of a token that says which slot; the rest is the slot's generation.
const INDEX: u64 = 0xffff_ffff;

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
    pub(super) generation: u32,
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
    /// Segments of the data, if they are so many that they count against the limit for them; else 0.
    pub(super) long: usize,
}

// SAFETY: `status.host` is only used while `keep` holds its memory mapped, from whatever thread runs the
// queue.
unsafe impl Send for Slot {}

impl Slot {
    /// A free slot.
    pub(super) fn new() -> Self {
        Self {
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
        }
    }

    /// Keeps the map's present memory while the request runs.
    #[inline(always)]
    pub(super) fn hold<M: DeviceMemory>(&mut self, map: &GuestMap<M>) {
        // Generations start at 1.
        if self.map_generation != map.generation() {
            self.keep = Some(map.keep().clone());
            self.map_generation = map.generation();
        }
    }

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
    pub(super) fn release_memory(&mut self) {
        self.keep = None;
        self.map_generation = 0;
        self.buf.release();
    }

    /// The token of the next request in this slot, which is slot `index`.
    pub(super) fn next_token(&self, index: u32) -> Token {
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

/// The index part of a token.
#[inline]
pub(super) const fn index(token: Token) -> usize {
    (token.0 & INDEX) as usize
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies on their way in.

use std::io;

use virtio_blk_core::disk::DiskError;

use crate::NbdError;
use crate::flight::{Flight, Flights, Stage};
use crate::handshake::Export;
use crate::iov::Scratch;
use crate::proto::{
    BlockStatus, Chunk, ChunkError, ChunkKind, Command, Errno, MAX_PAYLOAD, OffsetHole,
    ReplyHeader, ReplyMode, SimpleReply, StatusExtent, split_offset,
};
use crate::stream::Stream;

/// What is received before it is known where it goes. Longer data goes straight to its place for the most part.
const BUFFER: usize = 64 << 10;

/// Bytes of the offset in front of the data of a chunk.
const OFFSET: u64 = 8;

/// What comes next.
enum Next {
    /// A header.
    Header,
    /// The payload of a chunk, or the beginning of it, so short that it fits the buffer.
    Payload {
        place: usize,
        chunk: Chunk,
        len: usize,
    },
    /// Extents of block status.
    Status {
        place: usize,
        kind: ChunkKind,
        /// Bytes, a multiple of an extent's.
        left: u64,
        /// The reply ends with it.
        last: bool,
    },
    /// Data of a read.
    Data {
        place: usize,
        /// The byte of the request.
        at: u64,
        left: u64,
        /// The reply ends with it.
        last: bool,
    },
}

/// Where receiving stands.
pub(super) struct Incoming {
    buffer: Box<[u8]>,
    /// What of it was received and not yet used.
    start: usize,
    end: usize,
    next: Next,
    scratch: Scratch,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            next: Next::Header,
            scratch: Scratch::default(),
        }
    }

    /// Receives once, and takes apart what is there.
    pub(super) fn receive(
        &mut self,
        stream: &mut dyn Stream,
        export: &Export,
        flights: &mut Flights,
        finished: &mut Vec<usize>,
    ) -> Result<bool, NbdError> {
        // Less than a header or a short payload is left.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut into = self.scratch.inbound();
        let mut straight = 0;
        let mut whole = true;
        if let Next::Data {
            place, at, left, ..
        } = self.next
            && let Some(flight) = flights.get(place)
            && flight.owner.is_some()
        {
            // Bounded by the request's length.
            straight = into.push_part(&flight.op.buf, flight.buf_at() + at as usize, left as usize);
            whole = straight as u64 == left;
        }
        if whole {
            into.push(self.buffer.get_mut(self.end..).unwrap_or_default());
        }
        let room = into.len();
        let received = match stream.receive(&mut into) {
            Ok(0) => return Err(NbdError::Closed),
            Ok(received) => received,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(false),
                io::ErrorKind::Interrupted => return Ok(true),
                _ => return Err(error.into()),
            },
        };
        self.end += received.saturating_sub(straight);
        if let Next::Data { at, left, .. } = &mut self.next {
            let taken = received.min(straight) as u64;
            *at += taken;
            *left -= taken;
        }
        while self.step(export, flights, finished)? {}
        Ok(received == room || stream.has_received())
    }

    fn received(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes one thing apart. Returns whether it was there.
    fn step(
        &mut self,
        export: &Export,
        flights: &mut Flights,
        finished: &mut Vec<usize>,
    ) -> Result<bool, NbdError> {
        let mode = export.mode;
        match self.next {
            Next::Header => {
                let Some(magic) = self.received().first_chunk() else {
                    return Ok(false);
                };
                let len = ReplyHeader::len(*magic, mode)?;
                let Some(bytes) = self.received().get(..len) else {
                    return Ok(false);
                };
                let header = ReplyHeader::decode(bytes, mode)?;
                self.start += len;
                self.next = match header {
                    ReplyHeader::Simple(reply) => simple(reply, mode, flights, finished)?,
                    ReplyHeader::Chunk(chunk) => begin(chunk, flights, finished)?,
                };
            }
            Next::Payload { place, chunk, len } => {
                let Some(payload) = self.received().get(..len) else {
                    return Ok(false);
                };
                let Some(flight) = flights.get_mut(place) else {
                    return Err(NbdError::Reply("a request got lost here"));
                };
                self.next = take(payload, place, chunk, export, flight, finished)?;
                self.start += len;
            }
            Next::Status {
                place,
                kind,
                left,
                last,
            } => {
                let Some(flight) = flights.get_mut(place) else {
                    return Err(NbdError::Reply("a request got lost here"));
                };
                flight.seen = None;
                let size = StatusExtent::len(kind);
                let there = self
                    .received()
                    .len()
                    .min(usize::try_from(left).unwrap_or(usize::MAX));
                let there = there - there % size;
                for bytes in self
                    .received()
                    .get(..there)
                    .unwrap_or_default()
                    .chunks(size)
                {
                    let extent = StatusExtent::decode(kind, bytes)?;
                    if let Some(asked) = &mut flight.asked {
                        asked.push(extent);
                    }
                }
                self.start += there;
                let left = left - there as u64;
                if left != 0 {
                    self.next = Next::Status {
                        place,
                        kind,
                        left,
                        last,
                    };
                    return Ok(false);
                }
                self.next = Next::Header;
                if last {
                    finish(place, flight, finished)?;
                }
            }
            Next::Data {
                place,
                at,
                left,
                last,
            } => {
                let Some(flight) = flights.get_mut(place) else {
                    return Err(NbdError::Reply("a request got lost here"));
                };
                flight.seen = None;
                let here = self.received();
                let taken = here.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if flight.owner.is_some() {
                    let data = here.get(..taken).unwrap_or_default();
                    flight.op.buf.copy_in(flight.buf_at() + at as usize, data);
                }
                self.start += taken;
                let left = left - taken as u64;
                if left != 0 {
                    let at = at + taken as u64;
                    self.next = Next::Data {
                        place,
                        at,
                        left,
                        last,
                    };
                    return Ok(false);
                }
                self.next = Next::Header;
                if last {
                    finish(place, flight, finished)?;
                }
            }
        }
        Ok(true)
    }
}

/// A simple reply begins.
fn simple(
    reply: SimpleReply,
    mode: ReplyMode,
    flights: &mut Flights,
    finished: &mut Vec<usize>,
) -> Result<Next, NbdError> {
    let (place, flight) = sent(flights, reply.cookie)?;
    if reply.error != Errno::OK {
        fail(flight, reply.error)?;
        finish(place, flight, finished)?;
        return Ok(Next::Header);
    }
    if flight.request.command != Command::READ {
        finish(place, flight, finished)?;
        return Ok(Next::Header);
    }
    if mode != ReplyMode::Simple {
        return Err(NbdError::Reply(
            "a simple reply to a read, where structured ones were agreed upon",
        ));
    }
    flight.covered.add(0, flight.request.length);
    Ok(Next::Data {
        place,
        at: 0,
        left: flight.request.length,
        last: true,
    })
}

/// A chunk begins.
fn begin(chunk: Chunk, flights: &mut Flights, finished: &mut Vec<usize>) -> Result<Next, NbdError> {
    let (place, flight) = sent(flights, chunk.cookie)?;
    let is_read = flight.request.command == Command::READ;
    let is_status = flight.request.command == Command::BLOCK_STATUS;
    let (least, most) = match chunk.kind {
        ChunkKind::NONE if chunk.is_last() => (0, 0),
        // At least a byte.
        ChunkKind::OFFSET_DATA if is_read => (OFFSET + 1, OFFSET + flight.request.length),
        ChunkKind::OFFSET_HOLE if is_read => (OffsetHole::LEN as u64, OffsetHole::LEN as u64),
        ChunkKind::BLOCK_STATUS | ChunkKind::BLOCK_STATUS_EXT if is_status => {
            let least = BlockStatus::head_len(chunk.kind) + StatusExtent::len(chunk.kind);
            (least as u64, MAX_PAYLOAD.into())
        }
        kind if kind.is_error() => (6, ChunkError::MAX_LEN as u64),
        _ => {
            return Err(NbdError::Reply(
                "a chunk that does not belong to the request",
            ));
        }
    };
    if !(least..=most).contains(&chunk.length) {
        return Err(NbdError::Reply("a chunk of a length that it can't have"));
    }
    if chunk.kind == ChunkKind::NONE {
        finish(place, flight, finished)?;
        return Ok(Next::Header);
    }
    let len = match chunk.kind {
        ChunkKind::OFFSET_DATA => OFFSET,
        ChunkKind::BLOCK_STATUS | ChunkKind::BLOCK_STATUS_EXT => {
            BlockStatus::head_len(chunk.kind) as u64
        }
        _ => chunk.length,
    };
    Ok(Next::Payload {
        place,
        chunk,
        // Less than the buffer.
        len: len as usize,
    })
}

/// The payload of a chunk is there; of data, its offset, and of block status, its context.
fn take(
    payload: &[u8],
    place: usize,
    chunk: Chunk,
    export: &Export,
    flight: &mut Flight,
    finished: &mut Vec<usize>,
) -> Result<Next, NbdError> {
    let last = chunk.is_last();
    match chunk.kind {
        ChunkKind::OFFSET_DATA => {
            let (offset, _) = split_offset(payload)?;
            let left = chunk.length - OFFSET;
            let at = cover(flight, offset, left)?;
            return Ok(Next::Data {
                place,
                at,
                left,
                last,
            });
        }
        ChunkKind::OFFSET_HOLE => {
            let hole = OffsetHole::decode(payload)?;
            let at = cover(flight, hole.offset, hole.length.into())?;
            if flight.owner.is_some() {
                let at = flight.buf_at() + at as usize;
                flight.op.buf.fill(at, hole.length as usize, 0);
            }
        }
        kind @ (ChunkKind::BLOCK_STATUS | ChunkKind::BLOCK_STATUS_EXT) => {
            let context = BlockStatus::decode_context(kind, payload, chunk.length)?;
            let begun =
                (flight.asked.as_mut()).map(|asked| std::mem::replace(&mut asked.has_begun, true));
            if Some(context) != export.allocation || begun == Some(true) {
                return Err(NbdError::Reply("block status that was not asked for"));
            }
            return Ok(Next::Status {
                place,
                kind,
                left: chunk.length - BlockStatus::head_len(kind) as u64,
                last,
            });
        }
        kind => fail(flight, ChunkError::decode(kind, payload)?.error)?,
    }
    if last {
        finish(place, flight, finished)?;
    }
    Ok(Next::Header)
}

/// The operation that a reply belongs to.
fn sent(flights: &mut Flights, cookie: u64) -> Result<(usize, &mut Flight), NbdError> {
    flights.sent(cookie).ok_or(NbdError::Reply(
        "a reply to what nobody asked for, or a second reply",
    ))
}

/// Notes which bytes of a read come. Returns the first, counted from the request's beginning.
fn cover(flight: &mut Flight, offset: u64, len: u64) -> Result<u64, NbdError> {
    let request = flight.request;
    let inside = offset
        .checked_sub(request.offset)
        .filter(|at| len != 0 && *at <= request.length && len <= request.length - at);
    let Some(at) = inside else {
        return Err(NbdError::Reply("data from outside of what was asked for"));
    };
    if !flight.covered.add(at, at + len) {
        return Err(NbdError::Reply(
            "data that came before, or in too many pieces",
        ));
    }
    Ok(at)
}

/// The request failed. The first error counts.
fn fail(flight: &mut Flight, error: Errno) -> Result<(), NbdError> {
    let Some(errno) = error.to_host() else {
        return Err(NbdError::Reply("an error that is none"));
    };
    if error == Errno::SHUTDOWN {
        // It did nothing, and another may.
        return Err(NbdError::ShuttingDown);
    }
    let is_range = matches!(
        flight.request.command,
        Command::TRIM | Command::WRITE_ZEROES
    );
    flight.error.get_or_insert_with(|| match error {
        Errno::NOTSUP if is_range => DiskError::Unsupported,
        _ => DiskError::from_errno(errno),
    });
    Ok(())
}

/// The reply is whole.
fn finish(place: usize, flight: &mut Flight, finished: &mut Vec<usize>) -> Result<(), NbdError> {
    let request = flight.request;
    if request.command == Command::READ
        && flight.error.is_none()
        && !flight.covered.is_whole(request.length)
    {
        return Err(NbdError::Reply("a reply to a read with a part of the data"));
    }
    if let Some(asked) = &flight.asked
        && flight.error.is_none()
        && !asked.is_told()
    {
        return Err(NbdError::Reply("no block status where it was asked for"));
    }
    flight.stage = Stage::Replied;
    finished.push(place);
    Ok(())
}

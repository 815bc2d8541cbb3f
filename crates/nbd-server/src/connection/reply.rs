// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies to requests.

use std::ops::Range;
use std::sync::Arc;

use virtio_blk_core::disk::{DiskError, IoBuf};
use virtio_blk_nbd::proto::{
    BlockStatus, Chunk, ChunkError, ChunkFlags, ChunkKind, Command, Errno, ReplyMode, Request,
    SimpleReply, StatusExtent,
};

use super::output::Head;
use super::{Connection, Refusal};
use crate::context::{Context, allocation};
use crate::export::OperationError;
use crate::pages::Pages;

/// Extents of a reply, for each context.
const MAX_EXTENTS: usize = 512;

/// Bytes that the disk is asked about at a time: what a reply can tell of without extended headers.
const MAX_STATUS: u64 = 1 << 32;

/// The operation of the disk's that a command is.
pub(super) const fn operation_of(command: Command) -> &'static str {
    match command {
        Command::READ => "read",
        Command::WRITE => "write",
        Command::FLUSH => "flush",
        Command::TRIM => "discard",
        Command::WRITE_ZEROES => "write-zeroes",
        _ => "extents",
    }
}

/// A chunk's header, and up to 8 bytes of its payload, of which `more` bytes follow.
fn chunk(
    mode: ReplyMode,
    request: &Request,
    kind: ChunkKind,
    last: bool,
    payload: &[u8],
    more: usize,
) -> Head {
    let header = Chunk {
        flags: ChunkFlags::NONE.with(ChunkFlags::DONE, last),
        kind,
        cookie: request.cookie,
        offset: request.offset,
        length: (payload.len() + more) as u64,
    };
    let bytes = header.encode(mode);
    Head::of(bytes.get(..Chunk::len(mode)).unwrap_or_default(), payload)
}

impl Connection {
    /// Replies that a request is done; `data` is what was read, and is sent if the request is a read.
    pub(super) fn succeed(
        &mut self,
        request: &Request,
        data: Option<(IoBuf, Arc<Pages>)>,
        cost: usize,
    ) {
        self.count(request, true);
        let data = match data {
            Some(data) if request.command == Command::READ => Some(data),
            Some((buf, pages)) => {
                self.pool.put(buf, pages);
                None
            }
            None => None,
        };
        // What was written needs no memory any more.
        let left = if data.is_some() { cost } else { 0 };
        self.memory -= cost - left;
        let mode = self.mode();
        let head = match (&data, mode) {
            (Some((buf, _)), ReplyMode::Structured | ReplyMode::Extended) => {
                let offset = request.offset.to_be_bytes();
                let kind = ChunkKind::OFFSET_DATA;
                chunk(mode, request, kind, true, &offset, buf.len())
            }
            (None, ReplyMode::Extended) => chunk(mode, request, ChunkKind::NONE, true, &[], 0),
            _ => {
                let reply = SimpleReply {
                    error: Errno::OK,
                    cookie: request.cookie,
                };
                Head::of(&reply.encode(), &[])
            }
        };
        self.push(head, Vec::new(), data, left);
    }

    /// Replies that a request failed.
    pub(super) fn refuse(&mut self, request: &Request, refusal: &Refusal) {
        self.count(request, false);
        let mode = self.mode();
        let (head, more) = match mode {
            ReplyMode::Simple => {
                let error = match refusal.errno {
                    // Only a client with structured replies knows it.
                    Errno::OVERFLOW => Errno::INVAL,
                    errno => errno,
                };
                let reply = SimpleReply {
                    error,
                    cookie: request.cookie,
                };
                (Head::of(&reply.encode(), &[]), Vec::new())
            }
            ReplyMode::Structured | ReplyMode::Extended => {
                let error = ChunkError {
                    error: refusal.errno,
                    message: &refusal.text,
                    offset: None,
                };
                let payload = error.encode();
                let head = chunk(mode, request, error.kind(), true, &[], payload.len());
                (head, payload)
            }
        };
        self.push(head, more, None, 0);
    }

    /// The most memory that a reply to a request for block status takes.
    pub(super) fn status_cost(&self, one: bool) -> usize {
        const EXTENT: usize = 16;
        let extents = if one { 1 } else { MAX_EXTENTS };
        self.contexts.len() * (Chunk::EXTENDED_LEN + 8 + extents * EXTENT)
    }

    /// Replies what a range is in the contexts that were agreed upon. `reserved`: memory that was set aside for the reply.
    pub(super) fn block_status(
        &mut self,
        request: &Request,
        range: Range<u64>,
        one: bool,
        reserved: usize,
    ) {
        let block = u64::from(self.caps.align.guest_block);
        let end = range.end.min(range.start + (MAX_STATUS - block));
        let range = range.start..end;
        let most = if one { 1 } else { MAX_EXTENTS };
        let mode = self.mode();
        let kind = match mode {
            ReplyMode::Extended => ChunkKind::BLOCK_STATUS_EXT,
            ReplyMode::Simple | ReplyMode::Structured => ChunkKind::BLOCK_STATUS,
        };
        let mut all = Vec::new();
        for (id, context) in (0_u32..).zip(&self.contexts) {
            let extents = match context {
                Context::Allocation => allocation(&*self.export.disk, range.clone(), block, most),
                Context::Bitmap(name) => {
                    let bitmaps = self.export.options.bitmaps.as_deref();
                    let marks = bitmaps.and_then(|all| all.marks(name, range.clone(), most));
                    let status = |marked: crate::Marked| StatusExtent {
                        length: marked.len,
                        flags: marked.dirty.into(),
                    };
                    let gone = || DiskError::Config(format!("there is no bitmap {name} any more"));
                    (marks.map(|marks| marks.into_iter().map(status).collect())).ok_or_else(gone)
                }
            };
            let extents = match extents {
                Ok(extents) => extents,
                Err(error) => {
                    let refusal = Refusal::of_disk(&error, request.command);
                    self.export.note(&OperationError {
                        operation: operation_of(request.command),
                        offset: request.offset,
                        len: request.length,
                        error: &error,
                    });
                    self.memory -= reserved;
                    return self.refuse(request, &refusal);
                }
            };
            let last = id as usize + 1 == self.contexts.len();
            let status = BlockStatus {
                context: id,
                extents,
            };
            let payload = status.encode(kind);
            let head = chunk(mode, request, kind, last, &[], payload.len());
            all.extend_from_slice(head.as_bytes());
            all.extend_from_slice(&payload);
        }
        self.count(request, true);
        let cost = all.len().min(reserved);
        self.memory -= reserved - cost;
        self.push(Head::of(&[], &[]), all, None, cost);
    }
}

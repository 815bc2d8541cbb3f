// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies on their way to the socket.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_blk_core::disk::IoBuf;
use virtio_blk_nbd::proto::Chunk;

use crate::channel::{Channel, Moved, Segments, segment_of};
use crate::pages::{Pages, Pool};

/// Replies in one call.
const BATCH: usize = 32;

/// Bytes: the longest header of a reply, and the offset in front of data.
const HEAD: usize = Chunk::EXTENDED_LEN + 8;

/// The header of a reply, with up to 8 bytes of its payload.
#[derive(Clone, Copy)]
pub(super) struct Head {
    bytes: [u8; HEAD],
    len: usize,
}

impl Head {
    /// Of two parts, which together fit.
    pub(super) fn of(header: &[u8], payload: &[u8]) -> Self {
        let mut head = Self {
            bytes: [0; HEAD],
            len: 0,
        };
        for part in [header, payload] {
            if let Some(place) = head.bytes.get_mut(head.len..head.len + part.len()) {
                place.copy_from_slice(part);
                head.len += part.len();
            } else {
                debug_assert!(false, "a header of {HEAD} bytes is too short");
            }
        }
        head
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A reply, or what is left of it.
pub(super) struct Reply {
    pub(super) head: Head,
    /// Payloads that are no data of the disk's, and headers within them. Most replies have none.
    pub(super) more: Vec<u8>,
    /// Data that follows, and its memory.
    pub(super) data: Option<(IoBuf, Arc<Pages>)>,
    /// Bytes of memory that the request has until the reply is sent.
    pub(super) cost: usize,
}

impl Reply {
    fn len(&self) -> usize {
        self.head.len + self.more.len() + self.data.as_ref().map_or(0, |(buf, _)| buf.len())
    }
}

/// Replies in the order in which they are sent.
#[derive(Default)]
pub(super) struct Output {
    replies: VecDeque<Reply>,
    /// Bytes of the first one that are sent.
    sent: usize,
    segments: Segments,
}

impl Output {
    pub(super) fn push(&mut self, reply: Reply) {
        self.replies.push_back(reply);
    }

    pub(super) fn len(&self) -> usize {
        self.replies.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Sends as much as there is room for. Returns the cost of the replies that were sent.
    ///
    /// # Errors
    /// The socket's: nothing more can be sent.
    pub(super) fn send(&mut self, channel: &mut Channel, pool: &mut Pool) -> io::Result<usize> {
        let mut cost = 0;
        while !self.replies.is_empty() {
            let segments = &mut self.segments.0;
            segments.clear();
            let mut skip = self.sent;
            for reply in self.replies.iter().take(BATCH) {
                for part in [reply.head.as_bytes(), &reply.more] {
                    if let Some(left) = part.get(skip..).filter(|left| !left.is_empty()) {
                        segments.push(segment_of(left));
                    }
                    skip = skip.saturating_sub(part.len());
                }
                if let Some((buf, _)) = &reply.data {
                    buf.window(skip, usize::MAX, usize::MAX, segments);
                }
                skip = 0;
            }
            // SAFETY: the segments are those of replies that stay until they are sent.
            match unsafe { channel.send(segments) }? {
                Moved::WouldBlock => break,
                Moved::End => return Err(io::ErrorKind::WriteZero.into()),
                Moved::Bytes(bytes) => self.sent += bytes,
            }
            while let Some(first) = self.replies.front()
                && self.sent >= first.len()
            {
                self.sent -= first.len();
                if let Some(reply) = self.replies.pop_front() {
                    cost += reply.cost;
                    if let Some((buf, pages)) = reply.data {
                        pool.put(buf, pages);
                    }
                }
            }
        }
        self.segments.0.clear();
        Ok(cost)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replies on their way to the socket.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_blk_core::disk::IoBuf;

use crate::channel::{Channel, Moved, segment_of};
use crate::pages::{Pages, Pool};

/// Replies in one call.
const BATCH: usize = 32;

/// A reply, or what is left of it.
pub(super) struct Reply {
    /// Headers, and payloads that are no data of the disk's.
    pub(super) head: Vec<u8>,
    /// Data that follows, and its memory.
    pub(super) data: Option<(IoBuf, Arc<Pages>)>,
    /// Bytes of memory that the request has until the reply is sent.
    pub(super) cost: usize,
}

impl Reply {
    fn len(&self) -> usize {
        self.head.len() + self.data.as_ref().map_or(0, |(buf, _)| buf.len())
    }
}

/// Replies in the order in which they are sent.
#[derive(Default)]
pub(super) struct Output {
    replies: VecDeque<Reply>,
    /// Bytes of the first one that are sent.
    sent: usize,
    segments: Vec<libc::iovec>,
}

// SAFETY: the segments are only filled and used within a call.
unsafe impl Send for Output {}

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
            self.segments.clear();
            let mut skip = self.sent;
            for reply in self.replies.iter().take(BATCH) {
                if let Some(head) = reply.head.get(skip..).filter(|head| !head.is_empty()) {
                    self.segments.push(segment_of(head));
                }
                if let Some((buf, _)) = &reply.data {
                    let from = skip.saturating_sub(reply.head.len());
                    buf.window(from, usize::MAX, usize::MAX, &mut self.segments);
                }
                skip = 0;
            }
            // SAFETY: the segments are those of replies that stay until they are sent.
            match unsafe { channel.send(&self.segments) }? {
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
                        drop(buf);
                        pool.put(pages);
                    }
                }
            }
        }
        self.segments.clear();
        Ok(cost)
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was received and is not used yet.

use std::io;

use virtio_blk_core::disk::IoBuf;

use crate::channel::{Channel, Moved, Segments, segment_of_mut};

/// Bytes: room for many requests, and for the data of small ones, which is copied from here. What does not fit is
/// received into the memory of its request.
const ROOM: usize = 64 << 10;

/// Bytes on their way from the socket to requests.
pub(super) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    segments: Segments,
}

/// What came of receiving once.
pub(super) struct Received {
    pub(super) moved: Moved,
    /// Bytes that went to the buffer.
    pub(super) direct: usize,
    /// All that was there was received, as far as can be told.
    pub(super) is_all: bool,
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; ROOM].into_boxed_slice(),
            start: 0,
            end: 0,
            segments: Segments::default(),
        }
    }

    /// What is there.
    pub(super) fn available(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Uses up `len` bytes of what is there.
    pub(super) fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Copies what is there to `buf`, from byte `filled` on. Returns how much.
    pub(super) fn copy_to(&mut self, buf: &IoBuf, filled: usize) -> usize {
        let copied = buf.copy_in(filled, self.available());
        self.consume(copied);
        copied
    }

    /// Receives what comes next. The first of it goes to `buf` from byte `filled` on, if there is one and nothing is here
    /// that comes before.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn receive(
        &mut self,
        channel: &mut Channel,
        buf: Option<(&IoBuf, usize)>,
    ) -> io::Result<Received> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let segments = &mut self.segments.0;
        segments.clear();
        let wanted = match buf {
            Some((buf, filled)) if self.end == 0 => buf.window(filled, usize::MAX, 1, segments),
            _ => 0,
        };
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        let total = wanted + room.len();
        segments.push(segment_of_mut(room));
        // SAFETY: the segments of the buffer are valid while it lives, and the disk has none of them yet; the last one is
        // a slice of ours.
        let moved = unsafe { channel.receive(segments) }?;
        let bytes = match moved {
            Moved::Bytes(bytes) => bytes,
            Moved::WouldBlock | Moved::End => 0,
        };
        let direct = bytes.min(wanted);
        self.end += bytes - direct;
        Ok(Received {
            moved,
            direct,
            is_all: bytes < total,
        })
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading and writing the fields of a message.

use super::{MAX_STRING, ProtoError};

/// What is left to be read of a message.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// The message, for errors.
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) const fn of(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], ProtoError> {
        let what = self.what;
        let (head, rest) = (self.rest.split_at_checked(len)).ok_or(ProtoError::Short { what })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let what = self.what;
        let (head, rest) = (self.rest.split_first_chunk()).ok_or(ProtoError::Short { what })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ProtoError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtoError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtoError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A number that must be this one.
    pub(super) fn magic32(&mut self, magic: u32) -> Result<(), ProtoError> {
        let (what, found) = (self.what, self.u32()?);
        let wrong = ProtoError::Magic {
            what,
            found: found.into(),
        };
        (found == magic).then_some(()).ok_or(wrong)
    }

    /// As [`Fields::magic32`].
    pub(super) fn magic64(&mut self, magic: u64) -> Result<(), ProtoError> {
        let (what, found) = (self.what, self.u64()?);
        let wrong = ProtoError::Magic { what, found };
        (found == magic).then_some(()).ok_or(wrong)
    }

    /// Text of `len` bytes.
    pub(super) fn text(&mut self, what: &'static str, len: usize) -> Result<&'a str, ProtoError> {
        if len > MAX_STRING {
            return Err(ProtoError::Length {
                what,
                len: len as u64,
                max: MAX_STRING as u64,
            });
        }
        let text = std::str::from_utf8(self.bytes(len)?).ok();
        text.filter(|text| !text.contains('\0'))
            .ok_or(ProtoError::Text { what })
    }

    /// Text with its length in front, in 32 bits.
    pub(super) fn text_after_len(&mut self, what: &'static str) -> Result<&'a str, ProtoError> {
        let len = self.u32()?;
        // Saturated it is beyond the limit.
        self.text(what, usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// The rest as text.
    pub(super) fn last_text(&mut self, what: &'static str) -> Result<&'a str, ProtoError> {
        self.text(what, self.rest.len())
    }

    /// All that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// There must be nothing left.
    pub(super) const fn end(self) -> Result<(), ProtoError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ProtoError::Long { what: self.what })
        }
    }
}

/// A header that is being written: at most `N` bytes.
pub(super) struct Header<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Header<N> {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Appends bytes, for which there is room.
    pub(super) fn put(mut self, bytes: &[u8]) -> Self {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        } else {
            debug_assert!(false, "a header of {N} bytes is too short");
        }
        self
    }

    pub(super) const fn done(self) -> [u8; N] {
        self.bytes
    }
}

/// Appends text with its length in front, in 32 bits. Longer text than the protocol has is cut at a character's end.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = clipped(text);
    // At most `MAX_STRING`.
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// As much of the text as a string of the protocol holds.
pub(super) fn clipped(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

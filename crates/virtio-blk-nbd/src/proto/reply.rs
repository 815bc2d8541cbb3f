// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Headers of replies to requests.

use super::chunk::{EXTENDED_MAGIC, STRUCTURED_MAGIC};
use super::fields::{Fields, Header};
use super::{Chunk, Errno, ProtoError, ReplyMode};

const SIMPLE_MAGIC: u32 = 0x6744_6698;

/// A simple reply. The data follows, if it is one to a read and there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// [`Errno::OK`], or why it failed.
    pub error: Errno,
    /// Of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// The wire form.
    pub fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&SIMPLE_MAGIC.to_be_bytes())
            .put(&self.error.0.to_be_bytes())
            .put(&self.cookie.to_be_bytes())
            .done()
    }
}

/// A reply, or a chunk of one, without what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// All of it.
    Simple(SimpleReply),
    /// A part.
    Chunk(Chunk),
}

impl ReplyHeader {
    /// Bytes by which the kind of a reply is told: [`ReplyHeader::len`].
    pub const MAGIC_LEN: usize = 4;

    /// Bytes of the whole header that begins with `magic`.
    ///
    /// # Errors
    /// No reply begins like that in this mode.
    pub fn len(magic: [u8; Self::MAGIC_LEN], mode: ReplyMode) -> Result<usize, ProtoError> {
        let found = u32::from_be_bytes(magic);
        match (found, mode) {
            (SIMPLE_MAGIC, ReplyMode::Simple | ReplyMode::Structured) => Ok(SimpleReply::LEN),
            (STRUCTURED_MAGIC, ReplyMode::Structured) => Ok(Chunk::LEN),
            (EXTENDED_MAGIC, ReplyMode::Extended) => Ok(Chunk::EXTENDED_LEN),
            _ => Err(ProtoError::Magic {
                what: "a reply",
                found: found.into(),
            }),
        }
    }

    /// Reads the wire form, of [`ReplyHeader::len`] bytes.
    ///
    /// # Errors
    /// It is no reply in this mode.
    pub fn decode(bytes: &[u8], mode: ReplyMode) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a reply", bytes);
        let magic = fields.u32()?;
        Self::len(magic.to_be_bytes(), mode)?;
        if magic != SIMPLE_MAGIC {
            return Chunk::decode(fields, mode).map(Self::Chunk);
        }
        let reply = SimpleReply {
            error: Errno(fields.u32()?),
            cookie: fields.u64()?,
        };
        fields.end()?;
        Ok(Self::Simple(reply))
    }
}

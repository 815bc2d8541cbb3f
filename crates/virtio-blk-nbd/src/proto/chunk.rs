// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chunks of structured replies, with and without extended headers.

use super::fields::{Fields, Header, clipped};
use super::{ChunkFlags, Errno, ProtoError, ReplyMode};

pub(super) const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
pub(super) const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// What a chunk holds (`NBD_REPLY_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkKind(pub u16);

impl ChunkKind {
    /// Nothing; it ends the reply.
    pub const NONE: Self = Self(0);
    /// An offset ([`split_offset`]) and data of the export.
    pub const OFFSET_DATA: Self = Self(1);
    /// A range of zeroes: [`OffsetHole`].
    pub const OFFSET_HOLE: Self = Self(2);
    /// [`BlockStatus`](super::BlockStatus).
    pub const BLOCK_STATUS: Self = Self(5);
    /// [`BlockStatus`](super::BlockStatus) with lengths of 64 bits.
    pub const BLOCK_STATUS_EXT: Self = Self(6);

    const IS_ERROR: u16 = 1 << 15;
    /// A [`ChunkError`].
    pub const ERROR: Self = Self(Self::IS_ERROR | 1);
    /// A [`ChunkError`] with an offset.
    pub const ERROR_OFFSET: Self = Self(Self::IS_ERROR | 2);

    /// Whether it says that the request failed: also a kind that is not known.
    pub const fn is_error(self) -> bool {
        self.0 & Self::IS_ERROR != 0
    }
}

/// The header of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whether it is the last.
    pub flags: ChunkFlags,
    /// What it holds.
    pub kind: ChunkKind,
    /// Of the request.
    pub cookie: u64,
    /// The request's, with extended headers; else 0.
    pub offset: u64,
    /// Bytes of the payload; at most 2^32 - 1 without extended headers.
    pub length: u64,
}

impl Chunk {
    /// Bytes on the wire without extended headers.
    pub const LEN: usize = 20;
    /// Bytes on the wire with extended headers.
    pub const EXTENDED_LEN: usize = 32;

    /// The wire form: the first [`Chunk::LEN`] bytes of it without extended headers. The caller keeps the length
    /// below 2^32 then.
    pub fn encode(&self, mode: ReplyMode) -> [u8; Self::EXTENDED_LEN] {
        let extended = mode == ReplyMode::Extended;
        let magic = if extended {
            EXTENDED_MAGIC
        } else {
            STRUCTURED_MAGIC
        };
        let header = Header::new()
            .put(&magic.to_be_bytes())
            .put(&self.flags.0.to_be_bytes())
            .put(&self.kind.0.to_be_bytes())
            .put(&self.cookie.to_be_bytes());
        if extended {
            let header = header.put(&self.offset.to_be_bytes());
            return header.put(&self.length.to_be_bytes()).done();
        }
        debug_assert!(self.length <= u32::MAX.into());
        header.put(&(self.length as u32).to_be_bytes()).done()
    }

    /// Bytes on the wire.
    pub const fn len(mode: ReplyMode) -> usize {
        match mode {
            ReplyMode::Simple | ReplyMode::Structured => Self::LEN,
            ReplyMode::Extended => Self::EXTENDED_LEN,
        }
    }

    /// Reads what follows the magic.
    pub(super) fn decode(mut fields: Fields<'_>, mode: ReplyMode) -> Result<Self, ProtoError> {
        let extended = mode == ReplyMode::Extended;
        let chunk = Self {
            flags: ChunkFlags(fields.u16()?),
            kind: ChunkKind(fields.u16()?),
            cookie: fields.u64()?,
            offset: if extended { fields.u64()? } else { 0 },
            length: match extended {
                true => fields.u64()?,
                false => fields.u32()?.into(),
            },
        };
        fields.end()?;
        Ok(chunk)
    }

    /// Whether it ends the reply.
    pub const fn is_last(&self) -> bool {
        self.flags.contains(ChunkFlags::DONE)
    }
}

/// The payload of [`ChunkKind::OFFSET_DATA`], or its beginning: the offset in the export, and the data.
///
/// # Errors
/// There is no offset.
pub fn split_offset(payload: &[u8]) -> Result<(u64, &[u8]), ProtoError> {
    let mut fields = Fields::of("a chunk of data", payload);
    Ok((fields.u64()?, fields.rest()))
}

/// The payload of [`ChunkKind::OFFSET_HOLE`]: a range that reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetHole {
    /// The first byte in the export.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl OffsetHole {
    /// Bytes on the wire.
    pub const LEN: usize = 12;

    /// The payload.
    pub fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&self.offset.to_be_bytes())
            .put(&self.length.to_be_bytes())
            .done()
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// It has another length.
    pub fn decode(payload: &[u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a chunk of zeroes", payload);
        let (offset, length) = (fields.u64()?, fields.u32()?);
        fields.end()?;
        Ok(Self { offset, length })
    }
}

/// The payload of [`ChunkKind::ERROR`] and [`ChunkKind::ERROR_OFFSET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkError<'a> {
    /// Why. Not [`Errno::OK`].
    pub error: Errno,
    /// For people. Often empty.
    pub message: &'a str,
    /// Where in the export, of an [`ChunkKind::ERROR_OFFSET`].
    pub offset: Option<u64>,
}

impl<'a> ChunkError<'a> {
    /// The longest payload.
    pub const MAX_LEN: usize = 4 + 2 + super::MAX_STRING + 8;

    /// The kind of its chunk.
    pub const fn kind(&self) -> ChunkKind {
        match self.offset {
            Some(_) => ChunkKind::ERROR_OFFSET,
            None => ChunkKind::ERROR,
        }
    }

    /// The payload.
    pub fn encode(self) -> Vec<u8> {
        let message = clipped(self.message);
        let mut out = Vec::with_capacity(14 + message.len());
        out.extend_from_slice(&self.error.0.to_be_bytes());
        // At most `MAX_STRING`.
        out.extend_from_slice(&(message.len() as u16).to_be_bytes());
        out.extend_from_slice(message.as_bytes());
        if let Some(offset) = self.offset {
            out.extend_from_slice(&offset.to_be_bytes());
        }
        out
    }

    /// Reads the payload of a chunk of this kind. Of an error that is not known here the number is read, and what
    /// follows is ignored.
    ///
    /// # Errors
    /// It is malformed, or no error.
    pub fn decode(kind: ChunkKind, payload: &'a [u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a chunk with an error", payload);
        let error = Errno(fields.u32()?);
        if error == Errno::OK {
            return Err(ProtoError::Value {
                what: "the error of a chunk",
                found: 0,
            });
        }
        let len = fields.u16()?;
        let message = fields.text("the message of an error", len.into())?;
        let offset = match kind {
            ChunkKind::ERROR_OFFSET => Some(fields.u64()?),
            ChunkKind::ERROR => None,
            // More may follow in a kind that comes later.
            _ => {
                return Ok(Self {
                    error,
                    message,
                    offset: None,
                });
            }
        };
        fields.end()?;
        Ok(Self {
            error,
            message,
            offset,
        })
    }
}

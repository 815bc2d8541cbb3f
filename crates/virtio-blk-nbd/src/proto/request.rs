// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests.

use super::fields::{Fields, Header};
use super::{CommandFlags, ProtoError, ReplyMode};

const MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// What is asked for (`NBD_CMD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub u16);

impl Command {
    /// Read.
    pub const READ: Self = Self(0);
    /// Write; the payload is the data.
    pub const WRITE: Self = Self(1);
    /// The client goes away. There is no reply.
    pub const DISC: Self = Self(2);
    /// All that completed becomes stable.
    pub const FLUSH: Self = Self(3);
    /// The content is no longer needed.
    pub const TRIM: Self = Self(4);
    /// The content is needed soon.
    pub const CACHE: Self = Self(5);
    /// The range reads as zeroes afterwards.
    pub const WRITE_ZEROES: Self = Self(6);
    /// Which states the range has in the contexts that were agreed upon.
    pub const BLOCK_STATUS: Self = Self(7);

    /// Its name, for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::READ => "read",
            Self::WRITE => "write",
            Self::DISC => "disconnect",
            Self::FLUSH => "flush",
            Self::TRIM => "trim",
            Self::CACHE => "cache",
            Self::WRITE_ZEROES => "write zeroes",
            Self::BLOCK_STATUS => "block status",
            _ => "unknown command",
        }
    }
}

/// A request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How to execute it.
    pub flags: CommandFlags,
    /// What to do.
    pub command: Command,
    /// By which the reply names it.
    pub cookie: u64,
    /// The first byte; 0 where there is no range.
    pub offset: u64,
    /// Bytes of the range; at most 2^32 - 1 without extended headers.
    pub length: u64,
}

impl Request {
    /// Bytes on the wire without extended headers.
    pub const LEN: usize = 28;
    /// Bytes on the wire with extended headers.
    pub const EXTENDED_LEN: usize = 32;

    /// Bytes on the wire.
    pub const fn len(mode: ReplyMode) -> usize {
        match mode {
            ReplyMode::Simple | ReplyMode::Structured => Self::LEN,
            ReplyMode::Extended => Self::EXTENDED_LEN,
        }
    }

    /// The wire form: the first [`Request::len`] bytes of it.
    ///
    /// # Errors
    /// [`ProtoError::Length`] if the length needs extended headers.
    pub fn encode(&self, mode: ReplyMode) -> Result<[u8; Self::EXTENDED_LEN], ProtoError> {
        let extended = mode == ReplyMode::Extended;
        let magic = if extended { EXTENDED_MAGIC } else { MAGIC };
        let header = Header::new()
            .put(&magic.to_be_bytes())
            .put(&self.flags.0.to_be_bytes())
            .put(&self.command.0.to_be_bytes())
            .put(&self.cookie.to_be_bytes())
            .put(&self.offset.to_be_bytes());
        if extended {
            return Ok(header.put(&self.length.to_be_bytes()).done());
        }
        let length = u32::try_from(self.length).map_err(|_| ProtoError::Length {
            what: "a request",
            len: self.length,
            max: u32::MAX.into(),
        })?;
        Ok(header.put(&length.to_be_bytes()).done())
    }

    /// Reads the wire form, of [`Request::len`] bytes.
    ///
    /// # Errors
    /// It is no request.
    pub fn decode(bytes: &[u8], mode: ReplyMode) -> Result<Self, ProtoError> {
        let extended = mode == ReplyMode::Extended;
        let mut fields = Fields::of("a request", bytes);
        fields.magic32(if extended { EXTENDED_MAGIC } else { MAGIC })?;
        let request = Self {
            flags: CommandFlags(fields.u16()?),
            command: Command(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: match extended {
                true => fields.u64()?,
                false => fields.u32()?.into(),
            },
        };
        fields.end()?;
        Ok(request)
    }

    /// Bytes of the payload that follows.
    pub fn payload_len(&self, mode: ReplyMode) -> u64 {
        let extended = mode == ReplyMode::Extended;
        let has = self.command == Command::WRITE
            || extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if has { self.length } else { 0 }
    }
}

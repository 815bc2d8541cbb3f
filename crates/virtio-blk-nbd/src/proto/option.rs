// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Options, which the client sends, and replies to them.

use super::fields::{Fields, Header, clipped, put_text};
use super::greeting::IHAVEOPT;
use super::{MAX_OPTION, ProtoError};

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Which option it is (`NBD_OPT_*`). A server replies to one that it does not know with
/// [`OptionReplyKind::ERR_UNSUP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionKind(pub u32);

impl OptionKind {
    /// Begin to use an export, with a reply that can't say no. The payload is its name.
    pub const EXPORT_NAME: Self = Self(1);
    /// The client goes away.
    pub const ABORT: Self = Self(2);
    /// The names of all exports. No payload.
    pub const LIST: Self = Self(3);
    /// TLS from here on. No payload.
    pub const STARTTLS: Self = Self(5);
    /// What an export is like. The payload is an [`ExportRequest`](super::ExportRequest).
    pub const INFO: Self = Self(6);
    /// Begin to use an export. The payload is an [`ExportRequest`](super::ExportRequest).
    pub const GO: Self = Self(7);
    /// Structured replies from here on. No payload.
    pub const STRUCTURED_REPLY: Self = Self(8);
    /// Which contexts there are. The payload is a [`MetaContextQuery`](super::MetaContextQuery).
    pub const LIST_META_CONTEXT: Self = Self(9);
    /// Which contexts the block status is asked for in. The payload is a
    /// [`MetaContextQuery`](super::MetaContextQuery).
    pub const SET_META_CONTEXT: Self = Self(10);
    /// Extended headers from here on. No payload.
    pub const EXTENDED_HEADERS: Self = Self(11);
}

/// In front of an option's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option.
    pub kind: OptionKind,
    /// Bytes of the payload.
    pub len: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// The wire form.
    pub fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&IHAVEOPT.to_be_bytes())
            .put(&self.kind.0.to_be_bytes())
            .put(&self.len.to_be_bytes())
            .done()
    }

    /// Reads the wire form. The length is not limited here: a server may skip what is too long for it, and say so.
    ///
    /// # Errors
    /// It is no option.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("an option", bytes);
        fields.magic64(IHAVEOPT)?;
        let (kind, len) = (OptionKind(fields.u32()?), fields.u32()?);
        fields.end()?;
        Ok(Self { kind, len })
    }
}

/// What a reply to an option says (`NBD_REP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyKind(pub u32);

impl OptionReplyKind {
    /// Done; the last reply.
    pub const ACK: Self = Self(1);
    /// An export: [`ServerExport`].
    pub const SERVER: Self = Self(2);
    /// Something about an export: [`Info`](super::Info).
    pub const INFO: Self = Self(3);
    /// A context: [`MetaContext`](super::MetaContext).
    pub const META_CONTEXT: Self = Self(4);

    const ERROR: u32 = 1 << 31;
    /// The server does not know the option.
    pub const ERR_UNSUP: Self = Self(Self::ERROR | 1);
    /// The server does not want it.
    pub const ERR_POLICY: Self = Self(Self::ERROR | 2);
    /// The option makes no sense, or not now.
    pub const ERR_INVALID: Self = Self(Self::ERROR | 3);
    /// The server's machine can't.
    pub const ERR_PLATFORM: Self = Self(Self::ERROR | 4);
    /// Not without TLS.
    pub const ERR_TLS_REQD: Self = Self(Self::ERROR | 5);
    /// There is no such export.
    pub const ERR_UNKNOWN: Self = Self(Self::ERROR | 6);
    /// The server is about to end.
    pub const ERR_SHUTDOWN: Self = Self(Self::ERROR | 7);
    /// Not to a client that does not ask for the block sizes.
    pub const ERR_BLOCK_SIZE_REQD: Self = Self(Self::ERROR | 8);
    /// The option is too long.
    pub const ERR_TOO_BIG: Self = Self(Self::ERROR | 9);
    /// Not without extended headers.
    pub const ERR_EXT_HEADER_REQD: Self = Self(Self::ERROR | 10);

    /// Whether it is an error, which is always the last reply. Its payload is a message for people, perhaps empty.
    pub const fn is_error(self) -> bool {
        self.0 & Self::ERROR != 0
    }
}

/// In front of the payload of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option that was sent.
    pub option: OptionKind,
    /// What it says.
    pub kind: OptionReplyKind,
    /// Bytes of the payload.
    pub len: u32,
}

impl OptionReply {
    /// Bytes on the wire.
    pub const LEN: usize = 20;

    /// The wire form.
    pub fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&REPLY_MAGIC.to_be_bytes())
            .put(&self.option.0.to_be_bytes())
            .put(&self.kind.0.to_be_bytes())
            .put(&self.len.to_be_bytes())
            .done()
    }

    /// Reads the wire form of a reply to `option`.
    ///
    /// # Errors
    /// It is no such reply, or its payload is longer than [`MAX_OPTION`].
    pub fn decode(bytes: &[u8; Self::LEN], option: OptionKind) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a reply to an option", bytes);
        fields.magic64(REPLY_MAGIC)?;
        let found = fields.u32()?;
        if found != option.0 {
            return Err(ProtoError::Value {
                what: "the option of a reply",
                found: found.into(),
            });
        }
        let (kind, len) = (OptionReplyKind(fields.u32()?), fields.u32()?);
        fields.end()?;
        if len as usize > MAX_OPTION {
            return Err(ProtoError::Length {
                what: "the reply to an option",
                len: len.into(),
                max: MAX_OPTION as u64,
            });
        }
        Ok(Self { option, kind, len })
    }

    /// The whole wire form of a reply to `option`. The caller keeps `payload` below [`MAX_OPTION`].
    pub fn message(option: OptionKind, kind: OptionReplyKind, payload: &[u8]) -> Vec<u8> {
        let header = Self {
            option,
            kind,
            len: payload.len() as u32,
        };
        [&header.encode(), payload].concat()
    }

    /// The message of an error in its payload: what of it is text.
    pub fn error_text(payload: &[u8]) -> String {
        let text = String::from_utf8_lossy(payload);
        clipped(&text).trim_matches(['\0', '\n', ' ']).to_owned()
    }
}

/// An export in the reply to [`OptionKind::LIST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerExport<'a> {
    /// Its name.
    pub name: &'a str,
    /// What people may read of it. Often empty.
    pub description: &'a str,
}

impl<'a> ServerExport<'a> {
    /// The payload.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, self.name);
        out.extend_from_slice(clipped(self.description).as_bytes());
        out
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(payload: &'a [u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("the name of an export", payload);
        let name = fields.text_after_len("the name of an export")?;
        let description = fields.last_text("the description of an export")?;
        Ok(Self { name, description })
    }
}

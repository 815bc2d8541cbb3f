// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a server tells of an export.

use super::export::checked_size;
use super::fields::{Fields, clipped};
use super::{BlockSizes, ExportFlags, ProtoError};

/// What an [`Info`] is about (`NBD_INFO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoKind(pub u16);

impl InfoKind {
    /// Size and flags. Sent also if it is not asked for.
    pub const EXPORT: Self = Self(0);
    /// Its proper name.
    pub const NAME: Self = Self(1);
    /// What people may read of it.
    pub const DESCRIPTION: Self = Self(2);
    /// The block sizes. A client that asks for it promises to keep to them.
    pub const BLOCK_SIZE: Self = Self(3);
}

/// Something about an export: the payload of the reply `INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Info<'a> {
    /// Size and abilities.
    Export {
        /// Bytes.
        size: u64,
        /// What it can do.
        flags: ExportFlags,
    },
    /// Its proper name, where the client asked by another.
    Name(&'a str),
    /// What people may read of it.
    Description(&'a str),
    /// What offsets and lengths must be like.
    BlockSize(BlockSizes),
    /// Something that is not known here, and to be ignored.
    Other(InfoKind),
}

impl<'a> Info<'a> {
    /// The payload.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut kind = |kind: InfoKind| out.extend_from_slice(&kind.0.to_be_bytes());
        match self {
            Self::Export { size, flags } => {
                kind(InfoKind::EXPORT);
                out.extend_from_slice(&size.to_be_bytes());
                out.extend_from_slice(&flags.0.to_be_bytes());
            }
            Self::Name(name) => {
                kind(InfoKind::NAME);
                out.extend_from_slice(clipped(name).as_bytes());
            }
            Self::Description(text) => {
                kind(InfoKind::DESCRIPTION);
                out.extend_from_slice(clipped(text).as_bytes());
            }
            Self::BlockSize(sizes) => {
                kind(InfoKind::BLOCK_SIZE);
                out.extend_from_slice(&sizes.encode());
            }
            Self::Other(other) => kind(other),
        }
        out
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// It is malformed, or says what can't be.
    pub fn decode(payload: &'a [u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("what the server says of the export", payload);
        let info = match InfoKind(fields.u16()?) {
            InfoKind::EXPORT => Self::Export {
                size: checked_size(fields.u64()?)?,
                flags: ExportFlags(fields.u16()?),
            },
            InfoKind::NAME => return Ok(Self::Name(fields.last_text("the name of the export")?)),
            InfoKind::DESCRIPTION => {
                return Ok(Self::Description(
                    fields.last_text("the description of the export")?,
                ));
            }
            InfoKind::BLOCK_SIZE => Self::BlockSize(BlockSizes::decode(&mut fields)?),
            other => return Ok(Self::Other(other)),
        };
        fields.end()?;
        Ok(info)
    }
}

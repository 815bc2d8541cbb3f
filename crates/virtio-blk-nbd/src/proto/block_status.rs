// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is where on an export, in a context.

use super::fields::Fields;
use super::{ChunkKind, ProtoError};

/// A piece of an export with one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes. Not 0.
    pub length: u64,
    /// The state; what it means depends on the context. At most 32 bits without extended headers.
    pub flags: u64,
}

/// The message, for errors.
const WHAT: &str = "a chunk of block status";

const fn is_extended(kind: ChunkKind) -> bool {
    kind.0 == ChunkKind::BLOCK_STATUS_EXT.0
}

impl StatusExtent {
    /// Bytes on the wire, in a chunk of this kind.
    pub const fn len(kind: ChunkKind) -> usize {
        if is_extended(kind) { 16 } else { 8 }
    }

    /// Reads the wire form, of [`StatusExtent::len`] bytes.
    ///
    /// # Errors
    /// It has another length, or covers nothing.
    pub fn decode(kind: ChunkKind, bytes: &[u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of(WHAT, bytes);
        let extent = match is_extended(kind) {
            true => Self {
                length: fields.u64()?,
                flags: fields.u64()?,
            },
            false => Self {
                length: fields.u32()?.into(),
                flags: fields.u32()?.into(),
            },
        };
        fields.end()?;
        if extent.length == 0 {
            return Err(ProtoError::Value {
                what: "the length of an extent",
                found: 0,
            });
        }
        Ok(extent)
    }
}

/// The states of the context `base:allocation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Nothing is allocated there.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

impl Allocation {
    const HOLE: u64 = 1 << 0;
    const ZERO: u64 = 1 << 1;

    /// As the state of an extent.
    pub const fn flags(self) -> u64 {
        (if self.hole { Self::HOLE } else { 0 }) | (if self.zero { Self::ZERO } else { 0 })
    }

    /// From the state of an extent.
    pub const fn of(flags: u64) -> Self {
        Self {
            hole: flags & Self::HOLE != 0,
            zero: flags & Self::ZERO != 0,
        }
    }
}

/// The payload of [`ChunkKind::BLOCK_STATUS`] and [`ChunkKind::BLOCK_STATUS_EXT`]: extents from the offset of the
/// request on, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// The context, as it was numbered when it was agreed upon.
    pub context: u32,
    /// The extents. At least one.
    pub extents: Vec<StatusExtent>,
}

impl BlockStatus {
    /// The payload of a chunk of this kind. Without extended headers the caller keeps lengths and states below 2^32.
    pub fn encode(&self, kind: ChunkKind) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.context.to_be_bytes());
        let extended = is_extended(kind);
        if extended {
            out.extend_from_slice(&(self.extents.len() as u32).to_be_bytes());
        }
        for extent in &self.extents {
            if extended {
                out.extend_from_slice(&extent.length.to_be_bytes());
                out.extend_from_slice(&extent.flags.to_be_bytes());
            } else {
                debug_assert!(extent.length.max(extent.flags) <= u32::MAX.into());
                out.extend_from_slice(&(extent.length as u32).to_be_bytes());
                out.extend_from_slice(&(extent.flags as u32).to_be_bytes());
            }
        }
        out
    }

    /// Bytes in front of the extents in a chunk of this kind: see [`BlockStatus::decode_context`].
    pub const fn head_len(kind: ChunkKind) -> usize {
        if is_extended(kind) { 8 } else { 4 }
    }

    /// Reads what is in front of the extents in a chunk of this kind, whose whole payload has so many bytes: the
    /// context.
    ///
    /// # Errors
    /// It is malformed, or there are no extents.
    pub fn decode_context(kind: ChunkKind, head: &[u8], payload: u64) -> Result<u32, ProtoError> {
        let mut fields = Fields::of(WHAT, head);
        let context = fields.u32()?;
        let count = match is_extended(kind) {
            true => Some(u64::from(fields.u32()?)),
            false => None,
        };
        fields.end()?;
        let size = StatusExtent::len(kind) as u64;
        let list = payload.saturating_sub(Self::head_len(kind) as u64);
        let whole = list != 0 && list.is_multiple_of(size);
        if !whole || count.is_some_and(|count| count != list / size) {
            return Err(ProtoError::Value {
                what: "the length of a chunk of block status",
                found: payload,
            });
        }
        Ok(context)
    }

    /// Reads the payload of a chunk of this kind. The list is as long as the payload; the caller limits that.
    ///
    /// # Errors
    /// It is malformed, has no extents, or one of no length.
    pub fn decode(kind: ChunkKind, payload: &[u8]) -> Result<Self, ProtoError> {
        let (head, list) = (payload.split_at_checked(Self::head_len(kind)))
            .ok_or(ProtoError::Short { what: WHAT })?;
        let context = Self::decode_context(kind, head, payload.len() as u64)?;
        let extents = list.chunks(StatusExtent::len(kind));
        let extents = extents.map(|extent| StatusExtent::decode(kind, extent));
        Ok(Self {
            context,
            extents: extents.collect::<Result<_, _>>()?,
        })
    }
}

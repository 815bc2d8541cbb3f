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
        let extended = kind == ChunkKind::BLOCK_STATUS_EXT;
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

    /// Reads the payload of a chunk of this kind. The list is as long as the payload; the caller limits that.
    ///
    /// # Errors
    /// It is malformed, has no extents, or one of no length.
    pub fn decode(kind: ChunkKind, payload: &[u8]) -> Result<Self, ProtoError> {
        const WHAT: &str = "a chunk of block status";
        let mut fields = Fields::of(WHAT, payload);
        let context = fields.u32()?;
        let extended = kind == ChunkKind::BLOCK_STATUS_EXT;
        let count = if extended { Some(fields.u32()?) } else { None };
        let size = if extended { 16 } else { 8 };
        let list = fields.rest();
        let whole = list.len().is_multiple_of(size) && !list.is_empty();
        if !whole || count.is_some_and(|count| count as usize != list.len() / size) {
            return Err(ProtoError::Value {
                what: "the length of a chunk of block status",
                found: payload.len() as u64,
            });
        }
        let mut extents = Vec::with_capacity(list.len() / size);
        for _ in 0..list.len() / size {
            let extent = if extended {
                StatusExtent {
                    length: fields.u64()?,
                    flags: fields.u64()?,
                }
            } else {
                StatusExtent {
                    length: fields.u32()?.into(),
                    flags: fields.u32()?.into(),
                }
            };
            if extent.length == 0 {
                return Err(ProtoError::Value {
                    what: "the length of an extent",
                    found: 0,
                });
            }
            extents.push(extent);
        }
        Ok(Self { context, extents })
    }
}

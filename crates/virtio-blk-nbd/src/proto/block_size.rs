// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What offsets and lengths must be like.

use super::fields::{Fields, Header};
use super::{MAX_PAYLOAD, ProtoError};

/// What a server wants offsets and lengths to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Bytes, a power of two from 1 to 65536: what offsets and lengths must be a multiple of.
    pub minimum: u32,
    /// Bytes, a power of two, at least `minimum`: what they should be a multiple of.
    pub preferred: u32,
    /// Bytes, at least `minimum`: the longest payload of a request or a reply. 2^32 - 1: no limit.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What a client uses with a server that says nothing.
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: MAX_PAYLOAD,
        }
    }
}

impl BlockSizes {
    const LEN: usize = 12;

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&self.minimum.to_be_bytes())
            .put(&self.preferred.to_be_bytes())
            .put(&self.maximum.to_be_bytes())
            .done()
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, ProtoError> {
        let sizes = Self {
            minimum: fields.u32()?,
            preferred: fields.u32()?,
            maximum: fields.u32()?,
        };
        sizes.checked()
    }

    /// These, if they make sense.
    ///
    /// # Errors
    /// [`ProtoError::Value`] with the one that does not.
    pub const fn checked(self) -> Result<Self, ProtoError> {
        let Self {
            minimum,
            preferred,
            maximum,
        } = self;
        let (what, found) = if !minimum.is_power_of_two() || minimum > 1 << 16 {
            ("the minimum block size", minimum)
        } else if !preferred.is_power_of_two() || preferred < minimum {
            ("the preferred block size", preferred)
        } else if maximum < minimum {
            ("the maximum payload", maximum)
        } else {
            return Ok(self);
        };
        Err(ProtoError::Value {
            what,
            found: found as u64,
        })
    }
}

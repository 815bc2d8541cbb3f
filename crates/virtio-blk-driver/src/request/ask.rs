// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What to ask of a device.

use super::Framing;
use crate::Segment;
use crate::wire::{self, HEADER_LEN, Range};

/// Data the device reads.
#[derive(Clone, Copy, Debug, Default)]
pub enum Out<'a> {
    /// None.
    #[default]
    None,
    /// These bytes, copied to the slot's data area.
    Bytes(&'a [u8]),
    /// These ranges, copied to the slot's data area.
    Ranges(&'a [Range]),
    /// So many bytes of the slot's data area, whatever they are.
    InPlace(u32),
    /// Guest memory of the caller's.
    Segments(&'a [Segment]),
}

impl Out<'_> {
    /// Bytes taken from the slot's data area.
    pub(super) fn slot_len(&self) -> u64 {
        match self {
            Self::None | Self::Segments(_) => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Ranges(ranges) => ranges.len() as u64 * u64::from(Range::LEN),
            Self::InPlace(len) => u64::from(*len),
        }
    }
}

/// Room for data the device writes.
#[derive(Clone, Copy, Debug, Default)]
pub enum In<'a> {
    /// None.
    #[default]
    None,
    /// So many bytes at the end of the slot's data area.
    Len(u32),
    /// Guest memory of the caller's.
    Segments(&'a [Segment]),
}

/// A request, right or wrong: every part can be set at will. The constructors make right ones.
///
/// The device reads `header[..header_len]` and then `out`; it writes `input` and then, if `status`, one
/// status byte. `framing` says how these two streams are cut into descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The header (see [`wire::header`]).
    pub header: [u8; HEADER_LEN as usize],
    /// Bytes of the header that the device gets to see; at most 16.
    pub header_len: u8,
    /// What the device reads after the header.
    pub out: Out<'a>,
    /// What the device writes before the status.
    pub input: In<'a>,
    /// Whether there is a status byte.
    pub status: bool,
    /// How to cut it.
    pub framing: Framing<'a>,
    /// Put the descriptors into the slot's indirect table.
    pub indirect: bool,
}

impl<'a> Request<'a> {
    /// A request of any type with no data.
    pub fn new(kind: u32, sector: u64) -> Self {
        Self {
            header: wire::header(kind, 0, sector),
            header_len: HEADER_LEN as u8,
            out: Out::None,
            input: In::None,
            status: true,
            framing: Framing::Separate,
            indirect: false,
        }
    }

    /// Reads `len` bytes from `sector` on into the slot's data area.
    pub fn read(sector: u64, len: u32) -> Self {
        Self::new(wire::T_IN, sector).with_input(In::Len(len))
    }

    /// Writes `data` from `sector` on.
    pub fn write(sector: u64, data: &'a [u8]) -> Self {
        Self::new(wire::T_OUT, sector).with_out(Out::Bytes(data))
    }

    /// Makes completed writes stable.
    pub fn flush() -> Self {
        Self::new(wire::T_FLUSH, 0)
    }

    /// Asks for the device's name.
    pub fn get_id() -> Self {
        Self::new(wire::T_GET_ID, 0).with_input(In::Len(wire::ID_LEN))
    }

    /// Asks for the medium's wear.
    pub fn get_lifetime() -> Self {
        Self::new(wire::T_GET_LIFETIME, 0).with_input(In::Len(wire::LIFETIME_LEN))
    }

    /// Discards ranges.
    pub fn discard(ranges: &'a [Range]) -> Self {
        Self::new(wire::T_DISCARD, 0).with_out(Out::Ranges(ranges))
    }

    /// Zeroes ranges.
    pub fn write_zeroes(ranges: &'a [Range]) -> Self {
        Self::new(wire::T_WRITE_ZEROES, 0).with_out(Out::Ranges(ranges))
    }

    /// Erases ranges for good.
    pub fn secure_erase(ranges: &'a [Range]) -> Self {
        Self::new(wire::T_SECURE_ERASE, 0).with_out(Out::Ranges(ranges))
    }

    /// The same with this to read.
    #[must_use]
    pub const fn with_out(self, out: Out<'a>) -> Self {
        Self { out, ..self }
    }

    /// The same with this to write.
    #[must_use]
    pub const fn with_input(self, input: In<'a>) -> Self {
        Self { input, ..self }
    }

    /// The same, cut like this.
    #[must_use]
    pub const fn framed(self, framing: Framing<'a>) -> Self {
        Self { framing, ..self }
    }

    /// The same, in an indirect table or not.
    #[must_use]
    pub const fn indirect(self, indirect: bool) -> Self {
        Self { indirect, ..self }
    }
}

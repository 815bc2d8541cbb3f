// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Request header, segments and status (virtio 1.4, 5.2.6).

/// Bytes of a request header.
pub const HEADER_SIZE: usize = 16;
/// Bytes of one discard, write-zeroes or secure-erase segment.
pub const SEGMENT_SIZE: usize = 16;
/// Bytes of the serial number that `GET_ID` returns, NUL-padded.
pub const SERIAL_SIZE: usize = 20;
/// The unmap flag of a segment.
pub const SEGMENT_FLAG_UNMAP: u32 = 1;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestType {
    /// Read.
    In,
    /// Write.
    Out,
    /// Flush the write cache.
    Flush,
    /// Read the serial number.
    GetId,
    /// Read the wear of the medium.
    GetLifetime,
    /// Discard segments.
    Discard,
    /// Zero segments.
    WriteZeroes,
    /// Erase segments for good.
    SecureErase,
    /// Anything else, the zone commands among it.
    Unknown(u32),
}

impl RequestType {
    /// Reads the wire value. No bit is masked away: the legacy barrier bit makes a type unknown.
    pub const fn from_wire(value: u32) -> Self {
        match value {
            0 => Self::In,
            1 => Self::Out,
            4 => Self::Flush,
            8 => Self::GetId,
            10 => Self::GetLifetime,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            14 => Self::SecureErase,
            other => Self::Unknown(other),
        }
    }

    /// The wire value.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::GetLifetime => 10,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::SecureErase => 14,
            Self::Unknown(other) => other,
        }
    }

    /// A name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "read",
            Self::Out => "write",
            Self::Flush => "flush",
            Self::GetId => "serial number",
            Self::GetLifetime => "lifetime",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::SecureErase => "secure-erase",
            Self::Unknown(_) => "unknown request",
        }
    }
}

/// The first 16 readable bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// What to do.
    pub kind: RequestType,
    /// First sector (of 512 bytes) of a read or write.
    pub sector: u64,
}

impl RequestHeader {
    /// Reads the wire form. The reserved field (once `ioprio`) is ignored.
    #[cfg(any(test, feature = "internals"))]
    pub const fn from_bytes(b: &[u8; HEADER_SIZE]) -> Self {
        Self {
            kind: RequestType::from_wire(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            sector: u64::from_le_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        }
    }

    /// Reads the wire form as two little-endian numbers.
    #[inline]
    pub(crate) const fn from_halves([head, sector]: [u64; 2]) -> Self {
        Self {
            kind: RequestType::from_wire(head as u32),
            sector,
        }
    }

    /// The wire form.
    #[cfg(any(test, feature = "internals"))]
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..4].copy_from_slice(&self.kind.to_wire().to_le_bytes());
        bytes[8..].copy_from_slice(&self.sector.to_le_bytes());
        bytes
    }
}

/// One segment of a discard, write-zeroes or secure-erase request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeSegment {
    /// First sector of 512 bytes.
    pub sector: u64,
    /// Sectors.
    pub num_sectors: u32,
    /// [`SEGMENT_FLAG_UNMAP`], or bits this device does not know.
    pub flags: u32,
}

impl RangeSegment {
    /// Reads the wire form.
    pub const fn from_bytes(b: &[u8; SEGMENT_SIZE]) -> Self {
        Self {
            sector: u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            num_sectors: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            flags: u32::from_le_bytes([b[12], b[13], b[14], b[15]]),
        }
    }

    /// The wire form.
    #[cfg(any(test, feature = "internals"))]
    pub fn to_bytes(self) -> [u8; SEGMENT_SIZE] {
        let mut bytes = [0; SEGMENT_SIZE];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.num_sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// The status byte of a finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestStatus {
    /// Done.
    Ok = 0,
    /// Failed, or the request made no sense.
    IoErr = 1,
    /// Not supported by this device.
    Unsupp = 2,
}

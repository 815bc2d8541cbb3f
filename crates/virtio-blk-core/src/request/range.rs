// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The segments of discard, write-zeroes and secure-erase requests.

use super::RequestLimits;
use crate::disk::{OpKind, SECTOR_SIZE};
use crate::spec::{RangeSegment, RequestStatus, SEGMENT_FLAG_UNMAP, SEGMENT_SIZE};

/// What to do with the segments of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Secure erase.
    SecureErase,
}

impl RangeKind {
    /// Most segments and most sectors of one, where the feature was negotiated.
    pub(super) fn limits(self, limits: &RequestLimits) -> Option<(u32, u32)> {
        match self {
            Self::Discard => limits.discard.map(|l| (l.max_segments, l.max_sectors)),
            Self::SecureErase => limits.secure_erase.map(|l| (l.max_segments, l.max_sectors)),
            Self::WriteZeroes => limits.write_zeroes.map(|l| (l.max_segments, l.max_sectors)),
        }
    }

    /// The flags that a segment may carry.
    const fn known_flags(self) -> u32 {
        match self {
            Self::WriteZeroes => SEGMENT_FLAG_UNMAP,
            Self::Discard | Self::SecureErase => 0,
        }
    }
}

/// One validated segment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Bytes; may be 0.
    pub len: u64,
    /// The driver allows deallocation (write-zeroes only).
    pub unmap: bool,
}

impl ByteRange {
    /// The disk operation for this range.
    pub const fn op(&self, kind: RangeKind, fua: bool) -> OpKind {
        let Self { offset, len, unmap } = *self;
        match kind {
            RangeKind::Discard => OpKind::Discard { offset, len },
            RangeKind::SecureErase => OpKind::SecureErase { offset, len },
            RangeKind::WriteZeroes => OpKind::WriteZeroes {
                offset,
                len,
                unmap,
                fua,
            },
        }
    }
}

/// Checks all segments in `bytes` before any is executed, and appends them to `out`. `bytes` has the
/// length that [`super::parse`] allowed.
///
/// # Errors
/// The status to return; `out` is then to be ignored.
pub fn parse_ranges(
    kind: RangeKind,
    bytes: &[u8],
    limits: &RequestLimits,
    out: &mut Vec<ByteRange>,
) -> Result<(), RequestStatus> {
    let (_, max_sectors) = kind.limits(limits).ok_or(RequestStatus::Unsupp)?;
    let (segments, []) = bytes.as_chunks::<SEGMENT_SIZE>() else {
        return Err(RequestStatus::IoErr);
    };
    // An unknown flag in any segment outranks a bad range in any other (virtio 1.4, 5.2.6.2).
    if segments
        .iter()
        .any(|s| RangeSegment::from_bytes(s).flags & !kind.known_flags() != 0)
    {
        return Err(RequestStatus::Unsupp);
    }
    for segment in segments {
        let segment = RangeSegment::from_bytes(segment);
        if segment.num_sectors > max_sectors {
            return Err(RequestStatus::IoErr);
        }
        let len = u64::from(segment.num_sectors) * SECTOR_SIZE;
        out.push(ByteRange {
            offset: limits.locate(segment.sector, len)?,
            len,
            unmap: segment.flags & SEGMENT_FLAG_UNMAP != 0,
        });
    }
    Ok(())
}

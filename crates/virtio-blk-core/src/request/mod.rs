// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Validation of requests: from a header and lengths in private memory to something that can be
//! executed, or the status to return. Pure functions: nothing here touches guest memory or a disk.
//!
//! The specification (virtio 1.4, 5.2.6.2) names the status of each fault, but not which counts where a
//! request has several. The order here: framing, read-only device, unknown or not negotiated type, lengths,
//! flags of segments, limits and ranges. `docs/conformance.md` lists each rule with its tests.

mod range;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use range::{ByteRange, RangeKind, parse_ranges};

use crate::disk::{Caps, EraseLimits, Lifetime, SECTOR_SIZE, ZeroLimits};
use crate::spec::{RequestHeader, RequestStatus, RequestType, SEGMENT_SIZE, SERIAL_SIZE, feature};

/// Most segments of one discard, write-zeroes or secure-erase request, whatever the disk allows: they
/// are copied to private memory.
pub const MAX_SEGMENTS: u32 = 256;

/// What requests are checked against: fixed while a queue runs, except for the capacity.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Capacity in sectors; follows live resizes.
    pub capacity: u64,
    /// Logical block in bytes.
    pub block: u32,
    /// Nothing may change the medium.
    pub read_only: bool,
    /// Limits, where the feature was negotiated.
    pub discard: Option<EraseLimits>,
    /// Limits, where the feature was negotiated.
    pub write_zeroes: Option<ZeroLimits>,
    /// Limits, where the feature was negotiated.
    pub secure_erase: Option<EraseLimits>,
    /// Lifetime was negotiated.
    pub lifetime: bool,
}

impl RequestLimits {
    /// The rules of a disk under the driver's `features`.
    pub fn new(caps: &Caps, features: u64) -> Self {
        let has = |bit| features & bit != 0;
        Self {
            capacity: caps.capacity,
            block: caps.align.guest_block,
            read_only: caps.read_only,
            discard: caps.discard.filter(|_| has(feature::DISCARD)),
            write_zeroes: caps.write_zeroes.filter(|_| has(feature::WRITE_ZEROES)),
            secure_erase: caps.secure_erase.filter(|_| has(feature::SECURE_ERASE)),
            lifetime: caps.lifetime && has(feature::LIFETIME),
        }
    }

    /// The one place for range maths: byte offset of `len` bytes from `sector` on, if they lie inside
    /// the capacity and are whole blocks. Free of overflow.
    #[inline]
    fn locate(&self, sector: u64, len: u64) -> Result<u64, RequestStatus> {
        let sectors = len / SECTOR_SIZE;
        let whole = len.is_multiple_of(SECTOR_SIZE)
            && sector <= self.capacity
            && sectors <= self.capacity - sector;
        // The capacity in bytes fits an i64 (`Caps::validate`), and so does any sector up to it.
        let offset = sector.wrapping_mul(SECTOR_SIZE);
        if whole && (offset | len) & (u64::from(self.block) - 1) == 0 {
            Ok(offset)
        } else {
            Err(RequestStatus::IoErr)
        }
    }
}

/// What requests of a queue are executed with: the device's side of it.
pub(crate) struct DeviceView {
    pub(crate) limits: RequestLimits,
    pub(crate) shared: Arc<SharedConfig>,
    pub(crate) serial: [u8; SERIAL_SIZE],
    pub(crate) write_cache: WriteCache,
}

impl DeviceView {
    /// Takes the present capacity over.
    #[inline(always)]
    pub(crate) fn renew_capacity(&mut self) {
        self.limits.capacity = self.shared.capacity();
    }

    /// Whether a write must be stable before it completes, now.
    #[inline]
    pub(crate) fn write_through(&self) -> bool {
        match self.write_cache {
            WriteCache::Back => false,
            WriteCache::Through => true,
            WriteCache::Switchable => !self.shared.writeback(),
        }
    }
}

/// What changes while queues run; read by each of them for each request.
#[derive(Debug)]
pub(crate) struct SharedConfig {
    capacity: AtomicU64,
    writeback: AtomicBool,
}

impl SharedConfig {
    /// With a capacity in sectors, and write-back.
    pub(crate) const fn new(capacity: u64) -> Self {
        Self {
            capacity: AtomicU64::new(capacity),
            writeback: AtomicBool::new(true),
        }
    }

    /// Capacity in sectors.
    #[inline]
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Sets the capacity in sectors. Returns whether it was another.
    pub(crate) fn set_capacity(&self, capacity: u64) -> bool {
        self.capacity.swap(capacity, Ordering::Relaxed) != capacity
    }

    /// The driver's cache mode.
    #[inline]
    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Sets the driver's cache mode.
    pub(crate) fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
    }
}

/// How writes become stable (virtio 1.4, 5.2.5.2 and 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteCache {
    /// No volatile cache below, or the driver flushes: writes need nothing.
    Back,
    /// FLUSH was offered and the driver can't flush: each write is stable before it completes.
    Through,
    /// The driver switches with `writeback`.
    Switchable,
}

/// A request that can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes at byte `offset` into the writable data.
    Read {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `len` bytes of the readable data at byte `offset`.
    Write {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Flush.
    Flush,
    /// Copy at most this many bytes of the serial number into the writable data.
    GetId {
        /// Bytes.
        len: u32,
    },
    /// Copy the lifetime information into the writable data.
    GetLifetime,
    /// Read `len` bytes of segments from the readable data and hand them to [`parse_ranges`].
    Ranges {
        /// What to do with them.
        kind: RangeKind,
        /// Bytes, a multiple of [`SEGMENT_SIZE`], at most [`MAX_SEGMENTS`] of them.
        len: u32,
    },
}

/// Checks a request: `header`, the bytes `readable` behind it and the bytes `writable` before the status.
///
/// # Errors
/// The status to return.
#[inline(always)]
pub fn parse(
    header: &RequestHeader,
    readable: u32,
    writable: u32,
    limits: &RequestLimits,
) -> Result<Request, RequestStatus> {
    match header.kind {
        RequestType::In => Ok(Request::Read {
            offset: limits.locate(header.sector, u64::from(writable))?,
            len: writable,
        }),
        RequestType::Out if limits.read_only => Err(RequestStatus::IoErr),
        RequestType::Out => Ok(Request::Write {
            offset: limits.locate(header.sector, u64::from(readable))?,
            len: readable,
        }),
        RequestType::Flush => Ok(Request::Flush),
        RequestType::GetId => Ok(Request::GetId {
            len: writable.min(SERIAL_SIZE as u32),
        }),
        RequestType::GetLifetime if !limits.lifetime => Err(RequestStatus::Unsupp),
        RequestType::GetLifetime if writable < Lifetime::SIZE as u32 => Err(RequestStatus::IoErr),
        RequestType::GetLifetime => Ok(Request::GetLifetime),
        RequestType::Discard => ranges(RangeKind::Discard, readable, limits),
        RequestType::WriteZeroes => ranges(RangeKind::WriteZeroes, readable, limits),
        RequestType::SecureErase => ranges(RangeKind::SecureErase, readable, limits),
        RequestType::Unknown(_) => Err(RequestStatus::Unsupp),
    }
}

fn ranges(kind: RangeKind, len: u32, limits: &RequestLimits) -> Result<Request, RequestStatus> {
    if limits.read_only {
        return Err(RequestStatus::IoErr);
    }
    let (max_segments, _) = kind.limits(limits).ok_or(RequestStatus::Unsupp)?;
    let count = len / SEGMENT_SIZE as u32;
    if len == 0
        || !len.is_multiple_of(SEGMENT_SIZE as u32)
        || count > max_segments.min(MAX_SEGMENTS)
    {
        return Err(RequestStatus::IoErr);
    }
    Ok(Request::Ranges { kind, len })
}

#[cfg(test)]
mod tests;

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Wire types and numbers of the virtio specification 1.4 that a block device needs: feature bits,
//! request header and segments, status bytes, configuration space, device status.

pub mod config;
pub mod feature;
mod request;
pub mod status;

pub use request::{HEADER_SIZE, RequestType, SEGMENT_FLAG_UNMAP, SEGMENT_SIZE, SERIAL_SIZE};
#[cfg(not(feature = "internals"))]
pub(crate) use request::{RangeSegment, RequestHeader, RequestStatus};
#[cfg(feature = "internals")]
pub use request::{RangeSegment, RequestHeader, RequestStatus};

/// The virtio device id of a block device (virtio 1.4, 5.2.1).
pub const DEVICE_ID: u32 = 2;

#[cfg(test)]
mod tests;

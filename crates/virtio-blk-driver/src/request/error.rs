// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a request could not be made or followed.

use crate::AccessError;
use crate::ring::RingError;

/// Why memory for requests can't be cut as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// There must be at least one slot.
    #[error("an arena needs at least one slot")]
    NoSlots,
    /// The data's alignment must be a power of two.
    #[error("data alignment {0} is not a power of two")]
    Alignment(u32),
    /// The arena reaches beyond the end of the address space.
    #[error("an arena of {len} bytes at {base:#x} reaches beyond the end of the address space")]
    Wraps {
        /// First byte.
        base: u64,
        /// Bytes.
        len: u64,
    },
}

/// Why a request could not be submitted, or its completion not be read.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ring refused, or the device broke its rules.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The request's memory can't be accessed.
    #[error("the request's memory can't be accessed")]
    Memory(#[from] AccessError),
    /// Every slot is in use; there are more after requests were polled.
    #[error("all {0} request slots are in use: poll for finished requests first")]
    NoSlot(u16),
    /// The request does not fit a slot's data area.
    #[error("the request needs {needed} bytes of data, a slot has {room}")]
    DataTooLong {
        /// Bytes for data out and in.
        needed: u64,
        /// Bytes there are.
        room: u32,
    },
    /// The request was cut into more descriptors than a slot's indirect table has room for.
    #[error("the request has {needed} descriptors, an indirect table has room for {room}")]
    TableTooLong {
        /// Descriptors.
        needed: usize,
        /// Descriptors a table has room for.
        room: u16,
    },
    /// The token's slot serves a later request by now.
    #[error("the request is over and its memory serves another one")]
    StaleToken,
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a ring, its use, or the device behind it.

use crate::AccessError;

/// Why a ring can't lie where it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A queue size must be a power of two from 1 to 32768.
    #[error("queue size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// An area is not aligned.
    #[error("the {area} at {addr:#x} must be aligned to {align} bytes")]
    Misaligned {
        /// Which area.
        area: &'static str,
        /// Where it was to lie.
        addr: u64,
        /// Bytes.
        align: u64,
    },
    /// An area reaches beyond the end of the address space.
    #[error("the {area} at {addr:#x} reaches beyond the end of the address space")]
    Wraps {
        /// Which area.
        area: &'static str,
        /// Where it was to lie.
        addr: u64,
    },
    /// Two areas share bytes.
    #[error("the {0} and the {1} overlap")]
    Overlap(&'static str, &'static str),
}

/// A rule of virtio that the device broke. A caller that sees one can't trust the queue any more and must
/// reset the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The used index moved by more than there was to use.
    #[error("the used index went from {from} to {to} with {available} chains available")]
    UsedIndexJump {
        /// Index of the last used entry taken.
        from: u16,
        /// Index the device published.
        to: u16,
        /// Chains the device had.
        available: u16,
    },
    /// A used entry names a descriptor outside the table.
    #[error("a used entry names head {id}, outside the descriptor table")]
    UnknownHead {
        /// The entry's id.
        id: u32,
    },
    /// A used entry names a chain the device does not have: never made available, or used before.
    #[error("a used entry names head {id}, which is not in flight")]
    NotInFlight {
        /// The entry's id.
        id: u32,
    },
    /// The device says it wrote more than the chain has room for.
    #[error("{len} bytes reported for head {head}, which has room for {writable}")]
    LenTooLong {
        /// The chain's head.
        head: u16,
        /// The length the device gave.
        len: u32,
        /// Bytes the device may write.
        writable: u32,
    },
    /// The device changed a descriptor.
    #[error("the device changed descriptor {index}")]
    DescriptorChanged {
        /// Index in the table.
        index: u16,
    },
    /// The device changed the available ring.
    #[error("the device changed the available ring {offset} bytes from its start")]
    AvailChanged {
        /// Bytes from the start of the ring.
        offset: u64,
    },
    /// The used ring's flags hold what the device must not set: reserved bits, or any with event index.
    #[error("the used ring's flags are {flags:#x}")]
    UsedFlags {
        /// The flags.
        flags: u16,
    },
}

/// Why the driver's half of a ring could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The ring, or an indirect table, can't be accessed.
    #[error("the virtqueue's memory can't be accessed")]
    Memory(#[from] AccessError),
    /// Too few free descriptors; there are more after chains were taken back.
    #[error("the chain needs {needed} descriptors, {free} are free: poll for used chains first")]
    Full {
        /// Descriptors the chain takes.
        needed: u16,
        /// Descriptors there are.
        free: u16,
    },
    /// A chain has at least one descriptor.
    #[error("a chain needs at least one segment")]
    Empty,
    /// A chain has at most queue size descriptors, also in an indirect table.
    #[error("the chain has {segments} segments, the queue size allows {max}")]
    TooLong {
        /// Segments in the chain.
        segments: usize,
        /// The queue size.
        max: u16,
    },
    /// A chain has less than 2^32 bytes in total.
    #[error("the chain has {bytes} bytes, the limit is 4294967295")]
    TooManyBytes {
        /// Bytes in all segments.
        bytes: u64,
    },
    /// An indirect table was given though the feature is not negotiated.
    #[error("indirect descriptors are not negotiated: give no table, or enable them in RingConfig")]
    IndirectNotNegotiated,
    /// The device broke a rule. The ring refuses everything until it is reset.
    #[error("the device broke the virtqueue rules, reset it: {0}")]
    Violation(#[from] Violation),
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver can do wrong.

use super::AddressKind;
use crate::memory::Unmapped;

/// Most descriptors of a chain that is taken, those of its indirect table included. A bound on what a driver
/// can make the device do for one chain, and no more than that: the specification forbids chains longer than
/// the queue, but drivers fill indirect tables up to `seg_max`, or beyond it.
pub const MAX_CHAIN: u32 = 32768;

/// Why a ring can't be used, or can't be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The queue was not made ready by the driver.
    #[error("the queue is not ready")]
    NotReady,
    /// The size is 0, not a power of two, or beyond the maximum.
    #[error("queue size {size} is not a power of two between 1 and {max}")]
    Size {
        /// The driver's size, in descriptors.
        size: u16,
        /// The largest allowed.
        max: u16,
    },
    /// The state was written by newer code.
    #[error("the queue's state has version {found}, this program reads up to {known}")]
    Version {
        /// As given.
        found: u16,
        /// The newest that is understood.
        known: u16,
    },
    /// The addresses in the state are not those of the memory that the device works on.
    #[error("the queue's addresses are of the kind {0:?}, the device works on those of the guest")]
    Addresses(AddressKind),
    /// A ring structure is not aligned as the specification demands.
    #[error("the {what} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which structure.
        what: &'static str,
        /// Its guest address.
        addr: u64,
        /// The alignment in bytes.
        align: u64,
    },
    /// A ring structure is not mapped.
    #[error("the {what} is not usable: {source}")]
    NotMapped {
        /// Which structure.
        what: &'static str,
        /// The range.
        source: Unmapped,
    },
    /// The driver made more buffers available than the queue holds.
    #[error("the available index jumped from {next} to {idx} in a queue of {size}")]
    AvailIndex {
        /// The index the device would take next.
        next: u16,
        /// The index the driver published.
        idx: u16,
        /// Queue size.
        size: u16,
    },
    /// An available entry names a descriptor that does not exist.
    #[error("descriptor {head} was made available in a queue of {size}")]
    HeadIndex {
        /// The driver's head.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// The requests to replay are not some of those that were taken.
    #[error(
        "{count} heads to replay in a queue of {size}: {taken} were taken, each named at most once"
    )]
    Replay {
        /// Heads given.
        count: usize,
        /// Heads taken and not returned, by the queue's indices.
        taken: u16,
        /// Queue size.
        size: u16,
    },
    /// A chain can't be taken, and there is no place for a status that would say so: the driver would take
    /// it for done.
    #[error("the chain of descriptor {head} can't be answered: {source}")]
    Chain {
        /// The driver's head.
        head: u16,
        /// What is wrong with the chain.
        source: ChainError,
    },
    /// A head was made available again before it was used.
    #[error("descriptor {head} was made available while the device still had it")]
    HeadInFlight {
        /// The driver's head.
        head: u16,
    },
}

/// What is wrong with one chain. The queue itself is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A loop, or more than [`MAX_CHAIN`] descriptors.
    #[error("the chain loops, or has more than {MAX_CHAIN} descriptors")]
    TooLong,
    /// A `next` field points outside its table.
    #[error("a descriptor points outside its table")]
    NextIndex,
    /// A device-readable descriptor follows a device-writable one.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// The buffers add up to more than 2^32 - 1 bytes.
    #[error("the chain describes more than 4 GiB")]
    TooLarge,
    /// An indirect descriptor although the feature was not negotiated.
    #[error("an indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table, or one that has a successor.
    #[error("an indirect descriptor where none may be")]
    IndirectMisplaced,
    /// The length of an indirect table is 0 or not a multiple of 16.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    /// The indirect table is not in guest memory.
    #[error("the indirect table is not usable: {0}")]
    IndirectUnmapped(#[from] Unmapped),
    /// Nothing is writable.
    #[error("the chain has no writable byte for the status")]
    NoStatus,
    /// The last writable byte is not in guest memory.
    #[error("the status byte is not in guest memory")]
    StatusUnmapped,
}

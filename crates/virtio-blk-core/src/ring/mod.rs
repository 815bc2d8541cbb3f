// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device side of a virtqueue (virtio 1.4, 2.6 to 2.8).
//!
//! [`Ring`] is what a queue runner needs of any layout; [`SplitRing`] is the split layout. A ring resolves
//! its structures once into host memory, reads every descriptor exactly once into private memory, takes
//! chains of up to [`MAX_CHAIN`] descriptors whatever the queue's size, publishes used entries in batches with one index store, and **latches** the first fatal error: from
//! then on every call answers it and nothing is read or written any more.
//!
//! What a driver can do wrong falls in two kinds. A [`ChainError`] concerns one chain: its head is
//! known, so it is handed back, with IOERR in its last writable byte, and the queue goes on. (Handed back
//! without a status it would look like success: drivers don't clear that byte.) Only a chain that was read
//! to its end and has nothing writable goes back without. A [`RingError`] means that ring and driver
//! disagree about the ring itself, or that there is no way to tell the driver of a chain's failure: the
//! queue stops, and the transport sets DEVICE_NEEDS_RESET.

mod chain;
mod refused;
mod split;

use virtio_queue::QueueState;

pub use chain::{Chain, Segment};
pub use split::{MAX_CHAIN, MAX_QUEUE_SIZE, SplitRing};
pub(crate) use split::{SimpleChain, StatusPlace, Taken};

use crate::memory::{DeviceMemory, GuestMap, Unmapped};

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

/// Whether `heads` are different heads of a queue of `size`.
pub(crate) fn are_distinct(heads: &[u16], size: u16) -> bool {
    let mut heads = heads.to_vec();
    heads.sort_unstable();
    heads.is_sorted_by(|a, b| a < b) && heads.last().is_none_or(|&head| head < size)
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

/// What [`Ring::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// Nothing is available.
    Empty,
    /// A chain: it is in the caller's [`Chain`], and its head now belongs to the device.
    Chain,
    /// A malformed chain: only [`Chain::head`] is valid, and belongs to the device.
    Malformed(ChainError),
}

/// The device side of one virtqueue. Cut so that the layouts are interchangeable below a queue runner.
pub trait Ring: Send {
    /// Takes the next available chain. On [`Popped::Chain`] the segments are in `chain`, in guest
    /// addresses, not yet translated.
    ///
    /// # Errors
    /// The latched [`RingError`]. The head is not taken then.
    fn pop<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        chain: &mut Chain,
    ) -> Result<Popped, RingError>;

    /// Hands a head back that `pop` gave out: `len` bytes were written from the first writable byte on.
    /// The driver sees it at the next [`Ring::publish`]. A head the device does not have is ignored.
    fn push(&mut self, head: u16, len: u32);

    /// Makes all pushed heads visible with one index store. Answers whether the driver wants a
    /// notification for them; `false` if there were none.
    ///
    /// # Errors
    /// The latched [`RingError`].
    fn publish<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<bool, RingError>;

    /// Asks the driver to notify for the next buffer, then looks again. Answers whether there is one
    /// already: if so the notification may never come, and the caller goes on at once.
    ///
    /// # Errors
    /// The latched [`RingError`].
    fn enable_kicks<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<bool, RingError>;

    /// Whether [`Ring::pop`] would find something; nothing the driver sees changes.
    fn has_available(&self) -> bool;

    /// Tells the driver that notifications are not needed for now. A hint: they may still come.
    fn disable_kicks<M: DeviceMemory>(&mut self, map: &GuestMap<M>);

    /// Leaves the ring as its next owner needs it, at the end of this one's work: the driver notifies for the
    /// next buffer, also where that owner never says that it wants to be. Nothing is written to a ring that
    /// is latched.
    fn leave<M: DeviceMemory>(&mut self, map: &GuestMap<M>);

    /// Resolves the ring again after the memory map changed.
    ///
    /// # Errors
    /// The ring is not mapped any more; the error is latched.
    fn remap<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<(), RingError>;

    /// Heads the device has: popped and not yet pushed.
    fn in_flight(&self) -> usize;

    /// The state to go on from later. Exact only when nothing is in flight and all is published.
    fn state(&self) -> QueueState;

    /// The error that stopped the ring, if any.
    fn latched(&self) -> Option<RingError>;
}

#[cfg(test)]
mod tests;

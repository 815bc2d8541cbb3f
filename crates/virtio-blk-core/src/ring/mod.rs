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
mod state;

pub use chain::{Chain, Segment, SimpleChain};
pub use split::{MAX_CHAIN, MAX_QUEUE_SIZE, SplitRing};
pub use state::{AddressKind, QueueState};

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

impl From<Result<(), ChainError>> for Popped {
    fn from(read: Result<(), ChainError>) -> Self {
        match read {
            Ok(()) => Self::Chain,
            Err(error) => Self::Malformed(error),
        }
    }
}

/// Where the last writable byte of a chain lies that can't be taken. There a driver of a device with a status
/// looks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWritable {
    /// At this guest address.
    At {
        /// The guest address of the byte.
        addr: u64,
        /// Nothing else is writable.
        alone: bool,
    },
    /// The chain was read to its end, and nothing of it is writable.
    Nowhere,
    /// The chain's end was not found, and nothing writable before.
    Unknown,
}

/// The device side of one virtqueue, whatever its layout: all that a queue runner needs of a ring. It knows
/// chains of descriptors, and nothing of what requests are made of.
///
/// Chains are taken in two steps: [`Ring::next`] finds the next one, then [`Ring::read_simple`] or
/// [`Ring::read`] looks at its descriptors. From the second on the ring and its user name the chain as the
/// driver does ([`Chain::head`]): by the index of its first descriptor in a split ring, by its buffer ID in a
/// packed one.
pub trait Ring: Send {
    /// A chain that was found and not read yet.
    type Found: Copy;

    /// Takes the next available chain; it belongs to the device from now on. `None`: there is none.
    ///
    /// # Errors
    /// The latched [`RingError`]. Nothing is taken then.
    fn next(&mut self) -> Result<Option<Self::Found>, RingError>;

    /// Reads a chain that was found if it is a simple one, whose first segment has `FIRST` bytes and whose last
    /// has `LAST`. `None` says nothing about the chain, and nothing is kept of what was looked at.
    fn read_simple<const FIRST: u32, const LAST: u32, M: DeviceMemory>(
        &self,
        map: &GuestMap<M>,
        found: Self::Found,
    ) -> Option<SimpleChain>;

    /// Reads a chain that was found into `chain`, each descriptor once. The segments are in guest addresses, not
    /// yet translated.
    ///
    /// # Errors
    /// The chain is malformed: of `chain` only [`Chain::head`] is valid.
    fn read<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        found: Self::Found,
        chain: &mut Chain,
    ) -> Result<(), ChainError>;

    /// Takes the next available chain and reads it: [`Ring::next`] and [`Ring::read`] in one.
    ///
    /// # Errors
    /// As for [`Ring::next`].
    fn pop<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        chain: &mut Chain,
    ) -> Result<Popped, RingError> {
        let Some(found) = self.next()? else {
            return Ok(Popped::Empty);
        };
        Ok(Popped::from(self.read(map, found, chain)))
    }

    /// Takes over a chain that an earlier device left in flight, as if `pop` had found it: for replaying an
    /// in-flight log. The state must already count it as taken.
    ///
    /// # Errors
    /// The latched [`RingError`] if the head is out of range or taken twice.
    fn resume<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<Popped, RingError>;

    /// Where the last writable byte of a chain lies that [`Ring::read`] refused. Reads the chain anew, as far as
    /// it can be read and without regard to order and length; the driver may have changed it since.
    fn last_writable<M: DeviceMemory>(&mut self, map: &GuestMap<M>, head: u16) -> LastWritable;

    /// Returns a chain to the driver: `len` bytes were written from the first writable byte on. The driver sees
    /// it at the next [`Ring::publish`]. A head the device does not have is ignored.
    fn add_used(&mut self, head: u16, len: u32);

    /// Makes all used chains visible, with one store. Returns whether the driver wants a notification for them;
    /// `false` if there were none.
    ///
    /// # Errors
    /// The latched [`RingError`].
    fn publish<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<bool, RingError>;

    /// Asks the driver to notify for the next buffer, then looks again. Returns whether there is one already:
    /// if so the notification may never come, and the caller must look again without waiting for it.
    ///
    /// # Errors
    /// The latched [`RingError`].
    fn enable_kicks<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<bool, RingError>;

    /// Whether [`Ring::next`] would find something; nothing the driver sees changes.
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

    /// What reading the chain that was taken last has cost, a simple one apart, in descriptors that were read; with
    /// the search of [`Ring::last_writable`].
    fn steps(&self) -> u32;

    /// Stops the ring for a chain that can neither be taken nor refused: [`RingError::Chain`] is latched.
    fn break_off(&mut self, head: u16, source: ChainError);

    /// Chains the device has: taken and not yet used.
    fn in_flight(&self) -> usize;

    /// How far the ring was worked on. Exact only when nothing is in flight and all is published.
    fn state(&self) -> QueueState;

    /// The error that stopped the ring, if any.
    fn latched(&self) -> Option<RingError>;
}

#[cfg(test)]
mod tests;

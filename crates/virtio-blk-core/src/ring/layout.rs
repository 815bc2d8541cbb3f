// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue runner needs of a ring of any layout.

use super::{Chain, ChainError, QueueState, RingError, SimpleChain};
use crate::memory::{DeviceMemory, GuestMap};

/// What [`Ring::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// Nothing is available.
    #[cfg(any(test, feature = "internals"))]
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
    #[cfg(any(test, feature = "internals"))]
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

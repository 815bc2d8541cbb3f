// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What fetches: the ring, the memory that it lies in, and the chain at hand.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::memory::{DeviceMemory, GuestMap};
use crate::ring::{
    Chain, ChainError, Popped, QueueState, Ring, RingError, SimpleChain, SplitRing, are_distinct,
};
use crate::spec::HEADER_SIZE;

/// Bytes of the first segment of a simple chain: the header.
pub(super) const HEADER_LEN: u32 = HEADER_SIZE as u32;
/// Bytes of its last segment: the status.
pub(super) const STATUS_LEN: u32 = 1;

/// Reading so many descriptors counts as another request in a pass's budget: it costs about as much.
const STEPS_OF_A_REQUEST: u32 = 64;

/// The source of a queue's requests: first those that an earlier owner left, then the ring's.
pub(super) struct Fetch<M: DeviceMemory> {
    pub(super) map: GuestMap<M>,
    pub(super) ring: SplitRing,
    /// The chain at hand, unless it is a simple one; reused from one to the next.
    pub(super) chain: Chain,
    replay: std::vec::IntoIter<u16>,
    /// Whether new chains are taken.
    open: bool,
}

impl<M: DeviceMemory> Fetch<M> {
    /// The ring at `state` in the memory of `map`, with the heads in `replay` to execute first.
    ///
    /// # Errors
    /// The ring is not usable, or `replay` does not fit its state.
    pub(super) fn new(
        mut map: GuestMap<M>,
        tracking: Option<Arc<AtomicBool>>,
        state: &QueueState,
        features: u64,
        replay: Vec<u16>,
    ) -> Result<Self, RingError> {
        map.track_while(tracking);
        let ring = SplitRing::new(&map, state, features)?;
        let (count, size) = (replay.len(), state.size);
        let taken = state.next_avail.wrapping_sub(state.next_used);
        // More would come back than the driver gave.
        if count > usize::from(taken) || !are_distinct(&replay, size) {
            return Err(RingError::Replay { count, taken, size });
        }
        Ok(Self {
            map,
            ring,
            chain: Chain::new(),
            replay: replay.into_iter(),
            open: true,
        })
    }

    /// Takes the next available chain. `None`: there is none.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Option<u16>, RingError> {
        self.ring.next()
    }

    /// The chain that was taken, if it is a simple one.
    #[inline(always)]
    pub(super) fn read_simple(&self, found: u16) -> Option<SimpleChain> {
        self.ring
            .read_simple::<HEADER_LEN, STATUS_LEN, M>(&self.map, found)
    }

    /// Reads the chain that was taken into `chain`.
    #[inline(always)]
    pub(super) fn read(&mut self, found: u16) -> Result<(), ChainError> {
        self.ring.read(&self.map, found, &mut self.chain)
    }

    /// Takes over the next chain that an earlier owner left. `None`: there is none any more.
    #[cold]
    pub(super) fn next_replayed(&mut self) -> Result<Option<Popped>, RingError> {
        match self.replay.next() {
            Some(head) => (self.ring.resume(&self.map, head, &mut self.chain)).map(Some),
            None => Ok(None),
        }
    }

    /// Budget cost of reading the descriptors of the chain at hand, also of one that was refused.
    #[inline(always)]
    pub(super) fn reading_cost(&self) -> usize {
        (self.ring.steps() / STEPS_OF_A_REQUEST) as usize
    }

    /// Whether chains of an earlier owner are still to be executed.
    #[inline]
    pub(super) fn is_replaying(&self) -> bool {
        self.replay.len() != 0
    }

    /// The heads that were not taken over yet.
    pub(super) fn unreplayed(&mut self) -> impl Iterator<Item = u16> {
        self.replay.by_ref()
    }

    #[inline]
    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    /// Opens or closes the intake of new chains.
    pub(super) const fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Asks the driver to kick for the next buffer, unless the intake is closed. Returns whether there is one
    /// already.
    #[inline]
    pub(super) fn enable_kicks(&mut self) -> Result<bool, RingError> {
        if self.open {
            return self.ring.enable_kicks(&self.map);
        }
        Ok(false)
    }

    /// Tells the driver that kicks are not needed for now.
    #[inline]
    pub(super) fn disable_kicks(&mut self) {
        self.ring.disable_kicks(&self.map);
    }

    /// Leaves the ring as its next owner needs it.
    pub(super) fn leave(&mut self) {
        self.ring.leave(&self.map);
    }

    /// Takes a new snapshot of the memory map, and resolves the ring in it.
    pub(super) fn remap(&mut self) -> Result<(), RingError> {
        self.map.renew();
        self.ring.remap(&self.map)
    }
}

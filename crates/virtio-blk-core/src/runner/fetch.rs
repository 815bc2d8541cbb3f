// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What fetches: the ring, the memory that it lies in, and the chain at hand, with its header and status.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::slot::StatusByte;
use crate::memory::{DeviceMemory, GuestMap, Permissions};
use crate::ring::{Chain, Popped, QueueState, Ring, RingError, SplitRing, are_distinct};
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
    /// Heads that an earlier owner left, and that are not taken over yet.
    pub(super) replay: std::vec::IntoIter<u16>,
    /// Whether new chains are taken.
    pub(super) open: bool,
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

    /// The heads that were not taken over yet.
    pub(super) fn unreplayed(&mut self) -> impl Iterator<Item = u16> {
        self.replay.by_ref()
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

    /// Takes the last writable byte off the chain.
    #[inline(always)]
    pub(super) fn cut_status(&mut self) -> Option<StatusByte> {
        let guest = self.chain.cut_last_writable()?;
        self.status_at(guest)
    }

    /// The status byte at `guest`. `None`: not mapped.
    #[inline(always)]
    pub(super) fn status_at(&self, guest: u64) -> Option<StatusByte> {
        let host = match self.map.host(guest, 1) {
            Some(host) => host,
            None => {
                let mut host = std::ptr::null_mut();
                self.map
                    .translate(guest, 1, Permissions::Write, |base, _| host = base)
                    .ok()?;
                host
            }
        };
        Some(StatusByte { host, guest })
    }

    /// Takes the first 16 readable bytes off the chain, read once, as two little-endian numbers. `None`: they
    /// are not there.
    #[inline(always)]
    pub(super) fn cut_header(&mut self) -> Option<[u64; 2]> {
        if let Some(guest) = self.chain.cut_first_readable(HEADER_SIZE as u32) {
            return match self.map.read_16(guest) {
                Some(halves) => Some(halves),
                None => self.read_header(guest),
            };
        }
        self.gather_header()
    }

    #[cold]
    fn read_header(&self, guest: u64) -> Option<[u64; 2]> {
        Some(halves(self.map.read_array(guest).ok()?))
    }

    /// A header that is spread over several segments.
    #[cold]
    fn gather_header(&mut self) -> Option<[u64; 2]> {
        let mut bytes = [0; HEADER_SIZE];
        for byte in &mut bytes {
            let guest = self.chain.cut_first_readable(1)?;
            [*byte] = self.map.read_array(guest).ok()?;
        }
        Some(halves(bytes))
    }
}

/// Sixteen bytes as two little-endian numbers.
fn halves(bytes: [u8; HEADER_SIZE]) -> [u64; 2] {
    let number = u128::from_le_bytes(bytes);
    [number as u64, (number >> 64) as u64]
}

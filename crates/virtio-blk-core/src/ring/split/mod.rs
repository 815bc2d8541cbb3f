// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The split virtqueue (virtio 1.4, 2.7).

mod areas;
mod walk;

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use areas::{Areas, DESC_SIZE, ENTRIES, FLAGS, IDX, check, check_form, used_len};

use super::{
    Chain, ChainError, LastWritable, Popped, QueueState, Ring, RingError, Segment, SimpleChain,
};
use crate::memory::{DeviceMemory, GuestMap, read_16};
use crate::spec::feature;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;

/// Descriptors of a simple chain.
const DESCRIPTORS: u16 = 3;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;
/// A descriptor, in private memory.
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From the two little-endian halves of a descriptor.
    #[inline]
    fn new([addr, rest]: [u64; 2]) -> Self {
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    #[inline(always)]
    const fn segment(&self) -> Segment {
        Segment {
            addr: self.addr,
            len: self.len,
        }
    }

    #[inline(always)]
    const fn is_writable(&self) -> bool {
        self.flags & DESC_F_WRITE != 0
    }
}

/// The device side of a split virtqueue.
pub struct SplitRing {
    areas: Areas,
    /// Addresses and maximum, as given at the start.
    origin: QueueState,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// The next available entry to take.
    next_avail: Wrapping<u16>,
    /// The driver's available index as last seen.
    seen_avail: Wrapping<u16>,
    /// The next used entry to fill.
    next_used: Wrapping<u16>,
    /// The used index the driver sees.
    published: Wrapping<u16>,
    kicks_enabled: bool,
    /// Which heads the device has; as many as the queue has descriptors.
    busy: Vec<bool>,
    in_flight: u16,
    /// Pieces of the indirect table being walked.
    table: Vec<(*mut u8, usize)>,
    /// Descriptors that were read of the chain at hand.
    steps: u32,
    latched: Option<RingError>,
}

// SAFETY: `table` only holds addresses during a call of `pop`.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Takes over a queue at `state`, with the driver's `features` (of which INDIRECT_DESC and
    /// EVENT_IDX matter here). The state is validated: it may come from a hostile driver or snapshot.
    ///
    /// # Errors
    /// [`RingError`]: not ready, bad size, misaligned or unmapped structures, addresses of another kind.
    pub fn new<M: DeviceMemory>(
        map: &GuestMap<M>,
        state: impl Into<QueueState>,
        features: u64,
    ) -> Result<Self, RingError> {
        let state = &state.into();
        check(state)?;
        let event_idx = features & feature::RING_EVENT_IDX != 0;
        let areas = Areas::resolve(map, state, event_idx)?;
        // An earlier owner may have died between a store and its mark.
        map.mark_dirty(areas.used.guest_addr(0), used_len(state.size, event_idx));
        Ok(Self {
            areas,
            origin: *state,
            size: state.size,
            event_idx,
            indirect: features & feature::RING_INDIRECT_DESC != 0,
            next_avail: Wrapping(state.next_avail),
            seen_avail: Wrapping(state.next_avail),
            next_used: Wrapping(state.next_used),
            published: Wrapping(state.next_used),
            // Unknown what an earlier device left in `flags`: the first `enable_kicks` stores it.
            kicks_enabled: false,
            busy: vec![false; usize::from(state.size)],
            in_flight: 0,
            table: Vec::new(),
            steps: 0,
            latched: None,
        })
    }

    /// The used index in guest memory: where a device continues that only knows the addresses.
    ///
    /// # Errors
    /// [`RingError::Misaligned`], [`RingError::NotMapped`], [`RingError::Version`], [`RingError::Addresses`].
    /// Nothing else of the state is checked.
    pub(crate) fn used_index<M: DeviceMemory>(
        map: &GuestMap<M>,
        state: &QueueState,
    ) -> Result<u16, RingError> {
        check_form(state)?;
        let areas = Areas::resolve(map, state, false)?;
        areas
            .used
            .load_u16(IDX, Ordering::Acquire)
            .ok_or(RingError::NotReady)
    }

    #[inline]
    fn check(&self) -> Result<(), RingError> {
        match self.latched {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    #[cold]
    fn latch(&mut self, error: RingError) -> RingError {
        *self.latched.get_or_insert(error)
    }

    /// Marks a head as the device's.
    #[inline]
    fn take(&mut self, head: u16) -> Result<(), RingError> {
        match self.busy.get_mut(usize::from(head)) {
            Some(busy) if !*busy => *busy = true,
            Some(_) => return Err(self.latch(RingError::HeadInFlight { head })),
            None => {
                let size = self.size;
                return Err(self.latch(RingError::HeadIndex { head, size }));
            }
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Gives a head back; `false` if the device does not have it.
    #[inline]
    fn release(&mut self, head: u16) -> bool {
        match self.busy.get_mut(usize::from(head)) {
            Some(busy) if *busy => {
                *busy = false;
                self.in_flight -= 1;
                true
            }
            _ => false,
        }
    }

    /// Takes the next available head.
    #[inline(always)]
    fn next_head(&mut self) -> Result<Option<u16>, RingError> {
        self.check()?;
        if self.next_avail == self.seen_avail {
            let idx = self
                .areas
                .avail
                .load_u16(IDX, Ordering::Acquire)
                .ok_or(RingError::NotReady)?;
            if Wrapping(idx) == self.next_avail {
                return Ok(None);
            }
            if (Wrapping(idx) - self.next_avail).0 > self.size {
                let (next, size) = (self.next_avail.0, self.size);
                return Err(self.latch(RingError::AvailIndex { next, idx, size }));
            }
            self.seen_avail = Wrapping(idx);
        }
        let entry = ENTRIES + 2 * self.slot(self.next_avail);
        let head = self
            .areas
            .avail
            .load_u16(entry, Ordering::Relaxed)
            .ok_or(RingError::NotReady)?;
        self.take(head)?;
        self.next_avail += 1;
        Ok(Some(head))
    }

    #[inline]
    fn slot(&self, index: Wrapping<u16>) -> usize {
        usize::from(index.0 & (self.size - 1))
    }

    /// See [`Ring::read_simple`](crate::ring::Ring::read_simple): `read` reads anew what is not simple.
    #[inline(always)]
    fn simple<const FIRST: u32, const LAST: u32, M: DeviceMemory>(
        &self,
        map: &GuestMap<M>,
        head: u16,
    ) -> Option<SimpleChain> {
        const TABLE: usize = DESCRIPTORS as usize * DESC_SIZE;
        // Smaller queues may not have chains of that length. The limit for tables is not below the size.
        if self.size < DESCRIPTORS {
            return None;
        }
        let direct = |index| self.areas.desc.read_16(usize::from(index) * DESC_SIZE);
        let first = Descriptor::new(direct(head)?);
        if first.flags & DESC_F_INDIRECT == 0 {
            return shape::<FIRST, LAST>(head, &first, self.size, direct);
        }
        if !self.indirect || first.flags & DESC_F_NEXT != 0 || first.len as usize != TABLE {
            return None;
        }
        let table = map.host(first.addr, TABLE)?;
        let indirect = |index| {
            // SAFETY: the table is mapped, and has as many entries as `shape` is told.
            Some(unsafe { read_16(table.wrapping_add(usize::from(index) * DESC_SIZE)) })
        };
        let first = Descriptor::new(indirect(0)?);
        shape::<FIRST, LAST>(head, &first, DESCRIPTORS, indirect)
    }

    /// Tells a driver with EVENT_IDX that a kick is wanted for the next buffer.
    #[inline(always)]
    fn ask_for_kick<M: DeviceMemory>(&self, map: &GuestMap<M>) {
        if self.event_idx {
            let event = ENTRIES + 8 * usize::from(self.size);
            let used = &self.areas.used;
            used.store_u16(event, self.next_avail.0, Ordering::Relaxed);
            map.mark_dirty(used.guest_addr(event), 2);
        }
    }

    #[inline(always)]
    fn store_flags<M: DeviceMemory>(&self, map: &GuestMap<M>, flags: u16) {
        let used = &self.areas.used;
        used.store_u16(FLAGS, flags, Ordering::Relaxed);
        map.mark_dirty(used.guest_addr(FLAGS), 2);
    }

    /// Marks what `publish` stored as dirty: entries from `from` on, and the index.
    fn mark_published<M: DeviceMemory>(&self, map: &GuestMap<M>, from: Wrapping<u16>) {
        let count = usize::from((self.next_used - from).0);
        let first = self.slot(from);
        let until_end = count.min(usize::from(self.size) - first);
        let used = &self.areas.used;
        map.mark_dirty(used.guest_addr(ENTRIES + first * 8), until_end * 8);
        map.mark_dirty(used.guest_addr(ENTRIES), (count - until_end) * 8);
        map.mark_dirty(used.guest_addr(IDX), 2);
    }
}

/// Looks at a chain that begins with `first`, in a table of `size` descriptors, each of which is read once.
/// A flag without a meaning makes it another chain.
#[inline(always)]
fn shape<const FIRST: u32, const LAST: u32>(
    head: u16,
    first: &Descriptor,
    size: u16,
    read: impl Fn(u16) -> Option<[u64; 2]>,
) -> Option<SimpleChain> {
    if first.flags != DESC_F_NEXT || first.len != FIRST {
        return None;
    }
    if first.next >= size {
        return None;
    }
    let data = Descriptor::new(read(first.next)?);
    if data.flags & !DESC_F_WRITE != DESC_F_NEXT || data.next >= size {
        return None;
    }
    // The most that fits a used length with the rest.
    if data.len == 0 || data.len > u32::MAX - FIRST - LAST {
        return None;
    }
    let last = Descriptor::new(read(data.next)?);
    if last.flags != DESC_F_WRITE || last.len != LAST {
        return None;
    }
    Some(SimpleChain {
        head,
        first: first.addr,
        data: data.segment(),
        writable: data.is_writable(),
        last: last.addr,
    })
}

impl Ring for SplitRing {
    type Found = u16;

    #[inline(always)]
    fn next(&mut self) -> Result<Option<u16>, RingError> {
        self.next_head()
    }

    #[inline(always)]
    fn read_simple<const FIRST: u32, const LAST: u32, M: DeviceMemory>(
        &self,
        map: &GuestMap<M>,
        head: u16,
    ) -> Option<SimpleChain> {
        self.simple::<FIRST, LAST, M>(map, head)
    }

    // With registers of its own, so that the simple chain's path has all of them.
    #[inline(never)]
    fn read<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), ChainError> {
        self.walk(map, head, chain)
    }

    fn resume<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<Popped, RingError> {
        self.check()?;
        self.take(head)?;
        Ok(Popped::from(self.walk(map, head, chain)))
    }

    fn last_writable<M: DeviceMemory>(&mut self, map: &GuestMap<M>, head: u16) -> LastWritable {
        self.find_last_writable(map, head)
    }

    #[inline(always)]
    fn add_used(&mut self, head: u16, len: u32) {
        if self.latched.is_some() || !self.release(head) {
            return;
        }
        let entry = ENTRIES + 8 * self.slot(self.next_used);
        let used = &self.areas.used;
        used.store_pair(entry, u32::from(head), len);
        self.next_used += 1;
    }

    #[inline(always)]
    fn publish<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<bool, RingError> {
        self.check()?;
        let old = self.published;
        let new = self.next_used;
        if old == new {
            return Ok(false);
        }
        let tracking = map.is_tracking();
        if tracking {
            // Also before, for the case that this process dies in between.
            self.mark_published(map, old);
        }
        self.areas.used.store_u16(IDX, new.0, Ordering::Release);
        self.published = new;
        if tracking {
            self.mark_published(map, old);
        }
        // The index must be visible before the driver's wish is read, or a driver that goes to sleep
        // in between is never woken.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = ENTRIES + 2 * usize::from(self.size);
            let used_event = self
                .areas
                .avail
                .load_u16(event, Ordering::Relaxed)
                .unwrap_or(0);
            Ok((new - Wrapping(used_event) - Wrapping(1)) < (new - old))
        } else {
            let flags = self
                .areas
                .avail
                .load_u16(FLAGS, Ordering::Relaxed)
                .unwrap_or(0);
            Ok(flags & AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    #[inline]
    fn enable_kicks<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<bool, RingError> {
        self.check()?;
        self.ask_for_kick(map);
        if !self.kicks_enabled {
            self.kicks_enabled = true;
            self.store_flags(map, 0);
        }
        // As in `publish`, with the roles exchanged.
        fence(Ordering::SeqCst);
        let idx = self
            .areas
            .avail
            .load_u16(IDX, Ordering::Acquire)
            .ok_or(RingError::NotReady)?;
        Ok(Wrapping(idx) != self.next_avail)
    }

    fn has_available(&self) -> bool {
        let idx = self.areas.avail.load_u16(IDX, Ordering::Relaxed);
        self.latched.is_none() && idx.is_some_and(|idx| Wrapping(idx) != self.next_avail)
    }

    #[inline]
    fn disable_kicks<M: DeviceMemory>(&mut self, map: &GuestMap<M>) {
        // With EVENT_IDX the stale event index says it, and flags must stay 0 (2.7.10.1).
        if self.kicks_enabled && !self.event_idx && self.latched.is_none() {
            self.kicks_enabled = false;
            self.store_flags(map, USED_F_NO_NOTIFY);
        }
    }

    fn leave<M: DeviceMemory>(&mut self, map: &GuestMap<M>) {
        if self.latched.is_none() {
            self.ask_for_kick(map);
            self.store_flags(map, 0);
        }
    }

    fn remap<M: DeviceMemory>(&mut self, map: &GuestMap<M>) -> Result<(), RingError> {
        self.check()?;
        match Areas::resolve(map, &self.origin, self.event_idx) {
            Ok(areas) => {
                self.areas = areas;
                Ok(())
            }
            Err(error) => Err(self.latch(error)),
        }
    }

    #[inline(always)]
    fn steps(&self) -> u32 {
        self.steps
    }

    fn break_off(&mut self, head: u16, source: ChainError) {
        self.latch(RingError::Chain { head, source });
    }

    fn in_flight(&self) -> usize {
        usize::from(self.in_flight)
    }

    fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail.0,
            next_used: self.next_used.0,
            ..self.origin
        }
    }

    fn latched(&self) -> Option<RingError> {
        self.latched
    }
}

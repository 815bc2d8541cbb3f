// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The split virtqueue (virtio 1.4, 2.7).

mod simple;

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::chain::Parts;
use super::{
    AddressKind, Chain, ChainError, LastWritable, Popped, QueueState, Ring, RingError, Segment,
    SimpleChain,
};
use crate::memory::{DeviceMemory, GuestMap, KeepAlive, Permissions, RingArea, read_16};
use crate::spec::feature;

/// The largest queue size the specification allows, in descriptors.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Most descriptors of a chain that is taken, those of its indirect table included. A bound on what a driver
/// can make the device do for one chain, and no more than that: the specification forbids chains longer than
/// the queue, but drivers fill indirect tables up to `seg_max`, or beyond it.
pub const MAX_CHAIN: u32 = 32768;

pub(super) const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
pub(super) const DESC_F_INDIRECT: u16 = 4;
pub(super) const DESC_SIZE: usize = 16;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;
/// Offset of `flags`, `idx` and the first entry, in the available and in the used ring.
const FLAGS: usize = 0;
const IDX: usize = 2;
const ENTRIES: usize = 4;

/// Bytes of an indirect table that can be addressed: a `next` field has 16 bits.
const MAX_TABLE: usize = (u16::MAX as usize + 1) * DESC_SIZE;

/// A descriptor, in private memory.
pub(super) struct Descriptor {
    addr: u64,
    len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// From the two little-endian halves of a descriptor.
    #[inline]
    pub(super) fn new([addr, rest]: [u64; 2]) -> Self {
        Self {
            addr,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    #[inline(always)]
    pub(super) const fn segment(&self) -> Segment {
        Segment {
            addr: self.addr,
            len: self.len,
        }
    }

    #[inline(always)]
    pub(super) const fn is_writable(&self) -> bool {
        self.flags & DESC_F_WRITE != 0
    }
}

/// The three structures in host memory.
struct Areas {
    desc: RingArea,
    avail: RingArea,
    used: RingArea,
    /// Keeps the areas mapped.
    _keep: Arc<dyn KeepAlive>,
}

/// The device side of a split virtqueue.
pub struct SplitRing {
    areas: Areas,
    /// Addresses and maximum, as given at the start.
    origin: QueueState,
    pub(super) size: u16,
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
    pub(super) table: Vec<(*mut u8, usize)>,
    /// Descriptors that were read of the chain at hand.
    pub(super) steps: u32,
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

    /// The used index in guest memory: what a device that only knows the addresses goes on from.
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
    pub(super) fn latch(&mut self, error: RingError) -> RingError {
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

    /// Reads the chain from `head` on, which was checked, into `chain`, each descriptor once.
    #[inline(always)]
    fn walk<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), ChainError> {
        let mut steps = 0;
        let result = self.walk_counted(map, head, chain, &mut steps);
        self.steps = steps;
        result
    }

    #[inline(always)]
    fn walk_counted<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        head: u16,
        chain: &mut Chain,
        steps: &mut u32,
    ) -> Result<(), ChainError> {
        let segments = chain.clear(head);
        let mut parts = Parts::default();
        let mut index = head;
        for direct in 0..self.size {
            let desc = self.direct(index).ok_or(ChainError::NextIndex)?;
            *steps += 1;
            if desc.flags & DESC_F_INDIRECT != 0 {
                let limit = MAX_CHAIN - u32::from(direct);
                self.walk_table(map, &desc, limit, segments, &mut parts, steps)?;
                return chain.set(parts);
            }
            parts.append(segments, desc.segment(), desc.is_writable())?;
            if desc.flags & DESC_F_NEXT == 0 {
                return chain.set(parts);
            }
            index = desc.next;
            if index >= self.size {
                return Err(ChainError::NextIndex);
            }
        }
        Err(ChainError::TooLong)
    }

    /// A descriptor of the queue's own table.
    #[inline(always)]
    pub(super) fn direct(&self, index: u16) -> Option<Descriptor> {
        let halves = self.areas.desc.read_16(usize::from(index) * DESC_SIZE);
        halves.map(Descriptor::new)
    }

    fn walk_table<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        table: &Descriptor,
        limit: u32,
        segments: &mut Vec<Segment>,
        parts: &mut Parts,
        steps: &mut u32,
    ) -> Result<(), ChainError> {
        let count = self.open_table(map, table)?;
        let pieces = &self.table;
        // An entry is looked for piece by piece. There are at most 2^8 + 1 of 4096 bytes in a table.
        let step = pieces.len() as u32;
        let mut index = 0u16;
        for _ in 0..limit {
            if usize::from(index) >= count {
                return Err(ChainError::NextIndex);
            }
            let desc = Descriptor::new(read_entry(pieces, usize::from(index) * DESC_SIZE));
            *steps = steps.saturating_add(step);
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(ChainError::IndirectMisplaced);
            }
            parts.append(segments, desc.segment(), desc.is_writable())?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(ChainError::TooLong)
    }

    /// Looks an indirect table up. Returns how many descriptors it has that can be named.
    #[inline(always)]
    pub(super) fn open_table<M: DeviceMemory>(
        &mut self,
        map: &GuestMap<M>,
        table: &Descriptor,
    ) -> Result<usize, ChainError> {
        // The device ignores the WRITE flag here (virtio 1.4, 2.7.5.3.2).
        if !self.indirect {
            return Err(ChainError::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(ChainError::IndirectMisplaced);
        }
        let len = table.len as usize;
        if len == 0 || !len.is_multiple_of(DESC_SIZE) {
            return Err(ChainError::IndirectLength(table.len));
        }
        let count = (len / DESC_SIZE).min(MAX_TABLE / DESC_SIZE);
        let pieces = &mut self.table;
        pieces.clear();
        map.translate(
            table.addr,
            count * DESC_SIZE,
            Permissions::Read,
            |base, len| {
                pieces.push((base, len));
            },
        )?;
        Ok(count)
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

/// Reads the 16 bytes at `offset` of a table in pieces. The table covers them (checked by the caller).
#[inline]
pub(super) fn read_entry(pieces: &[(*mut u8, usize)], mut offset: usize) -> [u64; 2] {
    let mut entry = [0; DESC_SIZE];
    let mut done = 0;
    for &(base, len) in pieces {
        if offset >= len {
            offset -= len;
            continue;
        }
        if done == 0 && len - offset >= DESC_SIZE {
            // SAFETY: `base` is mapped for `len` bytes.
            return unsafe { read_16(base.wrapping_add(offset)) };
        }
        let part = (len - offset).min(DESC_SIZE - done);
        if let Some(target) = entry.get_mut(done..done + part) {
            // SAFETY: `base` is mapped for `len` bytes; `target` is private.
            unsafe {
                std::ptr::copy_nonoverlapping(base.wrapping_add(offset), target.as_mut_ptr(), part)
            };
        }
        done += part;
        offset = 0;
        if done == DESC_SIZE {
            break;
        }
    }
    let (low, high) = entry.split_at(8);
    let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    [half(low), half(high)]
}

/// Checks what a state says of the ring, apart from where it lies.
fn check(state: &QueueState) -> Result<(), RingError> {
    check_form(state)?;
    if !state.ready {
        return Err(RingError::NotReady);
    }
    let (size, max) = (state.size, state.max_size.min(MAX_QUEUE_SIZE));
    if !size.is_power_of_two() || size > max {
        return Err(RingError::Size { size, max });
    }
    Ok(())
}

/// Checks that a state says what this code understands.
fn check_form(state: &QueueState) -> Result<(), RingError> {
    let (found, known) = (state.version, QueueState::VERSION);
    if found > known {
        return Err(RingError::Version { found, known });
    }
    match state.addresses {
        AddressKind::Guest => Ok(()),
        other => Err(RingError::Addresses(other)),
    }
}

/// Bytes of the used ring.
fn used_len(size: u16, event_idx: bool) -> usize {
    ENTRIES + 8 * usize::from(size) + if event_idx { 2 } else { 0 }
}

impl Areas {
    fn resolve<M: DeviceMemory>(
        map: &GuestMap<M>,
        state: &QueueState,
        event_idx: bool,
    ) -> Result<Self, RingError> {
        let size = usize::from(state.size);
        let event = if event_idx { 2 } else { 0 };
        let used = used_len(state.size, event_idx);
        let area = |what, addr: u64, len, access, align: usize| {
            if !addr.is_multiple_of(align as u64) {
                return Err(RingError::Misaligned {
                    what,
                    addr,
                    align: align as u64,
                });
            }
            RingArea::resolve(map, addr, len, access, align)
                .map_err(|source| RingError::NotMapped { what, source })
        };
        Ok(Self {
            desc: area(
                "descriptor table",
                state.desc_table,
                size * DESC_SIZE,
                Permissions::Read,
                DESC_SIZE,
            )?,
            avail: area(
                "available ring",
                state.avail_ring,
                ENTRIES + 2 * size + event,
                Permissions::Read,
                2,
            )?,
            used: area(
                "used ring",
                state.used_ring,
                used,
                Permissions::ReadWrite,
                4,
            )?,
            _keep: map.keep().clone(),
        })
    }
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

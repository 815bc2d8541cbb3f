// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's half of a split virtqueue.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueState;
use vm_memory::GuestAddress;

use super::{RingError, SplitLayout, Violation};
use crate::wire::{DESC_LEN, Descriptor};
use crate::{Memory, Segment};

/// When the device was asked to interrupt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Armed {
    /// The used index at that time.
    pub(super) from: u16,
    /// With event index: the entry after which to interrupt.
    pub(super) event: u16,
}

/// What driver and device agreed on for a ring, and where it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingConfig {
    /// `VIRTIO_F_EVENT_IDX` is negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` is negotiated.
    pub indirect: bool,
    /// The first available and used index: 0 after a device reset, else where another driver of the
    /// ring stopped (and the device will continue).
    pub start: u16,
}

/// One request as the device will see it: what it may read, then what it may write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chain<'a> {
    /// Segments the device reads, in order.
    pub readable: &'a [Segment],
    /// Segments the device writes, in order.
    pub writable: &'a [Segment],
    /// Room for an indirect table of one descriptor (16 bytes) per segment. The chain then takes one
    /// descriptor of the ring. The table must stay untouched until the chain is taken back.
    pub indirect: Option<GuestAddress>,
}

impl Chain<'_> {
    fn len(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// The descriptors' content, without the links.
    fn descriptors(&self) -> impl Iterator<Item = Descriptor> {
        let readable = self
            .readable
            .iter()
            .map(|s| Descriptor::readable(s.addr, s.len));
        let writable = self
            .writable
            .iter()
            .map(|s| Descriptor::writable(s.addr, s.len));
        readable.chain(writable)
    }
}

/// A chain the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Index of the chain's first descriptor.
    pub head: u16,
    /// What was given to [`SplitDriver::add`].
    pub cookie: u64,
    /// Bytes the device says it wrote, from the first writable byte on. At most what was writable.
    pub len: u32,
}

/// What is kept of a chain the device has.
#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    cookie: u64,
    /// Bytes the device may write.
    writable: u32,
    /// The last of the chain's descriptors in the ring's table, and how many there are; 0: there is no chain.
    tail: u16,
    descs: u16,
    /// Its place among all chains ever added.
    index: u64,
}

/// The driver's half of a split virtqueue.
///
/// It holds no memory: every method takes the guest memory the ring lies in, always the same. It never
/// reads back what the device could have changed, except to check it; all state that matters is its own.
///
/// The order of things: [`SplitDriver::add`] chains, [`SplitDriver::publish`] them,
/// [`SplitDriver::needs_kick`]; then [`SplitDriver::poll_used`] until it returns `None`, and
/// [`SplitDriver::enable_interrupts`] before waiting.
#[derive(Debug)]
pub struct SplitDriver {
    pub(super) layout: SplitLayout,
    pub(super) config: RingConfig,
    /// Links of the chains in flight and of the free list.
    next: Box<[u16]>,
    free_head: u16,
    free: u16,
    /// By head.
    flights: Box<[Flight]>,
    in_flight: u16,
    /// Chains ever added and published, counted from the start index on. Wider than the ring's index,
    /// so that a chain the device keeps for long stays older than those that overtake it.
    avail: u64,
    pub(super) published: u64,
    /// Available index published at the last `needs_kick`.
    pub(super) kicked: u16,
    /// Used index: next to take, last seen.
    pub(super) used: u16,
    seen: u16,
    pub(super) armed: Option<Armed>,
    /// What we wrote, to compare with.
    pub(super) table: Box<[Descriptor]>,
    pub(super) entries: Box<[u16]>,
    pub(super) flags: u16,
    pub(super) used_event: u16,
    broken: Option<Violation>,
}

impl SplitDriver {
    /// Initialises a ring in memory: zeroes the three areas and sets the indices.
    ///
    /// The device must not use the ring yet. Interrupts are enabled.
    ///
    /// # Errors
    /// [`RingError::Memory`] if some area is not entirely in memory.
    pub fn new<M: Memory + ?Sized>(
        mem: &M,
        layout: SplitLayout,
        config: RingConfig,
    ) -> Result<Self, RingError> {
        let size = usize::from(layout.size());
        let mut ring = Self {
            layout,
            config,
            next: vec![0; size].into(),
            free_head: 0,
            free: 0,
            flights: vec![Flight::default(); size].into(),
            in_flight: 0,
            avail: 0,
            published: 0,
            kicked: 0,
            used: 0,
            seen: 0,
            armed: None,
            table: vec![Descriptor::default(); size].into(),
            entries: vec![0; size].into(),
            flags: 0,
            used_event: 0,
            broken: None,
        };
        ring.reset(mem, config.start)?;
        Ok(ring)
    }

    /// Forgets everything in flight and initialises the ring as [`SplitDriver::new`] does, starting at
    /// index `start`. For after a device reset: the device must not use the ring.
    ///
    /// # Errors
    /// [`RingError::Memory`]; the ring is then unusable until a reset succeeds.
    pub fn reset<M: Memory + ?Sized>(&mut self, mem: &M, start: u16) -> Result<(), RingError> {
        let size = self.layout.size();
        self.config.start = start;
        for (next, index) in self.next.iter_mut().zip(1..) {
            *next = index;
        }
        (self.free_head, self.free, self.in_flight) = (0, size, 0);
        self.flights.fill(Flight::default());
        (self.avail, self.published) = (start.into(), start.into());
        (self.kicked, self.used, self.seen) = (start, start, start);
        self.table.fill(Descriptor::default());
        self.entries.fill(0);
        self.broken = None;

        for index in 0..size {
            mem.write_at(self.layout.desc_at(index), &[0; DESC_LEN as usize])?;
            mem.store_u16(self.layout.avail_at(index), 0, Ordering::Relaxed)?;
            mem.write_at(self.layout.used_at(index), &[0; 8])?;
        }
        mem.store_u16(self.layout.used_flags(), 0, Ordering::Relaxed)?;
        mem.store_u16(self.layout.avail_event(), start, Ordering::Relaxed)?;
        mem.store_u16(self.layout.used_idx(), start, Ordering::Relaxed)?;
        self.set_flags(mem, 0)?;
        self.set_used_event(mem, start)?;
        self.armed = Some(Armed {
            from: start,
            event: start,
        });
        mem.store_u16(self.layout.avail_idx(), start, Ordering::Release)?;
        // As after each time that interrupts are asked for.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Where the ring lies.
    pub const fn layout(&self) -> &SplitLayout {
        &self.layout
    }

    /// What was agreed on.
    pub const fn config(&self) -> RingConfig {
        self.config
    }

    /// Chains added and not yet taken back.
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Free descriptors.
    pub const fn free(&self) -> u16 {
        self.free
    }

    /// What to start a device with: addresses, size, and the index of the next chain it has to use,
    /// which is right at the start and whenever nothing is in flight.
    pub fn state(&self) -> QueueState {
        QueueState {
            max_size: self.layout.size(),
            next_avail: self.used,
            next_used: self.used,
            event_idx_enabled: self.config.event_idx,
            size: self.layout.size(),
            ready: true,
            desc_table: self.layout.desc().0,
            avail_ring: self.layout.avail().0,
            used_ring: self.layout.used().0,
        }
    }

    /// Puts a chain into the ring, not yet visible to the device (see [`SplitDriver::publish`]).
    /// Returns the head. `cookie` comes back with the chain.
    ///
    /// # Errors
    /// Any [`RingError`]; nothing was added then.
    pub fn add<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        chain: &Chain<'_>,
        cookie: u64,
    ) -> Result<u16, RingError> {
        self.check_broken()?;
        let size = self.layout.size();
        let segments = match u16::try_from(chain.len()) {
            Ok(0) => return Err(RingError::Empty),
            Ok(len) if len <= size => len,
            _ => {
                return Err(RingError::TooLong {
                    segments: chain.len(),
                    max: size,
                });
            }
        };
        let sum = |list: &[Segment]| list.iter().map(|s| u64::from(s.len)).sum::<u64>();
        let writable = sum(chain.writable);
        let bytes = sum(chain.readable) + writable;
        if bytes > u64::from(u32::MAX) {
            return Err(RingError::TooManyBytes { bytes });
        }
        let needed = if chain.indirect.is_some() {
            1
        } else {
            segments
        };
        if needed > self.free {
            return Err(RingError::Full {
                needed,
                free: self.free,
            });
        }

        let head = self.free_head;
        let tail = match chain.indirect {
            None => self.write_direct(mem, chain, segments)?,
            Some(table) => {
                self.write_indirect(mem, chain, segments, table)?;
                head
            }
        };
        self.put(mem, tail, needed, writable as u32, cookie)
    }

    /// Puts a chain into the ring as [`SplitDriver::add`] does, whose `segments` descriptors the caller has written into
    /// the indirect table at `table`. The device may write `writable` bytes of it.
    ///
    /// A caller that keeps a table for each [`head`](SplitDriver::next_head) has the ring write a descriptor only if
    /// that of the head's last chain was another.
    ///
    /// # Errors
    /// Any [`RingError`]; nothing was added then.
    #[inline(always)]
    pub fn add_table<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        table: GuestAddress,
        segments: u16,
        writable: u32,
        cookie: u64,
    ) -> Result<u16, RingError> {
        self.check_broken()?;
        if segments == 0 || segments > self.layout.size() || self.free == 0 || !self.config.indirect
        {
            return Err(self.refuse_table(segments));
        }
        self.point_to(mem, table, segments)?;
        self.put(mem, self.free_head, 1, writable, cookie)
    }

    #[cold]
    fn refuse_table(&self, segments: u16) -> RingError {
        let max = self.layout.size();
        match segments {
            0 => RingError::Empty,
            _ if segments > max => RingError::TooLong {
                segments: segments.into(),
                max,
            },
            _ if !self.config.indirect => RingError::IndirectNotNegotiated,
            _ => RingError::Full { needed: 1, free: 0 },
        }
    }

    /// The head of the chain that is added next. `None` while no descriptor is free.
    #[inline]
    pub fn next_head(&self) -> Option<u16> {
        (self.free != 0).then_some(self.free_head)
    }

    /// Makes the first free descriptor and those up to `tail`, `descs` of them, a chain that the device has with the next
    /// [`SplitDriver::publish`].
    #[inline(always)]
    fn put<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        tail: u16,
        descs: u16,
        writable: u32,
        cookie: u64,
    ) -> Result<u16, RingError> {
        let head = self.free_head;
        let index = self.avail as u16;
        mem.store_u16(self.layout.avail_at(index), head, Ordering::Relaxed)?;
        self.entries[usize::from(self.layout.slot(index))] = head;

        self.flights[usize::from(head)] = Flight {
            cookie,
            writable,
            tail,
            descs,
            index: self.avail,
        };
        self.free_head = self.next[usize::from(tail)];
        self.free -= descs;
        self.in_flight += 1;
        self.avail += 1;
        Ok(head)
    }

    /// Writes the chain along the free list; returns the last descriptor's index.
    fn write_direct<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        chain: &Chain<'_>,
        segments: u16,
    ) -> Result<u16, RingError> {
        let (mut index, mut left) = (self.free_head, segments);
        let mut tail = index;
        for desc in chain.descriptors() {
            left -= 1;
            let next = self.next[usize::from(index)];
            let desc = if left > 0 { desc.then(next) } else { desc };
            self.write_descriptor(mem, index, desc)?;
            (tail, index) = (index, next);
        }
        Ok(tail)
    }

    /// Writes the chain into `table` and a descriptor that points to it into the ring.
    fn write_indirect<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        chain: &Chain<'_>,
        segments: u16,
        table: GuestAddress,
    ) -> Result<(), RingError> {
        if !self.config.indirect {
            return Err(RingError::IndirectNotNegotiated);
        }
        for (desc, next) in chain.descriptors().zip(1..) {
            let desc = if next < segments {
                desc.then(next)
            } else {
                desc
            };
            // A sum that wraps can't be reached: the access before it would have failed.
            let at = table.0.wrapping_add(DESC_LEN * u64::from(next - 1));
            mem.write_at(GuestAddress(at), &desc.to_bytes())?;
        }
        self.point_to(mem, table, segments)
    }

    /// Makes the first free descriptor one that points to a table.
    #[inline(always)]
    fn point_to<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        table: GuestAddress,
        segments: u16,
    ) -> Result<(), RingError> {
        let desc = Descriptor::indirect(table, DESC_LEN as u32 * u32::from(segments));
        if self.table[usize::from(self.free_head)] != desc {
            self.write_descriptor(mem, self.free_head, desc)?;
        }
        Ok(())
    }

    fn write_descriptor<M: Memory + ?Sized>(
        &mut self,
        mem: &M,
        index: u16,
        desc: Descriptor,
    ) -> Result<(), RingError> {
        mem.write_at(self.layout.desc_at(index), &desc.to_bytes())?;
        self.table[usize::from(index)] = desc;
        Ok(())
    }

    /// Makes all chains added so far visible to the device. Returns how many became so.
    ///
    /// # Errors
    /// [`RingError::Memory`], [`RingError::Violation`].
    #[inline]
    pub fn publish<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<u16, RingError> {
        self.check_broken()?;
        let count = self.avail - self.published;
        if count > 0 {
            // The chains must be visible before the index that covers them (virtio 1.4, 2.7.13.2).
            mem.store_u16(
                self.layout.avail_idx(),
                self.avail as u16,
                Ordering::Release,
            )?;
            self.published = self.avail;
        }
        Ok(count as u16)
    }

    /// Takes back the next chain the device is done with, in the order of the used ring.
    ///
    /// # Errors
    /// [`RingError::Violation`] if the device broke a rule: from then on every call returns it.
    #[inline]
    pub fn poll_used<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<Option<Used>, RingError> {
        self.check_broken()?;
        if self.used == self.seen {
            self.seen = self.load_used_idx(mem)?;
            if self.used == self.seen {
                return Ok(None);
            }
        }
        let mut bytes = [0; 8];
        mem.read_at(self.layout.used_at(self.used), &mut bytes)?;
        let element = u64::from_le_bytes(bytes);
        let used = self.take_back(element as u32, (element >> 32) as u32)?;
        self.used = self.used.wrapping_add(1);
        Ok(Some(used))
    }

    /// Whether all chains that were added are published.
    #[inline]
    pub const fn is_published(&self) -> bool {
        self.avail == self.published
    }

    /// Whether [`SplitDriver::poll_used`] has a chain without looking at the used index again.
    #[inline]
    pub const fn has_seen_more(&self) -> bool {
        self.used != self.seen
    }

    /// The device's used index, checked.
    #[inline]
    pub(super) fn load_used_idx<M: Memory + ?Sized>(&mut self, mem: &M) -> Result<u16, RingError> {
        let idx = mem.load_u16(self.layout.used_idx(), Ordering::Acquire)?;
        // Each published chain moves the used index by one, in whatever order they are used.
        let available = (self.published as u16).wrapping_sub(self.used);
        if idx.wrapping_sub(self.used) > available {
            return Err(self.violation(Violation::UsedIndexJump {
                from: self.used,
                to: idx,
                available,
            }));
        }
        Ok(idx)
    }

    /// Frees the chain that a used entry names.
    #[inline]
    fn take_back(&mut self, id: u32, len: u32) -> Result<Used, RingError> {
        let flight = match self.flights.get_mut(id as usize) {
            Some(flight) if flight.descs != 0 && flight.index < self.published => flight,
            Some(_) => return Err(self.violation(Violation::NotInFlight { id })),
            None => return Err(self.violation(Violation::UnknownHead { id })),
        };
        // There are at most as many as heads.
        let head = id as u16;
        if len > flight.writable {
            let writable = flight.writable;
            return Err(self.violation(Violation::LenTooLong {
                head,
                len,
                writable,
            }));
        }
        let cookie = flight.cookie;
        self.free += std::mem::take(&mut flight.descs);
        self.next[usize::from(flight.tail)] = self.free_head;
        self.free_head = head;
        self.in_flight -= 1;
        Ok(Used { head, cookie, len })
    }

    #[inline]
    pub(super) fn check_broken(&self) -> Result<(), RingError> {
        match self.broken {
            None => Ok(()),
            Some(violation) => Err(violation.into()),
        }
    }

    #[cold]
    pub(super) fn violation(&mut self, violation: Violation) -> RingError {
        self.broken = Some(violation);
        violation.into()
    }
}

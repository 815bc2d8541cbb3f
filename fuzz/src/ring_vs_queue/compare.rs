// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two rings.

use std::num::Wrapping;
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_blk_core::memory::GuestMap;
use virtio_blk_core::ring::{Chain, ChainError, Popped, Ring, RingError, Segment, SplitRing};
use virtio_blk_core::spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use virtio_blk_driver::Memory;
use virtio_blk_driver::wire::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor,
};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

use super::{AVAIL, DATA, DESC, Desc, Input, Len, Link, Step, TABLES, TABLES_LEN, USED};
use crate::image::Image;

/// Ours and theirs, and the driver in front of both.
pub struct Pair<'a, A: GuestMemory + Send + Sync + 'static, B> {
    mine: &'a Image<A>,
    theirs: &'a Image<B>,
    map: GuestMap<Arc<A>>,
    ring: SplitRing,
    chain: Chain,
    queue: Queue,
    state: QueueState,
    /// The driver's available index, and as our ring last saw it.
    avail: Wrapping<u16>,
    seen: Wrapping<u16>,
    /// Heads taken.
    open: Vec<u16>,
    /// Heads done, with their lengths.
    done: Vec<(u16, u32)>,
    flags: u16,
    /// The next descriptor and the next byte for tables to use.
    cursor: u16,
    table: u64,
}

const FEATURES: u64 = RING_INDIRECT_DESC;

fn features(state: &QueueState) -> u64 {
    FEATURES
        | if state.event_idx_enabled {
            RING_EVENT_IDX
        } else {
            0
        }
}

impl<'a, A: GuestMemory + Send + Sync + 'static, B: GuestMemory> Pair<'a, A, B> {
    pub fn new(input: &Input, mine: &'a Image<A>, theirs: &'a Image<B>) -> Self {
        let size = 1 << (input.exponent % 8);
        let state = QueueState {
            max_size: size << (input.more % 4),
            next_avail: input.start,
            next_used: input.start,
            event_idx_enabled: input.event_idx,
            size,
            ready: true,
            desc_table: mine.addr(DESC),
            avail_ring: mine.addr(AVAIL),
            used_ring: mine.addr(USED),
        };
        let map = GuestMap::new(mine.mem.clone());
        let mut pair = Self {
            ring: SplitRing::new(&map, &state, features(&state)).unwrap(),
            queue: Queue::try_from(state).unwrap(),
            mine,
            theirs,
            map,
            chain: Chain::new(),
            state,
            avail: Wrapping(input.start),
            seen: Wrapping(input.start),
            open: Vec::new(),
            done: Vec::new(),
            flags: 0,
            cursor: 0,
            table: 0,
        };
        pair.set_avail(input.start);
        pair.enable();
        pair
    }

    pub fn step(&mut self, step: &Step) -> ControlFlow<()> {
        match step {
            Step::Offer { chain } => self.offer(chain),
            Step::Pop => return self.pop(),
            Step::Complete { pick, len } => {
                if !self.open.is_empty() {
                    let head = self.open.remove(usize::from(*pick) % self.open.len());
                    self.done.push((head, *len));
                }
            }
            Step::Publish => self.publish(),
            Step::Event { ahead } => {
                let event = self.queue.next_used().wrapping_add_signed((*ahead).into());
                self.store(
                    self.state.avail_ring + 4 + 2 * u64::from(self.state.size),
                    event,
                );
            }
            Step::Flags { flags } => {
                self.flags = *flags;
                self.store(self.state.avail_ring, *flags);
            }
            Step::Enable => self.enable(),
            Step::Disable => {
                self.ring.disable_kicks(&self.map);
                self.queue.disable_notification(&*self.theirs.mem).unwrap();
            }
            Step::Restart => self.restart(),
            Step::Head { head } => self.make_available(*head),
            Step::Jump { index } => {
                // Ours may continue with what it saw before, so let it have seen everything.
                if self.seen == Wrapping(self.ring.state().next_avail) {
                    self.set_avail(*index);
                }
            }
        }
        Continue(())
    }

    /// Compares what shows outside.
    pub fn check(&self) {
        let (mine, theirs) = (self.ring.state(), self.queue.state());
        assert_eq!(mine.next_avail, theirs.next_avail);
        assert_eq!(mine.next_used, theirs.next_used);
        assert_eq!(self.ring.in_flight(), self.open.len() + self.done.len());
        assert_eq!(self.ring.latched(), None);
        let len = 6 + 8 * usize::from(self.state.size);
        let read = |mem: &dyn Memory| {
            let mut bytes = vec![0; len];
            mem.read_at(GuestAddress(self.state.used_ring), &mut bytes)
                .unwrap();
            bytes
        };
        let (mine, theirs) = (read(&*self.mine.mem), read(&*self.theirs.mem));
        assert!(mine == theirs, "used rings {mine:?} and {theirs:?}");
        let idx = self
            .queue
            .avail_idx(&*self.theirs.mem, Ordering::Relaxed)
            .unwrap();
        let available = idx.0 != self.queue.next_avail();
        assert_eq!(self.ring.has_available(), available);
    }

    fn store(&self, addr: u64, value: u16) {
        self.mine.store_u16(addr, value);
        self.theirs.store_u16(addr, value);
    }

    fn set_avail(&mut self, index: u16) {
        self.avail = Wrapping(index);
        self.store(self.state.avail_ring + 2, index);
    }

    fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail.0 & (self.state.size - 1));
        self.store(self.state.avail_ring + 4 + 2 * slot, head);
        self.set_avail(self.avail.0.wrapping_add(1));
    }

    fn put(&self, addr: u64, desc: Descriptor) {
        self.mine.write(addr, &desc.to_bytes());
        self.theirs.write(addr, &desc.to_bytes());
    }

    fn offer(&mut self, chain: &super::Chain) {
        let count = chain.descs.len();
        if count == 0 {
            return;
        }
        let in_table = usize::from(chain.table) % (count + 1);
        let direct = if in_table == 0 { count } else { in_table - 1 };
        let slots = self.state.size;
        let head = self.cursor & (slots - 1);
        let mut index = head;
        let (first, rest) = chain.descs.split_at(direct);
        for (number, desc) in first.iter().enumerate() {
            let next = (index + 1) & (slots - 1);
            let last = number + 1 == first.len() && rest.is_empty();
            let mut desc = self.describe(desc, next, last);
            if desc.flags & DESC_F_INDIRECT != 0 {
                desc.flags &= !DESC_F_NEXT;
            }
            self.put(self.state.desc_table + 16 * u64::from(index), desc);
            index = next;
        }
        if !rest.is_empty() {
            let len = 16 * rest.len() as u64;
            let at = if self.table + len > TABLES_LEN {
                0
            } else {
                self.table
            };
            // Tables keep inside one page more or less; where none fits, the chain is just odd.
            self.table = at + len;
            let table = self.mine.addr(TABLES + at);
            for (number, desc) in rest.iter().enumerate() {
                let last = number + 1 == rest.len();
                let desc = self.describe(desc, number as u16 + 1, last);
                self.put(table + 16 * number as u64, desc);
            }
            let len = len as u32 + u32::from(chain.excess);
            let desc = Descriptor::indirect(GuestAddress(table), len);
            self.put(self.state.desc_table + 16 * u64::from(index), desc);
            index = (index + 1) & (slots - 1);
        }
        self.cursor = index;
        self.make_available(head);
    }

    fn describe(&self, desc: &Desc, next: u16, last: bool) -> Descriptor {
        let len = match desc.len {
            Len::Short { len } => len.into(),
            Len::Raw { len } => len,
        };
        let write = if desc.flags & 1 != 0 { DESC_F_WRITE } else { 0 };
        // Bit 0 would be the link's.
        let odd = u16::from(desc.flags) & !(DESC_F_NEXT | DESC_F_WRITE);
        let (link, next) = match desc.link {
            Link::Right if last => (0, 0),
            Link::Right => (DESC_F_NEXT, next),
            Link::To { index } => (DESC_F_NEXT, index),
            Link::End => (0, 0),
        };
        Descriptor {
            addr: GuestAddress(self.mine.place(&desc.addr, DATA)),
            len,
            flags: write | odd | link,
            next,
        }
    }

    fn enable(&mut self) {
        let mine = self.ring.enable_kicks(&self.map).unwrap();
        let theirs = self.queue.enable_notification(&*self.theirs.mem).unwrap();
        assert_eq!(mine, theirs, "more is available");
    }

    fn restart(&mut self) {
        if !self.open.is_empty() || !self.done.is_empty() {
            return;
        }
        let (mine, theirs) = (self.ring.state(), self.queue.state());
        let event_idx = theirs.event_idx_enabled;
        let converted = mine.to_virtio_queue(event_idx).unwrap();
        assert_eq!(converted, theirs);
        self.ring = SplitRing::new(&self.map, theirs, features(&theirs)).unwrap();
        self.queue = Queue::try_from(converted).unwrap();
        self.seen = Wrapping(mine.next_avail);
        self.enable();
    }

    fn publish(&mut self) {
        let any = !self.done.is_empty();
        for (head, len) in self.done.drain(..) {
            self.ring.add_used(head, len);
            self.queue.add_used(&*self.theirs.mem, head, len).unwrap();
        }
        let mine = self.ring.publish(&self.map).unwrap();
        let theirs = self.queue.needs_notification(&*self.theirs.mem).unwrap();
        let expected = if self.state.event_idx_enabled {
            theirs
        } else {
            any && self.flags & AVAIL_F_NO_INTERRUPT == 0
        };
        assert_eq!(mine, expected, "notification");
    }

    fn pop(&mut self) -> ControlFlow<()> {
        let next = Wrapping(self.queue.next_avail());
        let mine = self.ring.pop(&self.map, &mut self.chain);
        let theirs = match self.queue.iter(&*self.theirs.mem) {
            Ok(mut iter) => iter.next(),
            Err(_) => {
                // Ours looks at the index again only when it has taken what it saw before.
                let looked = self.seen == next;
                assert!(
                    !looked || matches!(mine, Err(RingError::AvailIndex { .. })),
                    "{mine:?}"
                );
                return Break(());
            }
        };
        if self.seen == next {
            self.seen = self.avail;
        }
        let Some(chain) = theirs else {
            assert_eq!(mine, Ok(Popped::Empty));
            return Continue(());
        };
        let head = chain.head_index();
        if head >= self.state.size {
            assert!(matches!(mine, Err(RingError::HeadIndex { .. })), "{mine:?}");
            return Break(());
        }
        if self.open.contains(&head) || self.done.iter().any(|done| done.0 == head) {
            assert_eq!(mine, Err(RingError::HeadInFlight { head }));
            return Break(());
        }
        let list: Vec<Descriptor> = chain
            .map(|desc| Descriptor {
                addr: desc.addr(),
                len: desc.len(),
                flags: desc.flags(),
                next: desc.next(),
            })
            .collect();
        match (mine, sound(&list)) {
            (Ok(Popped::Chain), Some((readable, writable))) => {
                assert_eq!(self.chain.readable(), readable);
                assert_eq!(self.chain.writable(), writable);
            }
            (Ok(Popped::Malformed(_)), None) => {}
            (Ok(Popped::Malformed(ChainError::IndirectUnmapped(range))), Some(_)) => {
                let addr = GuestAddress(range.addr);
                assert!(!self.mine.mem.is_mapped(addr, range.len as usize));
            }
            (mine, theirs) => panic!("{mine:?}, theirs {theirs:?} from {list:?}"),
        }
        assert_eq!(self.chain.head(), head);
        self.open.push(head);
        Continue(())
    }
}

/// The two streams of a chain as virtio-queue found it, if the chain is sound.
fn sound(list: &[Descriptor]) -> Option<(Vec<Segment>, Vec<Segment>)> {
    let whole = list
        .last()
        .is_some_and(|last| last.flags & DESC_F_NEXT == 0);
    if !whole {
        return None;
    }
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    for desc in list {
        let write = desc.flags & DESC_F_WRITE != 0;
        if !write && !writable.is_empty() {
            return None;
        }
        if desc.len != 0 {
            let stream = if write { &mut writable } else { &mut readable };
            stream.push(Segment {
                addr: desc.addr.0,
                len: desc.len,
            });
        }
    }
    Some((readable, writable))
}

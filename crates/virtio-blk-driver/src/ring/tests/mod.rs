// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;
use std::sync::atomic::Ordering;

use malformed_queues::testmem::{self, Space};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::wire::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, USED_F_NO_NOTIFY,
};
use crate::{AccessError, Memory, Segment};

const PAGE: usize = 4096;

fn seg(addr: u64, len: u32) -> Segment {
    Segment::new(GuestAddress(addr), len)
}

/// A ring and the pen of a device that writes what it likes.
struct Bench {
    mem: Arc<GuestMemoryMmap<()>>,
    ring: SplitDriver,
    space: Space,
}

impl Bench {
    fn new(size: u16, config: RingConfig) -> Self {
        let (mem, mut space) = testmem::single(64 * PAGE).unwrap();
        let mem = Arc::new(mem);
        let base = space.take(SplitLayout::footprint(size), SplitLayout::DESC_ALIGN);
        let layout = SplitLayout::contiguous(size, base.unwrap()).unwrap();
        // What lay there before must not matter.
        mem.write_at(
            layout.desc(),
            &vec![0xa5; SplitLayout::footprint(size) as usize],
        )
        .unwrap();
        let ring = SplitDriver::new(&*mem, layout, config).unwrap();
        Self { mem, ring, space }
    }

    /// A chain that is one readable and one writable segment of 100 bytes.
    fn add(&mut self, cookie: u64) -> u16 {
        let chain = Chain {
            readable: &[seg(0x1000, 16)],
            writable: &[seg(0x2000, 100)],
            indirect: None,
        };
        self.ring.add(&*self.mem, &chain, cookie).unwrap()
    }

    fn publish(&mut self) -> u16 {
        self.ring.publish(&*self.mem).unwrap()
    }

    /// Writes a used entry at `index` without moving the index.
    fn used_entry(&self, index: u16, id: u32, len: u32) {
        let at = self.ring.layout().used_at(index);
        let element = u64::from(id) | u64::from(len) << 32;
        self.mem.write_at(at, &element.to_le_bytes()).unwrap();
    }

    fn set_used_idx(&self, index: u16) {
        let at = self.ring.layout().used_idx();
        self.mem.store_u16(at, index, Ordering::Release).unwrap();
    }

    fn use_one(&self, index: u16, id: u32, len: u32) {
        self.used_entry(index, id, len);
        self.set_used_idx(index.wrapping_add(1));
    }

    fn load(&self, at: GuestAddress) -> u16 {
        self.mem.load_u16(at, Ordering::Acquire).unwrap()
    }

    fn desc(&self, table: GuestAddress, index: u16) -> Descriptor {
        let mut bytes = [0; 16];
        let at = GuestAddress(table.0 + 16 * u64::from(index));
        self.mem.read_at(at, &mut bytes).unwrap();
        Descriptor::from_bytes(bytes)
    }

    fn poll(&mut self) -> Result<Option<Used>, RingError> {
        self.ring.poll_used(&*self.mem)
    }

    /// The violation that polling shows, twice the same.
    fn caught(&mut self) -> Violation {
        let first = violation(self.poll());
        assert_eq!(violation(self.poll()), first, "a violation stays");
        assert_eq!(violation(self.ring.publish(&*self.mem)), first);
        first
    }
}

fn violation<T: std::fmt::Debug>(result: Result<T, RingError>) -> Violation {
    match result {
        Err(RingError::Violation(violation)) => violation,
        other => panic!("no violation: {other:?}"),
    }
}

mod conduct;
mod layout;
mod notify;

#[test]
fn a_new_ring_is_clean_and_starts_where_told() {
    let config = RingConfig {
        event_idx: true,
        start: 0xfffe,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(8, config);
    let layout = *bench.ring.layout();
    for index in 0..8 {
        assert_eq!(bench.desc(layout.desc(), index), Descriptor::default());
    }
    assert_eq!(bench.load(layout.avail_flags()), 0);
    assert_eq!(bench.load(layout.avail_idx()), 0xfffe);
    assert_eq!(bench.load(layout.used_idx()), 0xfffe);
    assert_eq!(bench.load(layout.used_event()), 0xfffe);
    assert_eq!(bench.poll().unwrap(), None);
    bench.ring.audit(&*bench.mem).unwrap();

    let state = bench.ring.state();
    assert_eq!((state.next_avail, state.next_used), (0xfffe, 0xfffe));
    assert_eq!(
        (state.size, state.ready, state.event_idx_enabled),
        (8, true, true)
    );
    assert_eq!(state.desc_table, layout.desc().0);
    assert_eq!(state.avail_ring, layout.avail().0);
    assert_eq!(state.used_ring, layout.used().0);
    virtio_queue::Queue::try_from(state).unwrap();
}

#[test]
fn a_ring_outside_memory_is_an_error() {
    let (mem, space) = testmem::single(4 * PAGE).unwrap();
    let edge = space.edge().0;
    for base in [edge, edge - 64, u64::MAX - 4095] {
        let layout = SplitLayout::contiguous(16, GuestAddress(base)).unwrap();
        let result = SplitDriver::new(&mem, layout, RingConfig::default());
        assert!(matches!(result, Err(RingError::Memory(_))), "{base:#x}");
    }
}

#[test]
fn chains_are_written_as_linked_descriptors() {
    let mut bench = Bench::new(8, RingConfig::default());
    let layout = *bench.ring.layout();
    let chain = Chain {
        readable: &[seg(0x1000, 16), seg(0x3000, 0)],
        writable: &[seg(0x5000, 512), seg(0x6000, 1)],
        indirect: None,
    };
    let head = bench.ring.add(&*bench.mem, &chain, 7).unwrap();
    assert_eq!((bench.ring.free(), bench.ring.in_flight()), (4, 1));
    assert_eq!(bench.load(layout.avail_idx()), 0, "not published yet");
    assert_eq!(bench.load(layout.avail_at(0)), head);

    let mut index = head;
    for (addr, len, flags) in [
        (0x1000, 16, DESC_F_NEXT),
        (0x3000, 0, DESC_F_NEXT),
        (0x5000, 512, DESC_F_NEXT | DESC_F_WRITE),
        (0x6000, 1, DESC_F_WRITE),
    ] {
        let desc = bench.desc(layout.desc(), index);
        assert_eq!((desc.addr.0, desc.len, desc.flags), (addr, len, flags));
        index = desc.next;
    }

    assert_eq!(bench.publish(), 1);
    assert_eq!(bench.load(layout.avail_idx()), 1);
    assert_eq!(bench.publish(), 0);
    bench.use_one(0, head.into(), 513);
    let used = bench.poll().unwrap().unwrap();
    assert_eq!((used.head, used.cookie, used.len), (head, 7, 513));
    assert_eq!((bench.ring.free(), bench.ring.in_flight()), (8, 0));
    bench.ring.audit(&*bench.mem).unwrap();
}

#[test]
fn indirect_chains_take_one_descriptor() {
    let config = RingConfig {
        indirect: true,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(4, config);
    let layout = *bench.ring.layout();
    let table = bench.space.take(64, 16).unwrap();
    let chain = Chain {
        readable: &[seg(0x1000, 16), seg(0x2000, 8), seg(0x3000, 8)],
        writable: &[seg(0x5000, 1)],
        indirect: Some(table),
    };
    let head = bench.ring.add(&*bench.mem, &chain, 1).unwrap();
    assert_eq!(bench.ring.free(), 3);
    let desc = bench.desc(layout.desc(), head);
    assert_eq!(
        (desc.addr, desc.len, desc.flags),
        (table, 64, DESC_F_INDIRECT)
    );
    let entries: Vec<_> = (0..4).map(|index| bench.desc(table, index)).collect();
    let flags: Vec<_> = entries.iter().map(|desc| desc.flags).collect();
    assert_eq!(flags, [DESC_F_NEXT, DESC_F_NEXT, DESC_F_NEXT, DESC_F_WRITE]);
    let next: Vec<_> = entries.iter().map(|desc| desc.next).collect();
    assert_eq!(next[..3], [1, 2, 3]);
    assert_eq!(entries[2].addr.0, 0x3000);

    bench.publish();
    bench.use_one(0, head.into(), 1);
    assert_eq!(bench.poll().unwrap().unwrap().cookie, 1);
    assert_eq!(bench.ring.free(), 4);
}

#[test]
fn bad_chains_are_refused_and_change_nothing() {
    let mut bench = Bench::new(4, RingConfig::default());
    let mem = Arc::clone(&bench.mem);
    let one = [seg(0x1000, 1)];
    let five = [one[0]; 5];
    let huge = [seg(0, u32::MAX), seg(0, 1)];
    let chain = |readable, writable, indirect| Chain {
        readable,
        writable,
        indirect,
    };
    let mut add = |chain: Chain<'_>| bench.ring.add(&*mem, &chain, 0);

    assert!(matches!(add(chain(&[], &[], None)), Err(RingError::Empty)));
    assert!(matches!(
        add(chain(&five, &[], None)),
        Err(RingError::TooLong {
            segments: 5,
            max: 4
        })
    ));
    assert!(matches!(
        add(chain(&huge, &[], None)),
        Err(RingError::TooManyBytes {
            bytes: 0x1_0000_0000
        })
    ));
    assert!(matches!(
        add(chain(&huge[..1], &huge[1..], None)),
        Err(RingError::TooManyBytes { .. })
    ));
    assert!(matches!(
        add(chain(&one, &one, Some(GuestAddress(0x1000)))),
        Err(RingError::IndirectNotNegotiated)
    ));
    add(chain(&huge[..1], &[], None)).unwrap();
    add(chain(&one, &one, None)).unwrap();
    assert!(matches!(
        add(chain(&one, &one, None)),
        Err(RingError::Full { needed: 2, free: 1 })
    ));
    add(chain(&one, &[], None)).unwrap();
    assert!(matches!(
        add(chain(&one, &[], None)),
        Err(RingError::Full { needed: 1, free: 0 })
    ));
    assert_eq!(bench.ring.in_flight(), 3);
    assert_eq!(bench.publish(), 3);
}

/// A table that the caller writes: the ring's descriptor points to it, and is only written if it did not.
#[test]
fn a_table_of_the_callers_is_put_into_the_ring() {
    let config = RingConfig {
        indirect: true,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(4, config);
    let mem = Arc::clone(&bench.mem);
    let table = |head: u16| GuestAddress(0x1000 + 64 * u64::from(head));
    for round in 0..6u16 {
        let head = bench.ring.next_head().unwrap();
        let (segments, writable) = if round % 3 == 0 { (3, 513) } else { (2, 1) };
        let added = bench
            .ring
            .add_table(&*mem, table(head), segments, writable, round.into());
        assert_eq!(added.unwrap(), head);
        let len = 16 * u32::from(segments);
        let expected = Descriptor::indirect(table(head), len);
        assert_eq!(bench.desc(bench.ring.layout().desc(), head), expected);
        assert_eq!(bench.publish(), 1);
        bench.ring.audit(&*mem).unwrap();
        bench.use_one(round, head.into(), writable);
        let used = bench.ring.poll_used(&*mem).unwrap().unwrap();
        assert_eq!((used.head, used.len), (head, writable));
        assert_eq!(used.cookie, u64::from(round));
    }
    // A device that says more than there is room for.
    let head = bench.ring.add_table(&*mem, table(0), 2, 1, 0).unwrap();
    bench.publish();
    bench.use_one(6, head.into(), 2);
    assert!(matches!(
        bench.ring.poll_used(&*mem),
        Err(RingError::Violation(Violation::LenTooLong { .. }))
    ));
}

#[test]
fn a_table_that_can_not_be_put_into_the_ring_is_refused() {
    let mut bench = Bench::new(4, RingConfig::default());
    let mem = Arc::clone(&bench.mem);
    let table = GuestAddress(0x1000);
    let mut add = |segments| bench.ring.add_table(&*mem, table, segments, 0, 0);
    assert!(matches!(add(0), Err(RingError::Empty)));
    assert!(matches!(
        add(5),
        Err(RingError::TooLong {
            segments: 5,
            max: 4
        })
    ));
    assert!(matches!(add(1), Err(RingError::IndirectNotNegotiated)));
    let config = RingConfig {
        indirect: true,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(4, config);
    let mem = Arc::clone(&bench.mem);
    for _ in 0..4 {
        bench.ring.add_table(&*mem, table, 4, 0, 0).unwrap();
    }
    assert_eq!(bench.ring.next_head(), None);
    assert!(matches!(
        bench.ring.add_table(&*mem, table, 4, 0, 0),
        Err(RingError::Full { needed: 1, free: 0 })
    ));
    assert_eq!((bench.ring.in_flight(), bench.publish()), (4, 4));
}

#[test]
fn an_indirect_table_outside_memory_is_an_error() {
    let config = RingConfig {
        indirect: true,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(4, config);
    for table in [
        bench.space.unmapped().0,
        u64::MAX - 20,
        bench.space.edge().0 - 16,
    ] {
        let chain = Chain {
            readable: &[seg(0x1000, 1), seg(0x1000, 1)],
            writable: &[],
            indirect: Some(GuestAddress(table)),
        };
        let result = bench.ring.add(&*bench.mem, &chain, 0);
        assert!(matches!(
            result,
            Err(RingError::Memory(
                AccessError::Memory { .. } | AccessError::Wraps { .. }
            ))
        ));
    }
    assert_eq!((bench.ring.free(), bench.ring.in_flight()), (4, 0));
}

/// A chain the device keeps while others go around the index more than once is still one it may use.
#[test]
fn a_chain_may_be_overtaken_for_ever() {
    let mut bench = Bench::new(8, RingConfig::default());
    let slow = bench.add(u64::MAX);
    bench.publish();
    let mut index = 0_u16;
    for cookie in 0..70_000 {
        let head = bench.add(cookie);
        bench.publish();
        bench.use_one(index, head.into(), 0);
        index = index.wrapping_add(1);
        assert_eq!(bench.poll().unwrap().unwrap().cookie, cookie);
    }
    bench.use_one(index, slow.into(), 0);
    assert_eq!(bench.poll().unwrap().unwrap().cookie, u64::MAX);
    bench.ring.audit(&*bench.mem).unwrap();
}

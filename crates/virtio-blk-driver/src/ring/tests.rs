// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::testmem::{self, Space};
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
        let layout = space.layout(size).unwrap();
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

#[test]
fn layout_has_the_sizes_of_the_specification() {
    // Size, table, available ring, used ring, all three with padding: by hand from virtio 1.4, 2.7.2.
    for (size, desc, avail, used, total) in [
        (1, 16, 8, 14, 38),
        (2, 32, 10, 22, 66),
        (16, 256, 38, 134, 430),
        (256, 4096, 518, 2054, 6670),
        (32768, 524_288, 65_542, 262_150, 851_982),
    ] {
        assert_eq!(SplitLayout::desc_len(size), desc);
        assert_eq!(SplitLayout::avail_len(size), avail);
        assert_eq!(SplitLayout::used_len(size), used);
        assert_eq!(SplitLayout::footprint(size), total, "size {size}");
    }
}

#[test]
fn contiguous_areas_are_aligned_tight_and_apart() {
    for exponent in 0..=15 {
        let size = 1 << exponent;
        let base = GuestAddress(0x7_0010);
        let layout = SplitLayout::contiguous(size, base).unwrap();
        assert_eq!(layout.size(), size);
        assert_eq!(layout.desc(), base);
        assert_eq!(layout.avail().0, base.0 + SplitLayout::desc_len(size));
        let avail_end = layout.avail().0 + SplitLayout::avail_len(size);
        assert!(layout.used().0 >= avail_end && layout.used().0 < avail_end + 4);
        assert!(layout.used().0.is_multiple_of(4));
        // The last field of each area is inside the footprint, at its very end.
        assert_eq!(layout.used_event().0 + 2, avail_end);
        assert_eq!(
            layout.avail_event().0 + 2,
            base.0 + SplitLayout::footprint(size)
        );
        // Entries wrap.
        assert_eq!(layout.avail_at(size), layout.avail_at(0));
        assert_eq!(
            layout.used_at(size.wrapping_sub(1)).0 + 8,
            layout.avail_event().0
        );
    }
}

#[test]
fn bad_layouts_are_refused() {
    for size in [0, 3, 6, 255, 32769, 65535] {
        assert_eq!(
            SplitLayout::contiguous(size, GuestAddress(0)),
            Err(LayoutError::Size(size))
        );
    }
    let at = |d, a, u| SplitLayout::new(16, GuestAddress(d), GuestAddress(a), GuestAddress(u));
    assert!(at(0x1000, 0x2000, 0x3000).is_ok());
    for (addresses, area, addr, align) in [
        ((0x1008, 0x2000, 0x3000), "descriptor table", 0x1008, 16),
        ((0x1000, 0x2001, 0x3000), "available ring", 0x2001, 2),
        ((0x1000, 0x2000, 0x3002), "used ring", 0x3002, 4),
    ] {
        let result = at(addresses.0, addresses.1, addresses.2);
        assert_eq!(result, Err(LayoutError::Misaligned { area, addr, align }));
    }
    for (d, a, u, area) in [
        (u64::MAX - 15, 0x2000, 0x3000, "descriptor table"),
        (0x1000, u64::MAX - 3, 0x3000, "available ring"),
        (0x1000, 0x2000, u64::MAX - 7, "used ring"),
    ] {
        assert!(matches!(at(d, a, u), Err(LayoutError::Wraps { area: got, .. }) if got == area));
    }
    // 256, 38 and 134 bytes: one byte too close, then just apart.
    let overlap = |a, b| Err(LayoutError::Overlap(a, b));
    let (desc, avail, used) = ("descriptor table", "available ring", "used ring");
    assert_eq!(at(0x1000, 0x10fe, 0x3000), overlap(desc, avail));
    assert!(at(0x1000, 0x1100, 0x3000).is_ok());
    assert_eq!(at(0x1000, 0x2000, 0x10fc), overlap(desc, used));
    assert_eq!(at(0x1000, 0x2000, 0x2024), overlap(avail, used));
    assert!(at(0x1000, 0x2000, 0x2028).is_ok());
    assert_eq!(at(0x1000, 0x2084, 0x2000), overlap(avail, used));
    let base = GuestAddress(u64::MAX - 255 - 15);
    assert!(matches!(
        SplitLayout::contiguous(16, base),
        Err(LayoutError::Wraps { .. })
    ));
}

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

#[test]
fn a_used_index_that_jumps_is_caught() {
    for (published, to) in [(0, 1), (2, 3), (2, 0xffff), (2, 0x8000)] {
        let mut bench = Bench::new(8, RingConfig::default());
        for cookie in 0..published {
            bench.add(cookie);
        }
        bench.publish();
        // Added but not published: the device can't have it.
        bench.add(9);
        bench.set_used_idx(to);
        assert_eq!(
            bench.caught(),
            Violation::UsedIndexJump {
                from: 0,
                to,
                available: published as u16
            }
        );
    }
}

#[test]
fn a_used_index_that_goes_back_is_caught() {
    let mut bench = Bench::new(8, RingConfig::default());
    for cookie in 0..2 {
        let head = bench.add(cookie);
        bench.publish();
        bench.use_one(cookie as u16, head.into(), 0);
        bench.poll().unwrap().unwrap();
    }
    bench.set_used_idx(1);
    assert!(matches!(
        bench.caught(),
        Violation::UsedIndexJump { from: 2, to: 1, .. }
    ));
}

#[test]
fn a_used_head_outside_the_table_is_caught() {
    for id in [8, 0xffff, 0x1_0000, u32::MAX] {
        let mut bench = Bench::new(8, RingConfig::default());
        bench.add(0);
        bench.publish();
        bench.use_one(0, id, 0);
        assert_eq!(bench.caught(), Violation::UnknownHead { id });
    }
}

#[test]
fn a_head_not_in_flight_is_caught() {
    // Never used, the second descriptor of a chain, not published.
    for pick in 0..3 {
        let mut bench = Bench::new(8, RingConfig::default());
        let head = bench.add(0);
        let second = bench.desc(bench.ring.layout().desc(), head).next;
        bench.publish();
        let unpublished = bench.add(1);
        let id = u32::from([7, second, unpublished][pick]);
        bench.use_one(0, id, 0);
        assert_eq!(bench.caught(), Violation::NotInFlight { id });
    }
}

#[test]
fn a_head_used_twice_is_caught() {
    let mut bench = Bench::new(8, RingConfig::default());
    let head = bench.add(0);
    bench.add(1);
    bench.publish();
    bench.use_one(0, head.into(), 0);
    bench.use_one(1, head.into(), 0);
    assert_eq!(bench.poll().unwrap().unwrap().cookie, 0);
    assert_eq!(bench.caught(), Violation::NotInFlight { id: head.into() });
}

#[test]
fn a_used_length_beyond_the_writable_bytes_is_caught() {
    let mut bench = Bench::new(8, RingConfig::default());
    let (first, second) = (bench.add(0), bench.add(1));
    bench.publish();
    bench.use_one(0, first.into(), 100);
    assert_eq!(bench.poll().unwrap().unwrap().len, 100);
    bench.use_one(1, second.into(), 101);
    assert_eq!(
        bench.caught(),
        Violation::LenTooLong {
            head: second,
            len: 101,
            writable: 100
        }
    );
}

#[test]
fn a_reset_makes_a_broken_ring_good_again() {
    let mut bench = Bench::new(4, RingConfig::default());
    bench.add(0);
    bench.add(1);
    bench.publish();
    bench.set_used_idx(77);
    bench.caught();
    bench.ring.reset(&*bench.mem, 5).unwrap();
    assert_eq!((bench.ring.free(), bench.ring.in_flight()), (4, 0));
    let head = bench.add(3);
    bench.publish();
    bench.use_one(5, head.into(), 1);
    assert_eq!(bench.poll().unwrap().unwrap().cookie, 3);
    bench.ring.audit(&*bench.mem).unwrap();
}

#[test]
fn audits_catch_a_device_that_writes_where_it_must_not() {
    type Find = fn(&SplitLayout) -> GuestAddress;
    let places: [(Find, Violation); 6] = [
        (|l| l.desc_at(3), Violation::DescriptorChanged { index: 3 }),
        (
            |l| GuestAddress(l.desc_at(7).0 + 14),
            Violation::DescriptorChanged { index: 7 },
        ),
        (|l| l.avail_at(2), Violation::AvailChanged { offset: 8 }),
        (|l| l.avail_flags(), Violation::AvailChanged { offset: 0 }),
        (|l| l.avail_idx(), Violation::AvailChanged { offset: 2 }),
        (|l| l.used_event(), Violation::AvailChanged { offset: 20 }),
    ];
    for (find, expected) in places {
        let mut bench = Bench::new(8, RingConfig::default());
        bench.add(0);
        bench.publish();
        bench.ring.audit(&*bench.mem).unwrap();
        let at = find(bench.ring.layout());
        let changed = bench.load(at) ^ 0x10;
        bench.mem.store_u16(at, changed, Ordering::Relaxed).unwrap();
        assert_eq!(violation(bench.ring.audit(&*bench.mem)), expected);
        assert_eq!(bench.caught(), expected);
    }
}

#[test]
fn audits_check_the_used_flags() {
    for (event_idx, flags, good) in [
        (false, USED_F_NO_NOTIFY, true),
        (false, 2, false),
        (true, 0, true),
        (true, USED_F_NO_NOTIFY, false),
    ] {
        let mut bench = Bench::new(
            8,
            RingConfig {
                event_idx,
                ..RingConfig::default()
            },
        );
        let at = bench.ring.layout().used_flags();
        bench.mem.store_u16(at, flags, Ordering::Relaxed).unwrap();
        let result = bench.ring.audit(&*bench.mem);
        if good {
            result.unwrap();
        } else {
            assert_eq!(violation(result), Violation::UsedFlags { flags });
        }
    }
}

#[test]
fn kicks_follow_the_flags_without_event_index() {
    let mut bench = Bench::new(8, RingConfig::default());
    let mem = Arc::clone(&bench.mem);
    assert!(!bench.ring.needs_kick(&*mem).unwrap(), "nothing published");
    bench.add(0);
    assert!(!bench.ring.needs_kick(&*mem).unwrap(), "nothing published");
    bench.publish();
    assert!(bench.ring.needs_kick(&*mem).unwrap());
    assert!(!bench.ring.needs_kick(&*mem).unwrap(), "once is enough");
    let flags = bench.ring.layout().used_flags();
    mem.store_u16(flags, USED_F_NO_NOTIFY, Ordering::Relaxed)
        .unwrap();
    bench.add(1);
    bench.publish();
    assert!(!bench.ring.needs_kick(&*mem).unwrap());
}

#[test]
fn kicks_follow_the_event_index() {
    // Published so far, device's event, newly published, kick?
    for (start, event, count, kick) in [
        (0, 0, 1, true),
        (0, 1, 1, false),
        (0, 2, 3, true),
        (0, 3, 3, false),
        (0, 0xffff, 3, false),
        (0xfffe, 0xffff, 1, false),
        (0xfffe, 0xffff, 2, true),
        (0xfffe, 0, 3, true),
        (0xffff, 0xffff, 1, true),
    ] {
        let mut bench = Bench::new(
            8,
            RingConfig {
                event_idx: true,
                start,
                ..RingConfig::default()
            },
        );
        let at = bench.ring.layout().avail_event();
        bench.mem.store_u16(at, event, Ordering::Relaxed).unwrap();
        // Must be ignored.
        let flags = bench.ring.layout().used_flags();
        bench
            .mem
            .store_u16(flags, USED_F_NO_NOTIFY, Ordering::Relaxed)
            .unwrap();
        for cookie in 0..count {
            bench.add(cookie);
        }
        bench.publish();
        let result = bench.ring.needs_kick(&*bench.mem).unwrap();
        assert_eq!(result, kick, "{start} {event} {count}");
    }
}

#[test]
fn interrupts_without_event_index() {
    let mut bench = Bench::new(8, RingConfig::default());
    let (mem, layout) = (Arc::clone(&bench.mem), *bench.ring.layout());
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    bench.ring.disable_interrupts(&*mem).unwrap();
    assert_eq!(bench.load(layout.avail_flags()), AVAIL_F_NO_INTERRUPT);
    let head = bench.add(0);
    bench.publish();
    assert!(!bench.ring.enable_interrupts(&*mem).unwrap());
    assert_eq!(bench.load(layout.avail_flags()), 0);
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    bench.use_one(0, head.into(), 0);
    assert!(bench.ring.interrupt_due(&*mem).unwrap());
    assert!(bench.ring.enable_interrupts(&*mem).unwrap(), "one is there");
    bench.ring.disable_interrupts(&*mem).unwrap();
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    bench.ring.audit(&*mem).unwrap();
}

#[test]
fn interrupts_with_event_index() {
    let config = RingConfig {
        event_idx: true,
        start: 0xfffe,
        ..RingConfig::default()
    };
    let mut bench = Bench::new(8, config);
    let (mem, layout) = (Arc::clone(&bench.mem), *bench.ring.layout());
    let heads: Vec<_> = (0..4).map(|cookie| bench.add(cookie)).collect();
    bench.publish();
    assert!(!bench.ring.interrupt_after(&*mem, 3).unwrap());
    assert_eq!(bench.load(layout.used_event()), 0);
    for (index, due) in [(0xfffe, false), (0xffff, false), (0, true)] {
        bench.use_one(
            index,
            heads[usize::from(index.wrapping_sub(0xfffe))].into(),
            0,
        );
        assert_eq!(bench.ring.interrupt_due(&*mem).unwrap(), due, "{index:#x}");
    }
    assert!(
        bench.ring.interrupt_after(&*mem, 3).unwrap(),
        "three are there"
    );
    assert!(!bench.ring.interrupt_after(&*mem, 4).unwrap());
    for cookie in 0..3 {
        assert_eq!(bench.poll().unwrap().unwrap().cookie, cookie);
    }
    assert!(!bench.ring.enable_interrupts(&*mem).unwrap());
    assert_eq!(bench.load(layout.used_event()), 1);
    bench.ring.disable_interrupts(&*mem).unwrap();
    bench.use_one(1, heads[3].into(), 0);
    assert!(!bench.ring.interrupt_due(&*mem).unwrap());
    assert_eq!(bench.load(layout.used_event()), 0, "far from the next one");
    assert_eq!(
        bench.load(layout.avail_flags()),
        0,
        "not used with event index"
    );
    bench.ring.audit(&*mem).unwrap();
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

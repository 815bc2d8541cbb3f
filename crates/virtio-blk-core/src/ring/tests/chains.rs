// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use malformed_queues::HostileRing;
use malformed_queues::on_each_memory;
use proptest::prelude::*;
use virtio_blk_driver::wire::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};

use super::*;

/// What a device finds in a queue of `SIZE`, of at most `max_size`, in which the hostile driver wrote
/// descriptor 0 and whatever it leads to.
fn found(
    max_size: u16,
    indirect: bool,
    write: impl Fn(&mut HostileRing<'_>) -> Vec<Descriptor>,
) -> Result<(Vec<Segment>, Vec<Segment>), ChainError> {
    let mut results = Vec::new();
    on_each_memory!(1024 * 1024, |mem, space| {
        let _ = &mut space;
        let mut hostile = HostileRing::new(&*mem, space, SIZE, 0, false).unwrap();
        let list = write(&mut hostile);
        for (index, desc) in list.into_iter().enumerate() {
            hostile.descriptor(index as u16, desc).unwrap();
        }
        hostile.avail_entry(0, 0).unwrap();
        hostile.avail_idx(1).unwrap();
        let state = QueueState {
            max_size,
            ..hostile.state.into()
        };
        let features = if indirect { RING_INDIRECT_DESC } else { 0 };
        let map = GuestMap::new(mem.clone());
        let mut ring = SplitRing::new(&map, state, features).unwrap();
        let mut chain = Chain::new();
        let popped = ring.pop(&map, &mut chain).unwrap();
        assert_eq!((chain.head(), ring.in_flight()), (0, 1));
        same_by_shape(&map, &state, features, popped, &chain);
        // Whatever it was, it is added to the used ring and the queue continues.
        ring.add_used(0, 0);
        assert_eq!(ring.in_flight(), 0);
        ring.publish(&map).unwrap();
        assert_eq!(ring.pop(&map, &mut Chain::new()), Ok(Popped::Empty));
        results.push(match popped {
            Popped::Malformed(error) => Err(error),
            Popped::Chain => {
                let sum = |list: &[Segment]| list.iter().map(|s| s.len).sum::<u32>();
                assert_eq!(sum(chain.readable()), chain.readable_len());
                assert_eq!(sum(chain.writable()), chain.writable_len());
                // Addresses differ from memory to memory.
                let bare = |list: &[Segment]| {
                    let list = list.iter().map(|s| Segment { addr: 0, ..*s });
                    list.collect::<Vec<_>>()
                };
                Ok((bare(chain.readable()), bare(chain.writable())))
            }
            Popped::Empty => panic!("nothing there"),
        });
    });
    let unmapped = |error: &ChainError| matches!(error, ChainError::IndirectUnmapped(_));
    let [first, rest @ ..] = &results[..] else {
        panic!("no memory");
    };
    for other in rest {
        let both = first.as_ref().is_err_and(unmapped) && other.as_ref().is_err_and(unmapped);
        assert!(both || other == first, "{other:?} is not {first:?}");
    }
    first.clone()
}

/// What the runner takes from the same ring is what `pop` found.
fn same_by_shape<M: DeviceMemory>(
    map: &GuestMap<M>,
    state: &QueueState,
    features: u64,
    popped: Popped,
    expected: &Chain,
) {
    let mut ring = SplitRing::new(map, state, features).unwrap();
    let mut chain = Chain::new();
    let found = ring.next().unwrap().expect("nothing there");
    assert_eq!(ring.in_flight(), 1);
    match ring.read_simple::<16, 1, M>(map, found) {
        Some(simple) => {
            assert_eq!(popped, Popped::Chain);
            chain.set_simple::<16, 1>(&simple);
        }
        None => assert_eq!(popped, Popped::from(ring.read(map, found, &mut chain))),
    }
    assert_eq!(chain.head(), expected.head());
    if popped == Popped::Chain {
        assert_eq!(chain.readable(), expected.readable());
        assert_eq!(chain.writable(), expected.writable());
        assert_eq!(chain.readable_len(), expected.readable_len());
        assert_eq!(chain.writable_len(), expected.writable_len());
    }
}

fn r(len: u32) -> Descriptor {
    Descriptor::readable(GuestAddress(0x1234_5678), len)
}

fn w(len: u32) -> Descriptor {
    Descriptor::writable(GuestAddress(0x1234_5678), len)
}

fn lens(list: &[u32]) -> Vec<Segment> {
    list.iter().map(|&len| Segment { addr: 0, len }).collect()
}

#[test]
fn chains_are_two_streams_without_empty_pieces() {
    for (list, readable, writable) in [
        (vec![w(1)], vec![], vec![1]),
        (vec![r(1)], vec![1], vec![]),
        (vec![r(0)], vec![], vec![]),
        (
            vec![
                r(16).then(1),
                r(0).then(2),
                r(7).then(3),
                w(0).then(4),
                w(9),
            ],
            vec![16, 7],
            vec![9],
        ),
        // An empty writable one does not end the readable stream.
        (vec![r(16).then(1), w(0).then(2), r(7)], vec![16, 7], vec![]),
        // Links may lead anywhere inside the table; flags beyond the known ones mean nothing.
        (
            vec![r(1).then(2), w(3), r(2).then(1).with_flags(0xfff8)],
            vec![1, 2],
            vec![3],
        ),
        // A link without its flag is none.
        (
            vec![Descriptor {
                next: u16::MAX,
                ..w(5)
            }],
            vec![],
            vec![5],
        ),
    ] {
        let expected = Ok((lens(&readable), lens(&writable)));
        assert_eq!(found(SIZE, true, |_| list.clone()), expected, "{list:?}");
    }
}

#[test]
fn malformed_direct_chains() {
    let far = u32::MAX / 2 + 1;
    for (list, error) in [
        (vec![r(1).then(0)], ChainError::TooLong),
        (vec![r(1).then(1), w(1).then(1)], ChainError::TooLong),
        (vec![r(0).then(1), r(0).then(0)], ChainError::TooLong),
        (vec![w(1).then(SIZE)], ChainError::NextIndex),
        (vec![w(1).then(u16::MAX)], ChainError::NextIndex),
        (vec![w(1).then(1), r(1)], ChainError::ReadableAfterWritable),
        (
            vec![w(1).then(1), r(0).then(2), w(1)],
            ChainError::ReadableAfterWritable,
        ),
        (vec![r(far).then(1), r(far)], ChainError::TooLarge),
        (vec![r(far).then(1), w(far)], ChainError::TooLarge),
        (vec![r(u32::MAX).then(1), w(1)], ChainError::TooLarge),
    ] {
        assert_eq!(found(SIZE, true, |_| list.clone()), Err(error), "{list:?}");
    }
    // The most there can be.
    let most = vec![r(u32::MAX - 1).then(1), w(1)];
    assert!(found(SIZE, true, |_| most.clone()).is_ok());
    let all: Vec<_> = (1..=SIZE)
        .map(|n| if n == SIZE { w(1) } else { w(1).then(n) })
        .collect();
    assert_eq!(
        found(SIZE, true, |_| all.clone()),
        Ok((vec![], lens(&[1; SIZE as usize])))
    );
}

/// A table whose links are right, unless they are set already.
fn table(ring: &mut HostileRing<'_>, list: &[Descriptor]) -> Descriptor {
    ring.table(list).unwrap()
}

#[test]
fn indirect_tables() {
    // Alone, with the write flag, and behind direct descriptors.
    for flags in [0, DESC_F_WRITE] {
        let got = found(SIZE, true, |ring| {
            vec![table(ring, &[r(16), r(5), w(6), w(1)]).with_flags(flags)]
        });
        assert_eq!(got, Ok((lens(&[16, 5]), lens(&[6, 1]))));
        let got = found(SIZE, true, |ring| {
            let table = table(ring, &[r(5), w(1)]).with_flags(flags);
            vec![r(16).then(1), table]
        });
        assert_eq!(got, Ok((lens(&[16, 5]), lens(&[1]))));
    }
    // A writable one before the table counts for the order inside it.
    let got = found(SIZE, true, |ring| {
        let table = table(ring, &[r(5), w(1)]);
        vec![w(3).then(1), table]
    });
    assert_eq!(got, Err(ChainError::ReadableAfterWritable));
}

#[test]
fn malformed_indirect_tables() {
    let go = |write: &dyn Fn(&mut HostileRing<'_>) -> Vec<Descriptor>| found(SIZE, true, write);
    let with_len = |len: u32| {
        found(SIZE, true, |ring| {
            vec![Descriptor {
                len,
                ..table(ring, &[r(1), w(1)])
            }]
        })
    };
    for len in [0, 1, 15, 17, 31, 33, u32::MAX] {
        assert_eq!(with_len(len), Err(ChainError::IndirectLength(len)));
    }
    assert!(with_len(32).is_ok());
    // One descriptor too few for its links.
    assert_eq!(with_len(16), Err(ChainError::NextIndex));

    let plain = found(SIZE, false, |ring| vec![table(ring, &[w(1)])]);
    assert_eq!(plain, Err(ChainError::IndirectNotNegotiated));
    let behind = go(&|ring| vec![table(ring, &[w(1)]).then(1), w(1)]);
    assert_eq!(behind, Err(ChainError::IndirectMisplaced));
    let nested = go(&|ring| {
        let inner = table(ring, &[w(1)]);
        vec![table(ring, &[inner])]
    });
    assert_eq!(nested, Err(ChainError::IndirectMisplaced));
    let looped = go(&|ring| {
        let outer = table(ring, &[r(1), r(1)]);
        let list = [r(1).then(1), r(1).then(0)].map(Descriptor::to_bytes);
        ring.memory().write_at(outer.addr, &list.concat()).unwrap();
        vec![outer]
    });
    assert_eq!(looped, Err(ChainError::TooLong));
    let unmapped = go(&|ring| vec![Descriptor::indirect(ring.unmapped(), 16)]);
    assert!(matches!(unmapped, Err(ChainError::IndirectUnmapped(_))));
    let over_the_edge = go(&|ring| {
        let at = GuestAddress(ring.edge().0 - 16);
        vec![Descriptor::indirect(at, 32)]
    });
    assert!(matches!(
        over_the_edge,
        Err(ChainError::IndirectUnmapped(_))
    ));
    for addr in [u64::MAX, u64::MAX - 15, u64::MAX - 16] {
        let at_the_end = go(&|_| vec![Descriptor::indirect(GuestAddress(addr), 32)]);
        assert!(matches!(at_the_end, Err(ChainError::IndirectUnmapped(_))));
    }
}

#[test]
fn tables_are_limited_by_safety_and_not_by_the_queue() {
    let long = |direct: u16, count: u32| {
        found(SIZE, true, |ring| {
            let table = table(ring, &vec![w(1); count as usize]);
            let mut list: Vec<_> = (1..=direct).map(|n| r(1).then(n)).collect();
            list.push(table);
            list
        })
    };
    // What a driver makes that was told another seg_max, or that goes beyond it (Windows).
    for count in [u32::from(SIZE) + 1, 129, 515, 1024] {
        let (readable, writable) = long(0, count).unwrap();
        assert_eq!((readable.len(), writable.len()), (0, count as usize));
    }
    assert!(long(0, MAX_CHAIN).is_ok());
    assert_eq!(long(0, MAX_CHAIN + 1), Err(ChainError::TooLong));
    assert!(long(3, MAX_CHAIN - 3).is_ok());
    assert_eq!(long(3, MAX_CHAIN - 2), Err(ChainError::TooLong));
}

/// Where the status of a chain belongs that was refused.
fn place(
    indirect: bool,
    write: impl FnOnce(&mut HostileRing<'_>) -> Vec<Descriptor>,
) -> LastWritable {
    let (mem, space) = testmem::single(4 * 1024 * 1024).unwrap();
    let mut hostile = HostileRing::new(&mem, space, SIZE, 0, false).unwrap();
    for (index, desc) in write(&mut hostile).into_iter().enumerate() {
        hostile.descriptor(index as u16, desc).unwrap();
    }
    let state = hostile.state;
    drop(hostile);
    let map = GuestMap::new(Arc::new(mem));
    let features = if indirect { RING_INDIRECT_DESC } else { 0 };
    let mut ring = SplitRing::new(&map, state, features).unwrap();
    ring.last_writable(&map, 0)
}

#[test]
fn a_refused_chain_has_its_status_in_the_last_writable_byte() {
    let at = |addr| LastWritable::At { addr, alone: false };
    let far = u32::MAX;
    let end = 0x1234_5678;
    let mark = |len: u32| Descriptor::writable(GuestAddress(end), len);
    for (list, expected) in [
        // Whatever the order, and how much there is.
        (vec![w(1).then(1), mark(9).then(2), r(1)], at(end + 8)),
        (
            vec![r(far).then(1), mark(far).then(2), w(0)],
            at(end + 0xffff_fffe),
        ),
        (
            vec![r(1).then(1), mark(1)],
            LastWritable::At {
                addr: end,
                alone: true,
            },
        ),
        // As far as it can be read.
        (vec![r(1).then(1), mark(2).then(SIZE)], at(end + 1)),
        (
            vec![r(1).then(1), w(5).then(2), mark(2).then(0)],
            at(end + 1),
        ),
        (vec![r(1).then(1), mark(2).then(1)], at(end + 1)),
        // An address that wraps is not mapped.
        (vec![Descriptor::writable(GuestAddress(u64::MAX), 3)], at(1)),
        (
            vec![r(1).then(1), w(0).then(2), r(1)],
            LastWritable::Nowhere,
        ),
        (vec![r(1).then(1), r(1).then(0)], LastWritable::Unknown),
        (vec![r(1).then(u16::MAX)], LastWritable::Unknown),
    ] {
        assert_eq!(place(true, |_| list.clone()), expected, "{list:?}");
    }
    type Write<'a> = &'a dyn Fn(&mut HostileRing<'_>) -> Descriptor;
    let tables: [(Write<'_>, LastWritable); 6] = [
        (&|ring| table(ring, &[w(3), mark(2), r(1)]), at(end + 1)),
        (&|ring| table(ring, &[w(3), mark(2).then(7)]), at(end + 1)),
        (&|ring| table(ring, &[w(3), mark(2).then(0)]), at(end + 1)),
        (&|ring| table(ring, &[r(3)]), LastWritable::Nowhere),
        (
            &|ring| table(ring, &[mark(2)]).then(1),
            LastWritable::Unknown,
        ),
        (
            &|ring| {
                let mut long = vec![w(1); 40_000];
                long[39_999] = mark(2);
                table(ring, &long)
            },
            at(end + 1),
        ),
    ];
    for (write, expected) in tables {
        assert_eq!(place(true, |ring| vec![write(ring)]), expected);
        // Not negotiated: the table is not looked at.
        assert_eq!(
            place(false, |ring| vec![write(ring)]),
            LastWritable::Unknown
        );
    }
    let before = place(true, |ring| {
        let inner = table(ring, &[w(1)]);
        vec![r(1).then(1), table(ring, &[mark(2), inner])]
    });
    assert_eq!(before, at(end + 1));
}

/// Tables may lie at any address; what is behind the 65536th descriptor can't be named.
#[test]
fn a_table_need_not_be_aligned_nor_all_there() {
    let got = found(SIZE, true, |ring| {
        let outer = table(ring, &[r(1), r(1), r(1), w(1), w(2)]);
        let list = [r(3).then(1), w(4)].map(Descriptor::to_bytes).concat();
        let odd = GuestAddress(outer.addr.0 + 7);
        ring.memory().write_at(odd, &list).unwrap();
        vec![Descriptor::indirect(odd, 32)]
    });
    assert_eq!(got, Ok((lens(&[3]), lens(&[4]))));
    // A table of nearly 4 GiB, of which 1 MiB would be mapped in memory large enough: here it is not.
    let got = found(SIZE, true, |ring| {
        let inner = table(ring, &[w(1)]);
        vec![Descriptor {
            len: u32::MAX - 15,
            ..inner
        }]
    });
    assert!(matches!(
        got,
        Err(ChainError::IndirectUnmapped(Unmapped {
            len: 0x10_0000,
            ..
        }))
    ));
}

/// A chain as a plain reading of the specification gives it.
fn walk(table: &[Descriptor]) -> Option<(Vec<u32>, Vec<u32>)> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut index = 0;
    for _ in 0..table.len() {
        let desc = table.get(usize::from(index))?;
        if desc.flags & DESC_F_INDIRECT != 0 {
            return None;
        }
        if desc.flags & DESC_F_WRITE != 0 {
            writable.push(desc.len);
        } else if writable.iter().all(|&len| len == 0) {
            readable.push(desc.len);
        } else {
            return None;
        }
        if desc.flags & DESC_F_NEXT == 0 {
            let total = readable.iter().chain(&writable).map(|&l| u64::from(l));
            if total.sum::<u64>() > u32::MAX.into() {
                return None;
            }
            readable.retain(|&len| len != 0);
            writable.retain(|&len| len != 0);
            return Some((readable, writable));
        }
        index = desc.next;
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_table_is_read_as_the_specification_says(
        list in prop::collection::vec(
            (
                prop_oneof![4 => 0..2000u32, 1 => any::<u32>()],
                prop_oneof![8 => 0..4u16, 1 => any::<u16>()],
                prop_oneof![8 => 0..16u16, 1 => any::<u16>()],
            ),
            16,
        ),
    ) {
        let table: Vec<_> = list
            .into_iter()
            .map(|(len, flags, next)| Descriptor { addr: GuestAddress(1), len, flags, next })
            .collect();
        let expected = walk(&table).map(|(r, w)| (lens(&r), lens(&w)));
        let got = found(SIZE, false, |_| table.clone());
        prop_assert_eq!(got.ok(), expected);
    }

    #[test]
    fn nearly_usual_chains_are_read_as_by_a_walk(
        list in prop::collection::vec(
            (
                prop::sample::select(vec![0, 1, 2, 15, 16, 17, 4096, u32::MAX - 17, u32::MAX - 16]),
                prop_oneof![
                    Just(DESC_F_NEXT),
                    Just(DESC_F_NEXT | DESC_F_WRITE),
                    Just(DESC_F_WRITE),
                    prop::sample::select(vec![0, 9, DESC_F_INDIRECT, DESC_F_INDIRECT | DESC_F_NEXT]),
                ],
                prop_oneof![4 => 0..4u16, 1 => prop::sample::select(vec![SIZE, u16::MAX])],
            ),
            4,
        ),
        keep in 0..5usize,
        indirect in any::<bool>(),
        entries in 1..5usize,
    ) {
        let mut table: Vec<_> = list
            .into_iter()
            .map(|(len, flags, next)| Descriptor { addr: GuestAddress(1), len, flags, next })
            .collect();
        // The more of it is as usual, the nearer.
        for (at, desc) in [r(16).then(1), w(4096).then(2), w(1)].into_iter().enumerate() {
            if at != keep && keep < 4 {
                table[at] = desc;
            }
        }
        let _ = found(SIZE, true, |hostile| {
            if !indirect {
                return table.clone();
            }
            vec![hostile.table(&table[..entries.min(table.len())]).unwrap()]
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_a_driver_makes_is_read_as_it_was_made(
        readable in prop::collection::vec(1..5000u32, 0..6),
        writable in prop::collection::vec(1..5000u32, 0..6),
        usual: bool,
        indirect: bool,
    ) {
        prop_assume!(usual || !readable.is_empty() || !writable.is_empty());
        on_each_layout!(L => {
            let mut rig = Rig::<L>::new(true, 0);
            let pieces = |lens: &[u32], at: u64| -> Vec<Piece> {
                let at = (0..).map(|n| GuestAddress(at + n * 0x2000));
                at.zip(lens).map(|(at, &len)| Piece::new(at, len)).collect()
            };
            let (readable, writable) = match usual {
                // A header, data and a status: what a simple chain has.
                true => (vec![16], vec![writable.first().copied().unwrap_or(512), 1]),
                false => (readable.clone(), writable.clone()),
            };
            let (readable, writable) = (pieces(&readable, 0x1000), pieces(&writable, 0x10_0000));
            let table = rig.space.take(16 * 16, 16).unwrap();
            let head = rig.offer_chain(&Offer {
                readable: &readable,
                writable: &writable,
                indirect: indirect.then_some(table),
            });
            let found = rig.ring.next().unwrap().expect("nothing there");
            let simple = rig.ring.read_simple::<16, 1, _>(&rig.map, found);
            prop_assert_eq!(simple.is_some(), usual);
            let mut chain = Chain::new();
            if let Some(simple) = simple {
                chain.set_simple::<16, 1>(&simple);
            }
            prop_assert_eq!(rig.ring.read(&rig.map, found, &mut rig.chain), Ok(()));
            prop_assert_eq!(rig.chain.head(), head);
            let same = |found: &[Segment], made: &[Piece]| {
                let found = found.iter().map(|s| (s.addr, s.len));
                found.eq(made.iter().map(|s| (s.addr.0, s.len)))
            };
            for chain in usual.then_some(&chain).into_iter().chain([&rig.chain]) {
                prop_assert!(same(chain.readable(), &readable), "{chain:?}");
                prop_assert!(same(chain.writable(), &writable), "{chain:?}");
            }
            rig.use_up(head, 0);
            prop_assert_eq!(rig.used(), Some((head, 0)));
        });
    }
}

#[test]
fn usual_chains_are_known_by_their_shape() {
    let header = r(16).then(1);
    let shapes = [
        (vec![header, w(4096).then(2), w(1)], true),
        (vec![header, r(512).then(2), w(1)], true),
        (vec![r(16).then(2), w(1), r(512).then(1)], true),
        (vec![header, w(0).then(2), w(1)], false),
        (vec![header, w(512).then(2), w(2)], false),
        (vec![header, w(512).then(2), r(1)], false),
        (vec![r(17).then(1), w(512).then(2), w(1)], false),
        (vec![header, w(512).then(3), w(1), w(1)], true),
        (vec![header, w(512).then(2), w(1).then(3), w(1)], false),
        (vec![header, w(u32::MAX - 16).then(2), w(1)], false),
        (vec![header, w(1)], false),
    ];
    for (list, usual) in shapes {
        for table in [false, true] {
            let (mem, space) = testmem::single(1024 * 1024).unwrap();
            let mut hostile = HostileRing::new(&mem, space, SIZE, 0, false).unwrap();
            let direct = match table {
                true => vec![hostile.table(&list).unwrap()],
                false => list.clone(),
            };
            for (index, desc) in direct.into_iter().enumerate() {
                hostile.descriptor(index as u16, desc).unwrap();
            }
            hostile.avail_entry(0, 0).unwrap();
            hostile.avail_idx(1).unwrap();
            let state = hostile.state;
            drop(hostile);
            let map = GuestMap::new(Arc::new(mem));
            let mut ring = SplitRing::new(&map, state, RING_INDIRECT_DESC).unwrap();
            let found = ring.next().unwrap().expect("nothing there");
            let simple = ring.read_simple::<16, 1, _>(&map, found);
            // A table has three entries, and they are linked in order here.
            let usual = usual && !(table && (list.len() != 3 || list[1].len == 1));
            assert_eq!(simple.is_some(), usual, "{list:?}, table: {table}");
        }
    }
}

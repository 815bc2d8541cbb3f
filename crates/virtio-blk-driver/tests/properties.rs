// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What holds for the ring whatever happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{HashMap, HashSet};

use malformed_queues::testmem;
use proptest::prelude::*;
use virtio_blk_driver::ring::{Chain, RingConfig, RingError, SplitDriver, SplitLayout};
use virtio_blk_driver::{Memory, Segment};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

const LEN: usize = 256 * 1024;

/// One thing that happens to a ring.
#[derive(Clone, Debug)]
enum Step {
    /// Add a chain of so many segments, in an indirect table or not.
    Add {
        readable: usize,
        writable: usize,
        indirect: bool,
    },
    Publish,
    /// The device takes what is available.
    Take,
    /// The device uses one of the chains it has.
    Use {
        pick: usize,
        len: u32,
    },
    /// The driver takes back what is used.
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5_usize, 0..5_usize, any::<bool>()).prop_map(|(readable, writable, indirect)| {
            Step::Add { readable, writable, indirect }
        }),
        2 => Just(Step::Publish),
        2 => Just(Step::Take),
        3 => (any::<usize>(), any::<u32>()).prop_map(|(pick, len)| Step::Use { pick, len }),
        2 => Just(Step::Poll),
    ]
}

/// A chain as both sides should see it: segments with their direction.
type Seen = Vec<(u64, u32, bool)>;

/// Segments that tell their place: every one different, some empty.
fn segments(count: usize, tag: &mut u64) -> Vec<Segment> {
    (0..count)
        .map(|_| {
            *tag += 1;
            Segment::new(GuestAddress(*tag << 16), (*tag % 7) as u32 * 1000)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is added, in whatever order it is used: the device sees each chain once, as it was
    /// added, the driver gets each cookie once with the length the device gave, and the free
    /// descriptors add up.
    #[test]
    fn chains_arrive_once_and_come_back_once(
        exponent in 0..7_u16,
        start: u16,
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let size = 1 << exponent;
        let (mem, mut space) = testmem::fragmented(LEN, 1).unwrap();
        let config = RingConfig { event_idx, indirect: true, start };
        let mut ring = SplitDriver::new(&mem, space.layout(size).unwrap(), config).unwrap();
        let mut queue = Queue::try_from(ring.state()).unwrap();
        let mut tag = 0;
        let mut cookies = 0;
        let mut sent: HashMap<u16, (u64, Seen, u16)> = HashMap::new();
        let mut held: Vec<(u16, u32)> = Vec::new();
        let mut used: Vec<(u16, u32)> = Vec::new();

        for step in steps {
            match step {
                Step::Add { readable, writable, indirect } => {
                    let (readable, writable) =
                        (segments(readable, &mut tag), segments(writable, &mut tag));
                    let total = readable.len() + writable.len();
                    let table = if indirect { space.take(16 * 8, 16).ok() } else { None };
                    let chain = Chain { readable: &readable, writable: &writable, indirect: table };
                    let needed = if table.is_some() { 1 } else { total as u16 };
                    let free = ring.free();
                    match ring.add(&mem, &chain, cookies) {
                        Ok(head) => {
                            let seen = readable.iter().map(|s| (s.addr.0, s.len, false));
                            let seen = seen.chain(writable.iter().map(|s| (s.addr.0, s.len, true)));
                            let entry = (cookies, seen.collect(), needed);
                            prop_assert!(sent.insert(head, entry).is_none(), "head {head} reused");
                            cookies += 1;
                        }
                        Err(RingError::Empty) => prop_assert_eq!(total, 0),
                        Err(RingError::TooLong { .. }) => prop_assert!(total > size.into()),
                        Err(RingError::Full { .. }) => prop_assert!(needed > free),
                        Err(other) => prop_assert!(false, "{other:?}"),
                    }
                }
                Step::Publish => {
                    ring.publish(&mem).unwrap();
                }
                Step::Take => {
                    for chain in queue.iter(&mem).unwrap() {
                        let head = chain.head_index();
                        let seen: Seen = chain
                            .map(|desc| (desc.addr().0, desc.len(), desc.is_write_only()))
                            .collect();
                        let (_, expected, _) = &sent[&head];
                        prop_assert_eq!(&seen, expected);
                        let room = seen.iter().filter(|s| s.2).map(|s| s.1).sum();
                        held.push((head, room));
                    }
                }
                Step::Use { pick, len } => {
                    if !held.is_empty() {
                        let (head, room) = held.swap_remove(pick % held.len());
                        let len = len % (room + 1);
                        queue.add_used(&mem, head, len).unwrap();
                        used.push((head, len));
                    }
                }
                Step::Poll => {
                    let mut back = used.drain(..);
                    while let Some(got) = ring.poll_used(&mem).unwrap() {
                        let (head, len) = back.next().expect("used by the device");
                        let (cookie, ..) = sent.remove(&head).unwrap();
                        prop_assert_eq!((got.head, got.cookie, got.len), (head, cookie, len));
                    }
                    prop_assert!(back.next().is_none(), "a used chain was missed");
                }
            }
            let taken: u16 = sent.values().map(|entry| entry.2).sum();
            prop_assert_eq!(ring.free() + taken, size);
            prop_assert_eq!(usize::from(ring.in_flight()), sent.len());
        }
        ring.audit(&mem).unwrap();
    }

    /// Whatever a device writes into the used ring: no panic, no cookie that is not in flight, none
    /// twice, and once a violation shows it stays.
    #[test]
    fn nonsense_in_the_used_ring_is_harmless(
        writes in prop::collection::vec((0..160_u64, any::<u64>(), any::<bool>()), 1..60),
    ) {
        let size = 16;
        let (mem, mut space) = testmem::single(LEN).unwrap();
        let layout = space.layout(size).unwrap();
        let mut ring = SplitDriver::new(&mem, layout, RingConfig::default()).unwrap();
        let mut open = HashSet::new();
        for cookie in 0..8 {
            let chain = Chain {
                readable: &[Segment::new(GuestAddress(0x1000), 16)],
                writable: &[Segment::new(GuestAddress(0x2000), 1)],
                indirect: None,
            };
            ring.add(&mem, &chain, cookie).unwrap();
            open.insert(cookie);
        }
        ring.publish(&mem).unwrap();
        let mut broken = None;
        for (offset, value, small) in writes {
            let offset = offset % (SplitLayout::used_len(size) - 8);
            // Small numbers look like real entries.
            let value = if small { value & 0x0000_0001_0007_000f } else { value };
            let at = GuestAddress(layout.used().0 + offset);
            mem.write_at(at, &value.to_le_bytes()).unwrap();
            for _ in 0..20 {
                match ring.poll_used(&mem) {
                    Ok(None) => break,
                    Ok(Some(used)) => {
                        prop_assert!(broken.is_none());
                        prop_assert!(open.remove(&used.cookie), "cookie {} again", used.cookie);
                        prop_assert!(used.len <= 1);
                    }
                    Err(RingError::Violation(violation)) => {
                        prop_assert!(broken.is_none_or(|first| first == violation));
                        broken = Some(violation);
                    }
                    Err(other) => prop_assert!(false, "{other:?}"),
                }
            }
        }
        prop_assert!(usize::from(ring.in_flight()) == open.len());
    }

    /// Three areas anywhere: accepted exactly if aligned, inside the address space and apart.
    #[test]
    fn layouts_are_accepted_if_and_only_if_they_are_good(
        exponent in 0..17_u32,
        desc in prop_oneof![0..0x400_u64, any::<u64>(), (u64::MAX - 0x400)..=u64::MAX],
        avail in 0..0x400_u64,
        used in 0..0x400_u64,
        relative: bool,
        mask in prop_oneof![Just(u64::MAX), Just(!0xf)],
    ) {
        let size = (1_u32 << exponent).min(65_535) as u16;
        let base = if relative { desc & !0xf } else { 0 };
        let (avail, used) = (base.wrapping_add(avail & mask), base.wrapping_add(used & mask));
        let desc = desc & mask;
        let wide = |start: u64, len: u64| u128::from(start)..u128::from(start) + u128::from(len);
        let areas = [
            wide(desc, SplitLayout::desc_len(size)),
            wide(avail, SplitLayout::avail_len(size)),
            wide(used, SplitLayout::used_len(size)),
        ];
        let apart = |a: usize, b: usize| {
            areas[a].end <= areas[b].start || areas[b].end <= areas[a].start
        };
        let good = exponent <= 15
            && desc % 16 == 0
            && avail % 2 == 0
            && used % 4 == 0
            && areas.iter().all(|area| area.end < 1 << 64)
            && apart(0, 1)
            && apart(0, 2)
            && apart(1, 2);
        let at = GuestAddress;
        let result = SplitLayout::new(size, at(desc), at(avail), at(used));
        prop_assert_eq!(result.is_ok(), good, "{:?}", result);
    }
}

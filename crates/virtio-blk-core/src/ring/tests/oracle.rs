// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Our ring beside `virtio_queue::Queue`, on the same traffic in two memories: the same chains, the same
//! used ring byte by byte, the same notifications. Only well-formed chains: on others virtio-queue does
//! not do what we want.

use std::collections::VecDeque;

use proptest::prelude::*;
use virtio_blk_driver::Memory as _;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Pieces to read and to write, in a table or not.
    Add(Vec<u32>, Vec<u32>, bool),
    Publish,
    /// Take up to so many chains.
    Take(usize),
    /// Use the nth chain taken, with this length, not yet visible.
    Use(usize, u32),
    /// Make what was used visible.
    Tell,
    EnableKicks,
    DisableKicks,
    /// The driver wants to hear after so many more, or not at all.
    Interrupts(u16),
    NoInterrupts,
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    let pieces = || prop::collection::vec(1..4000u32, 0..4);
    prop_oneof![
        6 => (pieces(), pieces(), any::<bool>())
            .prop_filter("a chain has a descriptor", |(r, w, _)| !r.is_empty() || !w.is_empty())
            .prop_map(|(r, w, table)| Step::Add(r, w, table)),
        4 => Just(Step::Publish),
        4 => (1..6usize).prop_map(Step::Take),
        6 => (0..16usize, 0..4000u32).prop_map(|(n, len)| Step::Use(n, len)),
        4 => Just(Step::Tell),
        2 => Just(Step::EnableKicks),
        2 => Just(Step::DisableKicks),
        2 => (0..6u16).prop_map(Step::Interrupts),
        1 => Just(Step::NoInterrupts),
        3 => Just(Step::Poll),
    ]
}

/// A chain as found by either: head, then pieces to read and to write.
type Found = (u16, Vec<(u64, u32)>, Vec<(u64, u32)>);

struct Theirs {
    rig: Rig,
    queue: Queue,
    used: bool,
}

impl Theirs {
    fn new(rig: Rig) -> Self {
        let queue = Queue::try_from(rig.driver.state()).unwrap();
        Self {
            rig,
            queue,
            used: false,
        }
    }

    fn take(&mut self) -> Option<Found> {
        let chain = self.queue.iter(&*self.rig.mem).unwrap().next()?;
        let head = chain.head_index();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for desc in chain {
            let list = if desc.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            list.push((desc.addr().0, desc.len()));
        }
        Some((head, readable, writable))
    }
}

fn take(rig: &mut Rig) -> Option<Found> {
    match rig.pop().unwrap() {
        Popped::Empty => None,
        Popped::Malformed(error) => panic!("{error}"),
        Popped::Chain => {
            let pairs = |list: &[Segment]| list.iter().map(|s| (s.addr, s.len)).collect();
            let chain = &rig.chain;
            Some((
                chain.head(),
                pairs(chain.readable()),
                pairs(chain.writable()),
            ))
        }
    }
}

/// The used ring, with the field behind the entries.
fn used_ring(rig: &Rig) -> Vec<u8> {
    let mut bytes = vec![0; 6 + 8 * usize::from(SIZE)];
    rig.mem
        .read_at(rig.driver.layout().used(), &mut bytes)
        .unwrap();
    bytes
}

/// Does something with each of the two drivers.
fn both<T: PartialEq + std::fmt::Debug>(
    ours: &mut Rig,
    theirs: &mut Theirs,
    mut what: impl FnMut(&mut Rig) -> T,
) -> T {
    let (a, b) = (what(ours), what(&mut theirs.rig));
    assert_eq!(a, b, "the drivers differ");
    a
}

fn run(event_idx: bool, start: u16, steps: &[Step]) {
    let mut ours = rig(event_idx, start);
    let mut theirs = Theirs::new(rig(event_idx, start));
    // virtio-queue assumes kicks to be enabled at the start.
    assert_eq!(ours.ring.enable_kicks(&ours.map), Ok(false));
    let mut taken: VecDeque<(u16, u32)> = VecDeque::new();
    for step in steps {
        match step {
            Step::Add(readable, writable, indirect) => {
                both(&mut ours, &mut theirs, |rig| {
                    let mut at = 0x8000;
                    let mut piece = |&len: &u32| {
                        at += 0x1000;
                        Piece::new(GuestAddress(at), len)
                    };
                    let readable: Vec<_> = readable.iter().map(&mut piece).collect();
                    let writable: Vec<_> = writable.iter().map(&mut piece).collect();
                    let table = rig.space.take(16 * 8, 16).ok();
                    let offer = Offer {
                        readable: &readable,
                        writable: &writable,
                        indirect: table.filter(|_| *indirect),
                    };
                    rig.driver.add(&*rig.mem, &offer, 0).ok()
                });
            }
            Step::Publish => {
                both(&mut ours, &mut theirs, |rig| {
                    rig.driver.publish(&*rig.mem).unwrap();
                    rig.driver.needs_kick(&*rig.mem).unwrap()
                });
            }
            Step::Take(count) => {
                for _ in 0..*count {
                    let found = take(&mut ours);
                    assert_eq!(found, theirs.take());
                    let Some((head, _, writable)) = found else {
                        break;
                    };
                    let room = writable.iter().map(|piece| piece.1).sum();
                    taken.push_back((head, room));
                }
            }
            Step::Use(nth, len) => {
                if taken.is_empty() {
                    continue;
                }
                let nth = nth % taken.len();
                let (head, room) = taken.remove(nth).unwrap();
                let len = (*len).min(room);
                ours.ring.add_used(head, len);
                // virtio-queue publishes each one: ours must catch up to be compared.
                theirs.queue.add_used(&*theirs.rig.mem, head, len).unwrap();
                theirs.used = true;
            }
            Step::Tell => {
                let told = ours.ring.publish(&ours.map).unwrap();
                if std::mem::take(&mut theirs.used) {
                    let asked = theirs.queue.needs_notification(&*theirs.rig.mem).unwrap();
                    // Without EVENT_IDX it ignores the driver's flag and always says yes.
                    assert!(told == asked || !event_idx && !told);
                    assert_eq!(used_ring(&ours), used_ring(&theirs.rig));
                } else {
                    assert!(!told);
                }
            }
            Step::EnableKicks => {
                let more = ours.ring.enable_kicks(&ours.map).unwrap();
                let theirs_too = theirs.queue.enable_notification(&*theirs.rig.mem).unwrap();
                assert_eq!(more, theirs_too);
            }
            Step::DisableKicks => {
                ours.ring.disable_kicks(&ours.map);
                theirs.queue.disable_notification(&*theirs.rig.mem).unwrap();
            }
            Step::Interrupts(after) => {
                both(&mut ours, &mut theirs, |rig| {
                    rig.driver.disable_interrupts(&*rig.mem).unwrap();
                });
                // Not told about the unpublished: the two drivers may see different used indices.
                if !theirs.used {
                    both(&mut ours, &mut theirs, |rig| {
                        rig.driver.interrupt_after(&*rig.mem, *after).unwrap()
                    });
                }
            }
            Step::NoInterrupts => {
                both(&mut ours, &mut theirs, |rig| {
                    rig.driver.disable_interrupts(&*rig.mem).unwrap();
                });
            }
            Step::Poll => {
                if !theirs.used {
                    while both(&mut ours, &mut theirs, Rig::used).is_some() {}
                }
            }
        }
        let (a, b) = (ours.ring.state(), theirs.queue.state());
        assert_eq!((a.next_avail, a.next_used), (b.next_avail, b.next_used));
        assert_eq!(ours.ring.in_flight(), taken.len());
    }
    ours.audit();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn both_rings_do_the_same(
        event_idx: bool,
        start in prop_oneof![Just(0u16), 65_500..=65_535u16],
        steps in prop::collection::vec(step(), 1..200),
    ) {
        run(event_idx, start, &steps);
    }
}

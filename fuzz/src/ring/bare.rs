// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A ring without a device around it.

use virtio_blk_core::memory::GuestMap;
use virtio_blk_core::ring::{Chain, Popped, Ring, RingError, SplitRing};
use vm_memory::GuestMemory;

use super::{Field, Input, MAX_STEPS, Step};

/// The ring and what is known about it.
struct Bare<M: GuestMemory + Send + Sync + 'static> {
    map: GuestMap<std::sync::Arc<M>>,
    ring: SplitRing,
    chain: Chain,
    /// Heads the ring gave out.
    heads: Vec<u16>,
    returned: u16,
    latched: Option<RingError>,
}

pub fn run<M: GuestMemory + Send + Sync + 'static>(
    input: &Input,
    field: &Field<'_, M>,
    before: &[(u64, Vec<u8>)],
) {
    let map = GuestMap::new(field.image.mem.clone());
    let state = field.state;
    let ring = match SplitRing::new(&map, &state, field.features()) {
        Ok(ring) => ring,
        Err(_) => {
            assert!(
                field.image.snapshot() == before,
                "a refused ring was touched"
            );
            return;
        }
    };
    let mut bare = Bare {
        map,
        ring,
        chain: Chain::new(),
        heads: Vec::new(),
        returned: 0,
        latched: None,
    };
    let mut next = state.next_avail;
    field.race(input, || {
        for step in input.steps.iter().take(MAX_STEPS) {
            match step {
                Step::Work { what, argument } => bare.work(*what, *argument, state.size),
                Step::Offer { head } => {
                    field.image.store_u16(field.entry(next), (*head).into());
                    next = next.wrapping_add(1);
                    field.image.store_u16(field.avail(2), next);
                }
                Step::Write { what } => field.put(what),
                Step::Protect { how } => {
                    if field.protect(how) {
                        bare.remap();
                    }
                }
                Step::Remap => bare.remap(),
                Step::Intake { .. } | Step::Stop { .. } => {}
            }
            bare.check(state.next_used, state.size);
        }
    });
    if bare.latched.is_some() {
        let at_rest = field.image.snapshot();
        for what in 0..8 {
            bare.work(what, 0, state.size);
        }
        bare.check(state.next_used, state.size);
        assert!(
            field.image.snapshot() == at_rest,
            "a broken ring touched memory"
        );
    }
}

impl<M: GuestMemory + Send + Sync + 'static> Bare<M> {
    fn work(&mut self, what: u8, argument: u32, size: u16) {
        let pick = argument as usize % self.heads.len().max(1);
        match what % 8 {
            0 | 1 => {
                let popped = self.ring.pop(&self.map, &mut self.chain);
                self.popped(popped, size);
            }
            2 if !self.heads.is_empty() => {
                let head = self.heads.swap_remove(pick);
                self.ring.add_used(head, argument);
                self.returned += u16::from(self.latched.is_none());
            }
            2 => {
                // One that the device does not have: ignored.
                self.ring.add_used(argument as u16, argument);
            }
            3 => {
                let result = self.ring.publish(&self.map);
                self.result(result);
            }
            4 => {
                let result = self.ring.enable_kicks(&self.map);
                self.result(result);
            }
            5 => self.ring.disable_kicks(&self.map),
            6 => {
                let result = self
                    .ring
                    .resume(&self.map, argument as u16, &mut self.chain);
                self.popped(result, size);
            }
            _ => {
                let available = self.ring.has_available();
                assert!(!(available && self.latched.is_some()));
            }
        }
    }

    fn remap(&mut self) {
        self.map.renew();
        let result = self.ring.remap(&self.map);
        self.result(result);
    }

    fn popped(&mut self, popped: Result<Popped, RingError>, size: u16) {
        let before = self.heads.len();
        match self.result(popped) {
            None | Some(Popped::Empty) => return,
            Some(Popped::Chain) => {
                let chain = &self.chain;
                let sum = |list: &[virtio_blk_core::ring::Segment]| {
                    assert!(list.iter().all(|segment| segment.len != 0));
                    list.iter().map(|s| u64::from(s.len)).sum::<u64>()
                };
                let (readable, writable) = (sum(chain.readable()), sum(chain.writable()));
                assert_eq!(readable, u64::from(chain.readable_len()));
                assert_eq!(writable, u64::from(chain.writable_len()));
                assert!(readable + writable <= u32::MAX.into());
                let count = chain.readable().len() + chain.writable().len();
                assert!(count <= usize::from(super::MAX_SIZE));
            }
            Some(Popped::Malformed(_)) => {}
        }
        let head = self.chain.head();
        assert!(head < size, "head {head} of {size}");
        assert!(!self.heads.contains(&head), "head {head} came out twice");
        self.heads.push(head);
        assert_eq!(self.heads.len(), before + 1);
    }

    /// Notes an error, which must be the one that was noted before.
    fn result<T>(&mut self, result: Result<T, RingError>) -> Option<T> {
        match (result, self.latched) {
            (Ok(_), Some(error)) => panic!("the ring works again after: {error}"),
            (Ok(value), None) => Some(value),
            (Err(error), Some(first)) => {
                assert_eq!(error, first, "another error");
                None
            }
            (Err(error), None) => {
                self.latched = Some(error);
                None
            }
        }
    }

    fn check(&self, first_used: u16, size: u16) {
        assert_eq!(self.ring.latched(), self.latched);
        assert!(self.ring.in_flight() <= size.into());
        if self.latched.is_none() {
            assert_eq!(self.ring.in_flight(), self.heads.len());
            let used = self.ring.state().next_used;
            assert_eq!(used, first_used.wrapping_add(self.returned));
        }
    }
}

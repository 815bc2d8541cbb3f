// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings that are broken themselves: indices, entries, addresses.

use virtio_queue::QueueState;

use super::{Case, Expect};
use crate::{HostileError, HostileRing};
use virtio_blk_driver::wire::{AVAIL_F_NO_INTERRUPT, S_OK};

type Build = Result<(), HostileError>;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a head is the queue size",
        build: |ring| ring.offer_head(ring.size(), None, 0),
        expect: Expect::Latched,
    },
    Case {
        name: "a head is 65535",
        build: |ring| ring.offer_head(u16::MAX, None, 0),
        expect: Expect::Latched,
    },
    Case {
        name: "the available index is one more than the queue holds",
        build: |ring| jump(ring, ring.size() + 1),
        expect: Expect::Latched,
    },
    Case {
        name: "the available index is half way round",
        build: |ring| jump(ring, 0x8001),
        expect: Expect::Latched,
    },
    Case {
        name: "the available index goes back",
        build: |ring| jump(ring, u16::MAX),
        expect: Expect::Latched,
    },
    Case {
        name: "a head is made available again while in flight",
        build: twice,
        expect: Expect::Latched,
    },
    Case {
        name: "the ring is full",
        build: full,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "interrupts are asked for in odd ways",
        build: interrupts,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "the descriptor table is not mapped",
        build: |ring| told(ring, |state, far| state.desc_table = far),
        expect: Expect::Refused,
    },
    Case {
        name: "the available ring is not mapped",
        build: |ring| told(ring, |state, far| state.avail_ring = far),
        expect: Expect::Refused,
    },
    Case {
        name: "the used ring is not mapped",
        build: |ring| told(ring, |state, far| state.used_ring = far),
        expect: Expect::Refused,
    },
    Case {
        name: "the descriptor table reaches beyond the end of memory",
        build: |ring| off_edge(ring, |state, edge| state.desc_table = edge),
        expect: Expect::Refused,
    },
    Case {
        name: "the available ring reaches beyond the end of memory",
        build: |ring| off_edge(ring, |state, edge| state.avail_ring = edge),
        expect: Expect::Refused,
    },
    Case {
        name: "the used ring reaches beyond the end of memory",
        build: |ring| off_edge(ring, |state, edge| state.used_ring = edge),
        expect: Expect::Refused,
    },
    Case {
        name: "the descriptor table wraps around the address space",
        build: |ring| told(ring, |state, _| state.desc_table = u64::MAX - 15),
        expect: Expect::Refused,
    },
    Case {
        name: "the available ring wraps around the address space",
        build: |ring| told(ring, |state, _| state.avail_ring = u64::MAX - 3),
        expect: Expect::Refused,
    },
    Case {
        name: "the used ring wraps around the address space",
        build: |ring| told(ring, |state, _| state.used_ring = u64::MAX - 3),
        expect: Expect::Refused,
    },
    Case {
        name: "the descriptor table is not aligned",
        build: |ring| told(ring, |state, _| state.desc_table += 8),
        expect: Expect::Refused,
    },
    Case {
        name: "the available ring is not aligned",
        build: |ring| told(ring, |state, _| state.avail_ring += 1),
        expect: Expect::Refused,
    },
    Case {
        name: "the used ring is not aligned",
        build: |ring| told(ring, |state, _| state.used_ring += 2),
        expect: Expect::Refused,
    },
    Case {
        name: "the queue size is 0",
        build: |ring| told(ring, |state, _| state.size = 0),
        expect: Expect::Refused,
    },
    Case {
        name: "the queue size is not a power of two",
        build: |ring| told(ring, |state, _| state.size -= 1),
        expect: Expect::Refused,
    },
    Case {
        name: "the queue size is more than the device offers",
        build: |ring| told(ring, |state, _| state.size *= 2),
        expect: Expect::Refused,
    },
    Case {
        name: "the queue size is more than virtio knows",
        build: |ring| {
            told(ring, |state, _| {
                (state.max_size, state.size) = (u16::MAX, u16::MAX);
            })
        },
        expect: Expect::Refused,
    },
    Case {
        name: "the used ring lies on the available ring",
        build: |ring| overlap(ring, |state| state.used_ring = state.avail_ring & !3),
        expect: Expect::Survives,
    },
    Case {
        name: "the used ring lies on the descriptor table",
        build: |ring| overlap(ring, |state| state.used_ring = state.desc_table),
        expect: Expect::Survives,
    },
    Case {
        name: "the available ring lies on the descriptor table",
        build: |ring| overlap(ring, |state| state.avail_ring = state.desc_table),
        expect: Expect::Survives,
    },
    Case {
        name: "all three areas lie on each other",
        build: |ring| {
            overlap(ring, |state| {
                (state.avail_ring, state.used_ring) = (state.desc_table, state.desc_table);
            })
        },
        expect: Expect::Survives,
    },
];

/// Every entry names a good chain, and the available index is `distance` ahead.
fn jump(ring: &mut HostileRing<'_>, distance: u16) -> Build {
    let parts = ring.read_parts()?;
    ring.chain(0, &parts)?;
    for index in 0..ring.size() {
        ring.avail_entry(index, 0)?;
    }
    ring.avail_idx(ring.next().wrapping_add(distance))
}

fn twice(ring: &mut HostileRing<'_>) -> Build {
    let parts = ring.read_parts()?;
    ring.deferred = true;
    ring.offer_chain(&parts, Some(parts[2]), 513)?;
    ring.offer_head(0, Some(parts[2]), 513)
}

/// As many chains as the ring has entries: each an indirect table.
fn full(ring: &mut HostileRing<'_>) -> Build {
    for head in 0..ring.size() {
        let parts = ring.read_parts()?;
        let table = ring.table(&parts)?;
        ring.descriptor(head, table)?;
        ring.offer_head(head, Some(parts[2]), 513)?;
    }
    Ok(())
}

fn interrupts(ring: &mut HostileRing<'_>) -> Build {
    ring.avail_flags(AVAIL_F_NO_INTERRUPT | 0xfff0)?;
    ring.used_event(ring.next().wrapping_sub(7))?;
    let parts = ring.read_parts()?;
    ring.offer_chain(&parts, Some(parts[2]), 513)
}

/// The device is told something else than what is.
fn told(ring: &mut HostileRing<'_>, change: fn(&mut QueueState, u64)) -> Build {
    let far = ring.unmapped().0;
    change(&mut ring.state, far);
    Ok(())
}

fn off_edge(ring: &mut HostileRing<'_>, change: fn(&mut QueueState, u64)) -> Build {
    let near = ring.edge().0 - 16;
    change(&mut ring.state, near);
    Ok(())
}

/// A good request in a ring whose areas the device is told to be on each other.
fn overlap(ring: &mut HostileRing<'_>, change: fn(&mut QueueState)) -> Build {
    let parts = ring.read_parts()?;
    ring.offer_chain(&parts, Some(parts[2]), 513)?;
    change(&mut ring.state);
    Ok(())
}

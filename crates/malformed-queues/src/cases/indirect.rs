// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Indirect tables (virtio 1.4, 2.7.5.3).

use vm_memory::GuestAddress;

use super::{Case, Expect};
use crate::{HostileError, HostileRing};
use virtio_blk_driver::wire::{DESC_F_INDIRECT, DESC_F_WRITE, Descriptor, S_IOERR, S_OK};

type Build = Result<(), HostileError>;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "indirect is not negotiated",
        build: not_negotiated,
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table in an indirect table",
        build: nested,
        expect: Expect::Latched,
    },
    Case {
        name: "a chain continues behind its indirect table",
        build: with_next,
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table of 0 bytes",
        build: |ring| table_len(ring, |_| 0),
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table of less than one descriptor",
        build: |ring| table_len(ring, |_| 15),
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table that ends within a descriptor",
        build: |ring| table_len(ring, |len| len + 8),
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table of nearly 2^32 bytes",
        build: loop_in_huge,
        expect: Expect::Latched,
    },
    Case {
        name: "a loop in an indirect table",
        build: |ring| last_next(ring, 0),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "next leads out of an indirect table",
        build: |ring| last_next(ring, 3),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "next in an indirect table is 65535",
        build: |ring| last_next(ring, u16::MAX),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "an indirect chain is longer than the queue",
        build: |ring| long(ring, 0, ring.size() + 1, 513),
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "direct and indirect descriptors are more than the queue has",
        build: |ring| long(ring, 2, ring.size(), 513),
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "an indirect table is not mapped",
        build: |ring| table_at(ring, ring.unmapped()),
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table reaches beyond the end of memory",
        build: off_edge,
        expect: Expect::Latched,
    },
    Case {
        name: "an indirect table wraps around the address space",
        build: |ring| table_at(ring, GuestAddress(u64::MAX - 31)),
        expect: Expect::Latched,
    },
    Case {
        name: "readable follows writable in an indirect table",
        build: readable_last,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "an indirect chain adds up to more than 2^32 bytes",
        build: total,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "an indirect chain is as long as the queue",
        build: |ring| long(ring, 0, ring.size(), 513),
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "an indirect table behind a direct descriptor",
        build: |ring| long(ring, 1, 3, 513),
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "an indirect descriptor has the write flag",
        build: write_flag,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "an indirect table is not aligned",
        build: unaligned,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "an indirect table has unused descriptors behind the chain's end",
        build: unused_rest,
        expect: Expect::Status(S_OK),
    },
];

fn not_negotiated(ring: &mut HostileRing<'_>) -> Build {
    let parts = ring.read_parts()?;
    let table = ring.table(&parts)?;
    ring.indirect = false;
    ring.offer_chain(&[table], Some(parts[2]), 0)
}

fn nested(ring: &mut HostileRing<'_>) -> Build {
    let parts = ring.read_parts()?;
    let inner = ring.table(&parts)?;
    let outer = ring.table(&[inner])?;
    ring.offer_chain(&[outer], Some(parts[2]), 0)
}

fn with_next(ring: &mut HostileRing<'_>) -> Build {
    let parts = ring.read_parts()?;
    let table = ring.table(&parts)?;
    let more = ring.writable(512)?;
    ring.offer_chain(&[table, more], Some(parts[2]), 0)
}

fn table_len(ring: &mut HostileRing<'_>, change: fn(u32) -> u32) -> Build {
    let parts = ring.read_parts()?;
    let mut table = ring.table(&parts)?;
    table.len = change(table.len);
    ring.offer_chain(&[table], Some(parts[2]), 0)
}

fn loop_in_huge(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let mut table = ring.table(&[header, data, status.then(0)])?;
    table.len = 0xffff_fff0;
    ring.offer_chain(&[table], Some(status), 0)
}

fn last_next(ring: &mut HostileRing<'_>, next: u16) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let table = ring.table(&[header, data, status.then(next)])?;
    ring.offer_chain(&[table], Some(status), 0)
}

/// A read whose chain has `direct` descriptors in the ring and `indirect` ones in a table behind them.
fn long(ring: &mut HostileRing<'_>, direct: u16, indirect: u16, max_len: u32) -> Build {
    let [header, data, status] = ring.read_parts()?;
    // The header, then empty descriptors, then data and status.
    let filler = Descriptor::readable(header.addr, 0);
    let mut list = vec![filler; usize::from(direct + indirect)];
    let end = list.len();
    list[0] = header;
    list[end - 2] = data;
    list[end - 1] = status;
    let table = ring.table(&list[usize::from(direct)..])?;
    list.truncate(direct.into());
    list.push(table);
    ring.offer_chain(&list, Some(status), max_len)
}

fn table_at(ring: &mut HostileRing<'_>, addr: GuestAddress) -> Build {
    ring.offer_chain(&[Descriptor::indirect(addr, 48)], None, 0)
}

fn off_edge(ring: &mut HostileRing<'_>) -> Build {
    let [header, _, status] = ring.read_parts()?;
    // The first descriptor is there; it leads to the second, which is not.
    let addr = GuestAddress(ring.edge().0 - 16);
    ring.table_at(addr, &[header.then(1)])?;
    ring.offer_chain(&[Descriptor::indirect(addr, 48)], Some(status), 0)
}

fn readable_last(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let table = ring.table(&[data, status, header])?;
    ring.offer_chain(&[table], Some(status), 0)
}

fn total(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let half = Descriptor::writable(data.addr, 0x8000_0000);
    let table = ring.table(&[header, half, half, status])?;
    ring.offer_chain(&[table], Some(status), 0)
}

fn write_flag(ring: &mut HostileRing<'_>) -> Build {
    let parts = ring.read_parts()?;
    let table = ring.table(&parts)?.with_flags(DESC_F_WRITE);
    ring.offer_chain(&[table], Some(parts[2]), 513)
}

fn unaligned(ring: &mut HostileRing<'_>) -> Build {
    let parts = ring.read_parts()?;
    let room = ring.writable(64)?;
    let addr = GuestAddress(room.addr.0 + 1);
    ring.table_at(addr, &parts)?;
    ring.offer_chain(&[Descriptor::indirect(addr, 48)], Some(parts[2]), 513)
}

fn unused_rest(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let junk = Descriptor::readable(ring.unmapped(), u32::MAX).with_flags(DESC_F_INDIRECT);
    let table = ring.table(&[header, data, status, junk, junk])?;
    ring.table_at(table.addr, &[header, data, status])?;
    ring.offer_chain(&[table], Some(status), 513)
}

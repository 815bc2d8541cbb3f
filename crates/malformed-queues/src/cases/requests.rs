// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Well-formed chains that are bad requests, or good ones in odd pieces.

use vm_memory::GuestAddress;

use super::{Case, Expect};
use crate::{HostileError, HostileRing};
use virtio_blk_driver::wire::{Descriptor, S_IOERR, S_OK, S_UNSUPP, T_IN, T_OUT, header};

type Build = Result<(), HostileError>;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "no header",
        build: |ring| header_len(ring, 0),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "a header of 8 bytes",
        build: |ring| header_len(ring, 8),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "a header of 15 bytes",
        build: |ring| header_len(ring, 15),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "only a status byte",
        build: |ring| {
            let status = ring.writable(1)?;
            ring.offer_chain(&[status], Some(status), 1)
        },
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "the header is not mapped",
        build: |ring| header_at(ring, ring.unmapped()),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "the header wraps around the address space",
        build: |ring| header_at(ring, GuestAddress(u64::MAX - 7)),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "the second half of the header is not mapped",
        build: half_header,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data in is not mapped",
        build: |ring| data_in(ring, ring.unmapped(), 512),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data in wraps around the address space",
        build: |ring| data_in(ring, GuestAddress(u64::MAX - 0xfff), 0x2000),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data in is nearly 2^32 bytes, most of it not mapped",
        build: huge_data_in,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data in is mapped, then not",
        build: second_part_unmapped,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data in reaches beyond the end of memory",
        build: data_in_off_edge,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data out is not mapped",
        build: |ring| data_out(ring, ring.unmapped(), 512),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data out wraps around the address space",
        build: |ring| data_out(ring, GuestAddress(u64::MAX - 0xfff), 0x2000),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data out reaches beyond the end of memory",
        build: |ring| data_out(ring, GuestAddress(ring.edge().0 - 512), 1024),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "data in is not a multiple of 512 bytes",
        build: |ring| data_len(ring, 511),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "the sector is 2^64 - 1",
        build: |ring| read_at(ring, u64::MAX),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "the sector in bytes wraps to 0",
        build: |ring| read_at(ring, 1 << 55),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "the type is unknown",
        build: |ring| kind(ring, 0x7fff_0000),
        expect: Expect::Status(S_UNSUPP),
    },
    Case {
        name: "the type has the barrier bit",
        build: |ring| kind(ring, 0x8000_0000),
        expect: Expect::Status(S_UNSUPP),
    },
    Case {
        name: "a header in two pieces",
        build: |ring| split_header(ring, 8),
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "a header in 15 bytes and one",
        build: |ring| split_header(ring, 15),
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "header and data out in one buffer",
        build: header_with_data,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "data in and status in one buffer",
        build: data_with_status,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "data in at odd addresses in odd pieces",
        build: odd_pieces,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "a read of nothing",
        build: |ring| {
            let [header, _, status] = ring.read_parts()?;
            ring.offer_chain(&[header, status], Some(status), 1)
        },
        expect: Expect::Status(S_OK),
    },
];

fn header_len(ring: &mut HostileRing<'_>, len: u32) -> Build {
    let [mut header, data, status] = ring.read_parts()?;
    header.len = len;
    ring.offer_chain(&[header, data, status], Some(status), 513)
}

fn header_at(ring: &mut HostileRing<'_>, addr: GuestAddress) -> Build {
    let [_, data, status] = ring.read_parts()?;
    let header = Descriptor::readable(addr, 16);
    ring.offer_chain(&[header, data, status], Some(status), 513)
}

fn half_header(ring: &mut HostileRing<'_>) -> Build {
    let [mut header, data, status] = ring.read_parts()?;
    header.len = 8;
    let rest = Descriptor::readable(ring.unmapped(), 8);
    ring.offer_chain(&[header, rest, data, status], Some(status), 513)
}

/// The data can't be written, so nothing can be from the first writable byte on.
fn data_in(ring: &mut HostileRing<'_>, addr: GuestAddress, len: u32) -> Build {
    let [header, _, status] = ring.read_parts()?;
    let data = Descriptor::writable(addr, len);
    ring.offer_chain(&[header, data, status], Some(status), 0)
}

fn huge_data_in(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    // A multiple of 512, and less than 2^32 with header and status.
    let data = Descriptor::writable(data.addr, 0xffff_fe00);
    let mapped = ring.edge().0 - data.addr.0;
    ring.offer_chain(&[header, data, status], Some(status), mapped as u32)
}

fn second_part_unmapped(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let rest = Descriptor::writable(ring.unmapped(), 512);
    ring.offer_chain(&[header, data, rest, status], Some(status), 512)
}

fn data_in_off_edge(ring: &mut HostileRing<'_>) -> Build {
    let [header, _, status] = ring.read_parts()?;
    let data = Descriptor::writable(GuestAddress(ring.edge().0 - 512), 1024);
    ring.offer_chain(&[header, data, status], Some(status), 512)
}

fn data_out(ring: &mut HostileRing<'_>, addr: GuestAddress, len: u32) -> Build {
    let header = ring.readable(&header(T_OUT, 0, 0))?;
    let status = ring.writable(1)?;
    let data = Descriptor::readable(addr, len);
    ring.offer_chain(&[header, data, status], Some(status), 1)
}

fn data_len(ring: &mut HostileRing<'_>, len: u32) -> Build {
    let [header, mut data, status] = ring.read_parts()?;
    data.len = len;
    ring.offer_chain(&[header, data, status], Some(status), len + 1)
}

fn read_at(ring: &mut HostileRing<'_>, sector: u64) -> Build {
    let header = ring.readable(&header(T_IN, 0, sector))?;
    let [_, data, status] = ring.read_parts()?;
    ring.offer_chain(&[header, data, status], Some(status), 513)
}

fn kind(ring: &mut HostileRing<'_>, kind: u32) -> Build {
    let header = ring.readable(&header(kind, 0, 0))?;
    let [_, data, status] = ring.read_parts()?;
    ring.offer_chain(&[header, data, status], Some(status), 513)
}

fn split_header(ring: &mut HostileRing<'_>, at: usize) -> Build {
    let bytes = header(T_IN, 0, 0);
    let (first, second) = bytes.split_at(at);
    let (first, second) = (ring.readable(first)?, ring.readable(second)?);
    let [_, data, status] = ring.read_parts()?;
    ring.offer_chain(&[first, second, data, status], Some(status), 513)
}

fn header_with_data(ring: &mut HostileRing<'_>) -> Build {
    let mut bytes = header(T_OUT, 0, 7).to_vec();
    bytes.resize(16 + 512, 0x5a);
    let both = ring.readable(&bytes)?;
    let status = ring.writable(1)?;
    ring.offer_chain(&[both, status], Some(status), 1)
}

fn data_with_status(ring: &mut HostileRing<'_>) -> Build {
    let header = ring.read_header()?;
    let both = ring.writable(513)?;
    let status = Descriptor::writable(GuestAddress(both.addr.0 + 512), 1);
    ring.offer_chain(&[header, both], Some(status), 513)
}

fn odd_pieces(ring: &mut HostileRing<'_>) -> Build {
    let [header, _, status] = ring.read_parts()?;
    let area = ring.writable(2048)?;
    let piece = |offset, len| Descriptor::writable(GuestAddress(area.addr.0 + offset), len);
    let list = [
        header,
        piece(1, 1),
        piece(1001, 500),
        piece(7, 10),
        piece(33, 1),
        status,
    ];
    ring.offer_chain(&list, Some(status), 513)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains in the ring's own table whose structure is broken, or only looks so.

use vm_memory::GuestAddress;

use super::{Case, Expect};
use crate::{HostileError, HostileRing};
use virtio_blk_driver::wire::{Descriptor, S_IOERR, S_OK};

type Build = Result<(), HostileError>;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a descriptor is its own next",
        build: loop_of_one,
        expect: Expect::Latched,
    },
    Case {
        name: "the status leads back to the header",
        build: loop_back,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "next is the queue size",
        build: |ring| next(ring, ring.size()),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "next is 65535",
        build: |ring| next(ring, u16::MAX),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "a readable descriptor follows the writable ones",
        build: readable_last,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "an empty readable descriptor follows the writable ones",
        build: empty_readable_last,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "readable bytes add up to 2^32",
        build: |ring| readable_total(ring, 0x8000_0000 - 16 - 1),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "readable bytes add up to far more than 2^32",
        build: |ring| readable_total(ring, u32::MAX),
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "writable bytes add up to more than 2^32",
        build: writable_total,
        expect: Expect::Status(S_IOERR),
    },
    Case {
        name: "nothing is writable",
        build: nothing_writable,
        expect: Expect::LenZero,
    },
    Case {
        name: "the only writable descriptor is empty",
        build: empty_writable,
        expect: Expect::LenZero,
    },
    Case {
        name: "the chain is one empty descriptor",
        build: |ring| {
            let list = [Descriptor::readable(ring.unmapped(), 0)];
            ring.offer_chain(&list, None, 0)
        },
        expect: Expect::LenZero,
    },
    Case {
        name: "the status is not mapped",
        build: |ring| status_at(ring, ring.unmapped()),
        expect: Expect::Latched,
    },
    Case {
        name: "the status is the last byte of the address space",
        build: |ring| status_at(ring, GuestAddress(u64::MAX)),
        expect: Expect::Latched,
    },
    Case {
        name: "empty descriptors lie everywhere, at addresses that don't exist",
        build: empty_everywhere,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "next is set without its flag",
        build: stray_next,
        expect: Expect::Status(S_OK),
    },
    Case {
        name: "the chain goes backwards through the table",
        build: backwards,
        expect: Expect::Status(S_OK),
    },
];

fn loop_of_one(ring: &mut HostileRing<'_>) -> Build {
    let [header, ..] = ring.read_parts()?;
    ring.offer_chain(&[header.then(0)], None, 0)
}

fn loop_back(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    ring.offer_chain(&[header, data, status.then(0)], Some(status), 0)
}

fn next(ring: &mut HostileRing<'_>, next: u16) -> Build {
    let [header, data, status] = ring.read_parts()?;
    ring.offer_chain(&[header, data, status.then(next)], Some(status), 0)
}

fn readable_last(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let more = ring.readable(&[1; 512])?;
    ring.offer_chain(&[header, data, status, more], Some(status), 0)
}

fn empty_readable_last(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let empty = Descriptor::readable(header.addr, 0);
    ring.offer_chain(&[header, data, status, empty], Some(status), 0)
}

/// Two readable buffers of 2^31 and `second` bytes between header and status.
fn readable_total(ring: &mut HostileRing<'_>, second: u32) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let first = Descriptor::readable(data.addr, 0x8000_0000);
    let second = Descriptor::readable(data.addr, second);
    ring.offer_chain(&[header, first, second, status], Some(status), 1)
}

fn writable_total(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let half = Descriptor::writable(data.addr, 0x8000_0000);
    ring.offer_chain(&[header, half, half, half, status], Some(status), 0)
}

fn nothing_writable(ring: &mut HostileRing<'_>) -> Build {
    let header = ring.read_header()?;
    let data = ring.readable(&[1; 512])?;
    ring.offer_chain(&[header, data], None, 0)
}

fn empty_writable(ring: &mut HostileRing<'_>) -> Build {
    let [header, _, status] = ring.read_parts()?;
    let empty = Descriptor::writable(status.addr, 0);
    ring.offer_chain(&[header, empty], Some(status), 0)
}

fn status_at(ring: &mut HostileRing<'_>, addr: GuestAddress) -> Build {
    let [header, data, _] = ring.read_parts()?;
    ring.offer_chain(&[header, data, Descriptor::writable(addr, 1)], None, 0)
}

fn empty_everywhere(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    let far = GuestAddress(u64::MAX);
    let list = [
        Descriptor::readable(ring.unmapped(), 0),
        header,
        Descriptor::readable(far, 0),
        Descriptor::writable(far, 0),
        data,
        Descriptor::writable(GuestAddress(0), 0),
        status,
        Descriptor::writable(far, 0),
    ];
    ring.offer_chain(&list, Some(status), 513)
}

fn stray_next(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, mut status] = ring.read_parts()?;
    status.next = 0xbeef;
    ring.offer_chain(&[header, data, status], Some(status), 513)
}

fn backwards(ring: &mut HostileRing<'_>) -> Build {
    let [header, data, status] = ring.read_parts()?;
    ring.descriptor(5, header.then(3))?;
    ring.descriptor(3, data.then(0))?;
    ring.descriptor(0, status)?;
    ring.offer_head(5, Some(status), 513)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests, good and bad.
//!
//! Left out is what makes the kernel's device read or write outside its buffer: reads and writes that start behind the
//! end of the disk, and parts of sectors at its end. The `compat` profile refuses them.

use virtio_blk_driver::Segment;
use virtio_blk_driver::request::{Framing, In, Out, Request};
use virtio_blk_driver::wire::{self, Range};
use vm_memory::GuestAddress;

use crate::rig::Rig;

/// Memory for data, which no ring lies in.
const DATA: GuestAddress = GuestAddress(0x40_0000);
/// Sectors of the disk.
const CAPACITY: u64 = 0x4_0000;

fn range(sector: u64, num_sectors: u32, flags: u32) -> Range {
    Range {
        sector,
        num_sectors,
        flags,
    }
}

pub fn script(rig: &mut Rig) {
    rig.start(0);
    lengths(rig);
    limits(rig);
    types(rig);
    ids(rig);
    ranges(rig);
    framings(rig);
    broken(rig);
    unmapped(rig);
}

fn lengths(rig: &mut Rig) {
    let data: Vec<u8> = (0..8192u32).map(|at| (at * 31 / 8) as u8).collect();
    for len in [0, 1, 511, 512, 513, 700, 4096, 8192] {
        rig.ask(
            &format!("write of {len} bytes"),
            &Request::write(8, &data[..len]),
        );
        rig.ask("and what is there", &Request::read(8, 8192));
    }
    for len in [0, 1, 511, 512, 513, 1000, 4096, 8192] {
        rig.ask(&format!("read of {len} bytes"), &Request::read(9, len));
    }
}

fn limits(rig: &mut Rig) {
    rig.ask(
        "write of the last sector",
        &Request::write(CAPACITY - 1, &[7; 512]),
    );
    rig.ask("read of the last sector", &Request::read(CAPACITY - 1, 512));
    rig.ask("read across the end", &Request::read(CAPACITY - 1, 1024));
    rig.ask(
        "write across the end",
        &Request::write(CAPACITY - 1, &[1; 1024]),
    );
    rig.ask("read of nothing at the end", &Request::read(CAPACITY, 0));
    rig.ask(
        "write of nothing at the end",
        &Request::write(CAPACITY, &[]),
    );
    rig.ask("read at the end", &Request::read(CAPACITY, 512));
    rig.ask("write at the end", &Request::write(CAPACITY, &[1; 512]));
    // The same memory again and again: 131072 sectors, and one more.
    let mut segments = vec![Segment::new(DATA, 4 << 20); 16];
    for step in ["read of 64 MiB", "read of 64 MiB and a sector"] {
        rig.ask(
            step,
            &Request::read(0, 0).with_input(In::Segments(&segments)),
        );
        segments.push(Segment::new(DATA, 512));
    }
    segments.pop();
    rig.ask(
        "write of 64 MiB and a sector",
        &Request::write(0, &[]).with_out(Out::Segments(&segments)),
    );
}

fn types(rig: &mut Rig) {
    for kind in (0..16).chain([77, 0x8000_0000, u32::MAX]) {
        for sector in [0, 1] {
            rig.ask(
                &format!("type {kind:#x} at sector {sector}"),
                &Request::new(kind, sector),
            );
            let data = Request::new(kind, sector).with_input(In::Len(512));
            rig.ask(
                &format!("type {kind:#x} at sector {sector} with room"),
                &data,
            );
        }
    }
}

fn ids(rig: &mut Rig) {
    for room in [0, 1, 10, 19, 20, 21, 512] {
        let request = Request::get_id().with_input(In::Len(room));
        rig.submit(&request);
        rig.publish();
        rig.look(&format!("GET_ID with room for {room} bytes"));
    }
}

fn ranges(rig: &mut Rig) {
    rig.ask("data for ranges", &Request::write(0, &[3; 8192]));
    let cases: [(&str, &[Range]); 14] = [
        ("of 1 sector", &[range(1, 1, 0)]),
        ("with the unmap flag", &[range(3, 1, 1)]),
        ("with another flag", &[range(4, 1, 2)]),
        ("with all flags", &[range(4, 1, u32::MAX)]),
        ("of no sector", &[range(5, 0, 0)]),
        ("of no range", &[]),
        ("of 2 ranges", &[range(5, 1, 0), range(6, 1, 0)]),
        ("of the last sector", &[range(CAPACITY - 1, 1, 0)]),
        ("of nothing at the end", &[range(CAPACITY, 0, 0)]),
        ("at the end", &[range(CAPACITY, 1, 0)]),
        ("across the end", &[range(CAPACITY - 1, 2, 0)]),
        ("of too many sectors", &[range(0, u32::MAX, 0)]),
        ("of one more than all", &[range(0, CAPACITY as u32 + 1, 0)]),
        (
            "with a flag and across the end",
            &[range(CAPACITY - 1, 2, 2)],
        ),
    ];
    for (step, ranges) in cases {
        for (name, request) in [
            ("discard", Request::discard(ranges)),
            ("write zeroes", Request::write_zeroes(ranges)),
            ("secure erase", Request::secure_erase(ranges)),
        ] {
            rig.ask(&format!("{name} {step}"), &request);
            rig.ask("and what is there", &Request::read(0, 8192));
        }
    }
    for len in [15, 17] {
        rig.ask(
            &format!("write zeroes with {len} bytes"),
            &Request::new(wire::T_WRITE_ZEROES, 0).with_out(Out::InPlace(len)),
        );
    }
    rig.ask(
        "write zeroes of all",
        &Request::write_zeroes(&[range(0, CAPACITY as u32, 0)]),
    );
    rig.ask("and what is there", &Request::read(0, 8192));
}

fn framings(rig: &mut Rig) {
    let data: Vec<u8> = (0..4096u32).map(|at| (at * 7) as u8).collect();
    for (step, framing) in [
        ("in one buffer", Framing::Merged),
        (
            "in odd pieces",
            Framing::Cut {
                readable: &[3, 0, 13, 1, 511],
                writable: &[1, 0, 513, 7],
            },
        ),
        ("at random", Framing::Random { seed: 1, cuts: 9 }),
    ] {
        for indirect in [false, true] {
            let name = format!("{step}, indirect: {indirect}");
            let write = Request::write(64, &data).framed(framing).indirect(indirect);
            rig.ask(&format!("write {name}"), &write);
            let read = Request::read(64, 4096).framed(framing).indirect(indirect);
            rig.ask(&format!("read {name}"), &read);
        }
    }
}

fn broken(rig: &mut Rig) {
    let no_status = Request {
        status: false,
        ..Request::flush()
    };
    let no_status_but_room = Request {
        status: false,
        ..Request::read(0, 512)
    };
    let short_header = Request {
        header_len: 15,
        ..Request::flush()
    };
    let no_header = Request {
        header_len: 0,
        ..Request::flush()
    };
    rig.look("before what is broken");
    for (step, request) in [
        ("no status", no_status),
        ("no status but room", no_status_but_room),
        ("a short header", short_header),
        ("no header", no_header),
    ] {
        rig.submit(&request);
        rig.submit(&Request::flush());
        rig.publish();
        rig.look(&format!("{step}, and a request behind it"));
        rig.device.kick_vq(0);
        rig.look("and a kick");
    }
}

fn unmapped(rig: &mut Rig) {
    let good = Segment::new(DATA, 512);
    let bad = Segment::new(GuestAddress(1 << 41), 512);
    for (step, list) in [
        ("not mapped", [bad, good]),
        ("mapped and then not", [good, bad]),
    ] {
        rig.submit(&Request::read(0, 0).with_input(In::Segments(&list)));
        rig.publish();
        rig.look(&format!("data in that is {step}"));
        rig.submit(&Request::write(0, &[]).with_out(Out::Segments(&list)));
        rig.publish();
        rig.look(&format!("data out that is {step}"));
    }
    rig.ask("what was written of it", &Request::read(0, 4096));
}

/// Data where the device may only read or only write.
pub fn permissions(rig: &mut Rig) {
    for (step, addr) in [("to be read", 0x40_0000), ("to be written", 0x60_0000)] {
        let data = [Segment::new(GuestAddress(addr), 512)];
        rig.submit(&Request::read(0, 0).with_input(In::Segments(&data)));
        rig.publish();
        rig.look(&format!("data in where memory is only {step}"));
        rig.submit(&Request::write(0, &[]).with_out(Out::Segments(&data)));
        rig.publish();
        rig.look(&format!("data out where memory is only {step}"));
    }
}

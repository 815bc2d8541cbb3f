// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seeds for the ring.

use super::*;

const NEXT: u8 = 1;
const WRITE: u8 = 2;
const INDIRECT: u8 = 4;

fn desc(addr: Addr, len: Len, flags: u8) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next: Next::Following,
    }
}

fn put(table: u8, index: u8, desc: Desc) -> Put {
    Put::Descriptor { table, index, desc }
}

/// A request of three descriptors from `index` on: header, a sector, status.
fn request(table: u8, index: u8, kind: u8, sector: u16) -> Vec<Put> {
    // What is written must differ from what is there when it is read back.
    let data = if kind == 0 {
        Addr::Data { index: 4 * index }
    } else {
        Addr::Header { index }
    };
    // In a page of its own, so that data in a sealed page still leaves a place for the status.
    let status = Addr::Data { index: 160 + index };
    let data_flags = if kind == 0 { WRITE } else { 0 };
    vec![
        Put::Header {
            index,
            kind,
            sector,
        },
        put(
            table,
            index,
            desc(Addr::Header { index }, Len::Sixteens { count: 1 }, NEXT),
        ),
        put(table, index + 1, desc(data, Len::Sector, NEXT | data_flags)),
        put(
            table,
            index + 2,
            desc(status, Len::Bytes { count: 1 }, WRITE),
        ),
    ]
}

fn pointer(index: u8, table: u8, count: u8) -> Put {
    let addr = Addr::Table { table };
    put(0, index, desc(addr, Len::Sixteens { count }, INDIRECT))
}

const fn offer(head: u8) -> Step {
    Step::Offer { head }
}

const fn work(what: u8, argument: u32) -> Step {
    Step::Work { what, argument }
}

fn input(memory: Kind, device: Device, content: Vec<Put>, steps: Vec<Step>) -> Input {
    Input {
        memory,
        queue: Queue {
            size: Size::Power { exponent: 4 },
            desc: Place::Home,
            avail: Place::Home,
            used: Place::Home,
            next_avail: 0,
            taken: 0,
            replay: Vec::new(),
            flags: 3,
        },
        protect: Vec::new(),
        content,
        race: Vec::new(),
        device,
        steps,
    }
}

fn traffic() -> Vec<Put> {
    let mut content = request(0, 0, 1, 3);
    content.extend(request(0, 3, 0, 3));
    content.extend(request(1, 6, 4, 0));
    content.push(pointer(9, 0, 16));
    content
}

/// The seeds, by name.
pub(crate) fn all() -> Vec<(&'static str, Input)> {
    let steps = || {
        vec![
            offer(0),
            offer(3),
            work(8, 0),
            offer(9),
            offer(0),
            work(8, 0),
        ]
    };
    let mut raced = input(Kind::Single, Device::Inline, traffic(), steps());
    raced.race = request(0, 0, 0, 7);
    raced.race.push(pointer(3, 0, 3));
    raced.race.push(Put::Entry { slot: 1, head: 9 });
    let mut raced_behind = raced.clone();
    raced_behind.memory = Kind::Fragmented { seed: 1 };
    raced_behind.device = Device::Deferred { seed: 1 };
    let mut behind = input(Kind::Naive, Device::Inline, traffic(), steps());
    behind.protect.push(Protect { page: 5, access: 1 });
    let mut odd_ring = input(Kind::Naive, Device::Ring, traffic(), steps());
    odd_ring.queue.avail = Place::Top { back: 3 };
    let mut replay = input(
        Kind::Gapped,
        Device::Deferred { seed: 2 },
        traffic(),
        steps(),
    );
    replay.queue.next_avail = 2;
    replay.queue.taken = 2;
    replay.queue.replay = vec![3, 0];
    replay.steps.push(Step::Stop { hand_over: 1 });
    let mut unmapped = input(
        Kind::Fragmented { seed: 3 },
        Device::Deferred { seed: 3 },
        traffic(),
        steps(),
    );
    unmapped.steps.insert(
        3,
        Step::Protect {
            how: Protect { page: 2, access: 1 },
        },
    );
    let mut looped = traffic();
    looped.push(put(
        0,
        2,
        Desc {
            next: Next::To { index: 1 },
            ..desc(
                Addr::Data { index: 1 },
                Len::Raw { len: 0xffff_0000 },
                NEXT | WRITE,
            )
        },
    ));
    let ring_steps = vec![
        offer(0),
        offer(9),
        work(0, 0),
        work(0, 0),
        work(2, 1),
        work(3, 0),
        work(4, 0),
        work(5, 0),
        work(2, 513),
        work(3, 0),
        work(6, 5),
        Step::Remap,
        offer(5),
        work(0, 0),
        work(0, 0),
    ];
    vec![
        (
            "traffic",
            input(Kind::Gapped, Device::Inline, traffic(), steps()),
        ),
        (
            "deferred",
            input(
                Kind::Single,
                Device::Deferred { seed: 1 },
                traffic(),
                steps(),
            ),
        ),
        ("behind-iommu", behind),
        ("raced", raced),
        ("raced-behind-iommu", raced_behind),
        ("replay", replay),
        ("unmapped-ring", unmapped),
        (
            "looped",
            input(Kind::Single, Device::Inline, looped.clone(), steps()),
        ),
        (
            "bare",
            input(Kind::Gapped, Device::Ring, traffic(), ring_steps.clone()),
        ),
        (
            "bare-looped",
            input(
                Kind::Fragmented { seed: 9 },
                Device::Ring,
                looped,
                ring_steps,
            ),
        ),
        ("odd-ring", odd_ring),
    ]
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seeds for the device.

use super::*;

fn request(kind: Kind, sector: u8) -> Request {
    Request {
        kind,
        ..Request::read(sector, 0)
    }
    .sized(Len::Usual)
}

impl Request {
    fn sized(self, len: Len) -> Self {
        Self { len, ..self }
    }
}

fn erase(kind: Kind, ranges: &[(u8, u8)]) -> Request {
    let range = |&(sector, count): &(u8, u8)| Range {
        sector: Sector::Low { sector },
        count: Count::Few { count },
        flags: 0,
    };
    Request {
        ranges: ranges.iter().map(range).collect(),
        indirect: true,
        ..request(kind, 0)
    }
}

const fn submit(queue: u8, request: Request) -> Step {
    Step::Submit { queue, request }
}

fn cycle(queue: u8) -> Vec<Step> {
    vec![
        Step::Publish { queue },
        Step::Service { queue, budget: 3 },
        Step::Poll { queue },
    ]
}

fn setup() -> Setup {
    Setup {
        sectors: 64,
        block: 0,
        queues: 1,
        exponent: 3,
        start: 65_530,
        flags: 0,
        masked: 0,
        declined: 0,
        faults: Faults {
            none: true,
            seed: 0,
            delay: 0,
            reorder: false,
            full: 0,
            rules: Vec::new(),
            break_after: 0,
        },
    }
}

/// Every type of request, cut in every way.
fn every_request() -> Vec<Step> {
    let framings = [
        Framing::Separate,
        Framing::Merged,
        Framing::Random { seed: 3, cuts: 4 },
        Framing::Cut {
            readable: vec![7, 9, 0, 500],
            writable: vec![1, 511],
        },
    ];
    let mut steps = Vec::new();
    for (index, framing) in (0..).zip(framings) {
        let requests = [
            request(Kind::Out, index).sized(Len::Sectors { count: 4 }),
            request(Kind::Flush, 0),
            request(Kind::GetId, 0),
            request(Kind::GetLifetime, 0),
            erase(Kind::WriteZeroes, &[(index, 1), (index + 2, 1)]),
            erase(Kind::Discard, &[(index + 3, 4)]),
            erase(Kind::SecureErase, &[(20, 3)]),
            request(Kind::Raw { kind: 77 }, 0),
            request(Kind::In, index).sized(Len::Sectors { count: 8 }),
        ];
        for request in requests {
            let queue = index;
            steps.push(submit(
                queue,
                Request {
                    framing: framing.clone(),
                    ..request
                },
            ));
            steps.extend(cycle(queue));
        }
    }
    steps
}

/// Requests that overlap, some of them still under way when other things happen.
fn overlapping(event: Step) -> Vec<Step> {
    let write = |queue, sector| {
        submit(
            queue,
            request(Kind::Out, sector).sized(Len::Sectors { count: 3 }),
        )
    };
    let read = |queue, sector| {
        submit(
            queue,
            request(Kind::In, sector).sized(Len::Sectors { count: 8 }),
        )
    };
    let mut steps = vec![
        write(0, 3),
        write(1, 5),
        read(0, 0),
        submit(1, erase(Kind::WriteZeroes, &[(4, 2), (6, 1)])),
        Step::Publish { queue: 0 },
        Step::Publish { queue: 1 },
        Step::Interrupts { queue: 0, after: 2 },
        Step::Service {
            queue: 0,
            budget: 1,
        },
        Step::Service {
            queue: 1,
            budget: 9,
        },
        event,
        write(1, 4),
        Step::Publish { queue: 1 },
        Step::Service {
            queue: 0,
            budget: 9,
        },
        Step::Poll { queue: 0 },
        Step::Interrupts { queue: 1, after: 0 },
        Step::Settle,
        Step::ReadConfig {
            offset: 3,
            width: 40,
        },
        read(1, 2),
    ];
    steps.extend(cycle(1));
    steps
}

/// The seeds, by name.
pub(crate) fn all() -> Vec<(&'static str, Input)> {
    let slow = |seed| Faults {
        none: false,
        seed,
        delay: 3,
        reorder: true,
        full: 100,
        ..setup().faults
    };
    let failing = Faults {
        rules: vec![
            Fault {
                unsupported: false,
                kind: 1,
                rate: 80,
                after_effect: true,
            },
            Fault {
                unsupported: true,
                kind: 9,
                rate: 30,
                after_effect: false,
            },
        ],
        ..slow(4)
    };
    let breaking = Faults {
        break_after: 3,
        ..slow(5)
    };
    let input = |memory, faults, steps| Input {
        memory,
        setup: Setup { faults, ..setup() },
        steps,
    };
    let none = || setup().faults;
    let single = || Memory::Single;
    let mut large_blocks = input(single(), slow(6), every_request());
    (large_blocks.setup.block, large_blocks.setup.flags) = (3, 8);
    let mut read_only = input(single(), none(), every_request());
    read_only.setup.flags = 1;
    let mut through = input(single(), none(), overlapping(Step::CacheMode { mode: 0 }));
    through.setup.flags = 16;
    let event = |event| overlapping(event);
    let hand_over = true;
    let changes = vec![Change::Field {
        queue: 0,
        field: 3,
        value: 2,
    }];
    let renegotiated = Step::Negotiate {
        declined: 1 << 29 | 1 << 9 | 1 << 11,
        extra: 0,
        hand_over,
    };
    let moved = |changes| Step::Move { hand_over, changes };
    vec![
        (
            "every-request",
            input(Memory::Gapped, none(), every_request()),
        ),
        ("large-blocks", large_blocks),
        ("read-only", read_only),
        ("write-through", through),
        ("failing", input(single(), failing, every_request())),
        (
            "breaking",
            input(single(), breaking, event(Step::Arm { on: true })),
        ),
        (
            "resized",
            input(single(), slow(7), event(Step::Resize { sectors: 4 })),
        ),
        (
            "restarted",
            input(
                single(),
                slow(8),
                event(Step::Restart {
                    queue: 0,
                    hand_over,
                }),
            ),
        ),
        (
            "negotiated",
            input(Memory::Naive, slow(9), event(renegotiated)),
        ),
        ("moved", input(single(), slow(10), event(moved(Vec::new())))),
        (
            "moved-changed",
            input(single(), slow(11), event(moved(changes))),
        ),
        (
            "remapped",
            input(
                Memory::Fragmented { seed: 5 },
                slow(12),
                event(Step::Remap { queue: 1 }),
            ),
        ),
    ]
}

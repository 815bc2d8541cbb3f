// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that behave, and devices that do not.

use super::{Input, Place, Shape, Step};

const SHAPE: Shape = Shape {
    // RO, and what the specification has not given away.
    without: !0b0111_0111_1001_0110_0110_0110 & 0x00ff_ffff | 1 << 5,
    no_event_idx: false,
    no_indirect: false,
    blocks: 2048,
    size_max: 0x8000,
    seg_max: 8,
    ring: 3,
    field: 0,
    value: 0,
    failing: 0,
};

const fn serve(count: u8) -> Step {
    Step::Serve { count, status: 0 }
}

fn with(device: Shape, steps: Vec<Step>) -> Input {
    Input {
        device,
        polls: false,
        steps,
    }
}

fn input(steps: Vec<Step>) -> Input {
    with(SHAPE, steps)
}

const fn write(at: u16, len: u8, place: Place) -> Step {
    Step::Write {
        at,
        len,
        fua: true,
        place,
    }
}

const fn read(at: u16, len: u8, place: Place) -> Step {
    Step::Read { at, len, place }
}

/// Writes, and reads what was written.
fn traffic(place: &Place) -> Vec<Step> {
    vec![
        Step::Know { pages: 64 },
        write(8, 20, place.clone()),
        Step::Start,
        serve(1),
        Step::Reap,
        serve(4),
        Step::Reap,
        read(8, 20, place.clone()),
        read(0, 4, Place::Elsewhere),
        Step::Flush,
        Step::Lifetime,
        Step::Start,
        serve(9),
        Step::Reap,
    ]
}

/// The seeds, by name.
pub fn all() -> Vec<(&'static str, Input)> {
    let pieces = Place::Pieces { cut: 700 };
    let then = |steps: Vec<Step>| {
        let begin = vec![
            write(0, 8, Place::Elsewhere),
            read(64, 8, Place::Elsewhere),
            Step::Start,
        ];
        input([begin, steps, vec![Step::Reap]].concat())
    };
    let erase = |kind| Step::Erase {
        kind,
        at: 16,
        len: 200,
    };
    let small = Shape {
        no_indirect: true,
        no_event_idx: true,
        ring: 0,
        seg_max: 126,
        size_max: 512,
        ..SHAPE
    };
    // Two segments of it hold no block.
    let smaller = Shape {
        size_max: 255,
        ..small.clone()
    };
    vec![
        ("copied", input(traffic(&Place::Elsewhere))),
        ("known", input(traffic(&Place::Known { offset: 3 }))),
        ("pieces", input(traffic(&pieces))),
        (
            "polled",
            Input {
                polls: true,
                ..input(traffic(&pieces))
            },
        ),
        ("small-ring", with(small, traffic(&pieces))),
        ("small-segments", with(smaller, traffic(&pieces))),
        (
            "erasures",
            input(vec![
                erase(0),
                erase(1),
                erase(2),
                Step::Start,
                serve(9),
                Step::Reap,
                Step::Cancel { token: 3 },
            ]),
        ),
        (
            "errors",
            then(vec![Step::Serve {
                count: 2,
                status: 1,
            }]),
        ),
        ("unknown-head", then(vec![Step::Used { head: 77, len: 1 }])),
        (
            "used-twice",
            then(vec![serve(1), Step::Used { head: 0, len: 1 }]),
        ),
        ("jump", then(vec![Step::Jump { by: 100 }])),
        (
            "scribble",
            then(vec![Step::Scribble {
                at: 3,
                value: u64::MAX,
            }]),
        ),
        (
            "needs-reset",
            then(vec![Step::Status { byte: 0x4f }, Step::Refresh]),
        ),
        (
            "resized",
            then(vec![
                Step::Config { at: 0, value: 64 },
                Step::Interrupt,
                Step::Refresh,
                serve(2),
            ]),
        ),
        (
            "odd-block",
            with(
                Shape {
                    field: 5,
                    value: 4096,
                    ..SHAPE
                },
                vec![
                    read(8, 8, Place::Elsewhere),
                    Step::Start,
                    serve(1),
                    Step::Reap,
                    Step::Reopen,
                ],
            ),
        ),
        (
            "failing",
            with(
                Shape {
                    failing: 20,
                    ..SHAPE
                },
                vec![Step::Fail { after: 0 }, Step::Refresh],
            ),
        ),
    ]
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers that behave, and others.

use super::{Damage, Input, Step};

/// A driver that starts its queues.
fn started(start: u16) -> Vec<Step> {
    vec![
        Step::Negotiate { but: u8::MAX },
        Step::Queue { index: 0, start },
        Step::Queue { index: 1, start },
        Step::DriverOk,
    ]
}

fn input(steps: Vec<Step>) -> Input {
    Input {
        newest: true,
        holds: false,
        steps: [
            started(0xfffe),
            traffic(),
            steps,
            traffic(),
            vec![Step::Poll],
        ]
        .concat(),
    }
}

const fn request(index: u8, kind: u8, sector: u8) -> Step {
    Step::Request {
        index,
        kind,
        sector,
    }
}

fn traffic() -> Vec<Step> {
    vec![
        request(0, 1, 3),
        request(1, 1, 4),
        Step::Poll,
        request(0, 0, 3),
        request(1, 4, 0),
        request(1, 8, 0),
        request(0, 0, 200),
    ]
}

fn restart(killed: bool, damage: Vec<Damage>) -> Step {
    Step::Restart { killed, damage }
}

/// The seeds, by name.
pub fn all() -> Vec<(&'static str, Input)> {
    let told = |parts| Step::Regions { parts, told: true };
    let ready = |ready| Step::Ready { index: 1, ready };
    let damaged = |at, with| input(vec![restart(true, vec![Damage { at, with }])]);
    vec![
        ("traffic", input(vec![])),
        (
            "old-kernel",
            Input {
                newest: false,
                ..input(vec![
                    Step::GetState { index: 0 },
                    Step::GetState { index: 1 },
                ])
            },
        ),
        (
            "held",
            Input {
                holds: true,
                ..input(vec![Step::Release { count: 3 }, restart(true, vec![])])
            },
        ),
        ("reset", input(started(7))),
        (
            "suspend",
            input(vec![
                Step::Suspend,
                restart(true, vec![]),
                Step::GetState { index: 0 },
            ]),
        ),
        ("killed", input(vec![restart(true, vec![])])),
        ("stopped", input(vec![restart(false, vec![])])),
        (
            "remapped",
            input(vec![told(0xff), told(3), told(0), told(0xff)]),
        ),
        (
            "disabled",
            input(vec![ready(false), Step::Kick { index: 1 }, ready(true)]),
        ),
        (
            "messages",
            input(vec![
                Step::Unknown { kind: 6 },
                Step::Group { group: 1, asid: 0 },
                Step::Group { group: 0, asid: 0 },
                Step::GetState { index: 3 },
                Step::Ready {
                    index: 3,
                    ready: true,
                },
            ]),
        ),
        ("damaged-magic", damaged(0, 1)),
        ("damaged-place", damaged(4098, 3)),
        ("damaged-length", damaged(u16::MAX, 1)),
        (
            "wild",
            input(vec![Step::Wild {
                first: u8::MAX,
                pages: 1,
                domain: false,
            }]),
        ),
        (
            "bounce",
            input(vec![Step::Wild {
                first: 0,
                pages: 8,
                domain: true,
            }]),
        ),
        (
            "odd-queue",
            Input {
                steps: vec![
                    Step::Negotiate { but: u8::MAX },
                    Step::AnyQueue {
                        index: 0,
                        exponent: 4,
                        pages: 0x00ff_2221,
                        offset: 2,
                        ready: true,
                    },
                    Step::DriverOk,
                    Step::Kick { index: 0 },
                ],
                ..input(vec![])
            },
        ),
        (
            "poked",
            input(vec![
                Step::Poke {
                    at: 40,
                    value: u64::MAX,
                },
                Step::Kick { index: 0 },
            ]),
        ),
        (
            "shrunk",
            input(vec![Step::Shrink { pages: 4 }, Step::Kick { index: 0 }]),
        ),
        (
            "failing",
            input(vec![
                Step::Fail { after: 2, how: 0 },
                Step::Status { byte: 0 },
                Step::Rebind,
                Step::Resize { sectors: 20 },
            ]),
        ),
    ]
}

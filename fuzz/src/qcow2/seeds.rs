// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images and requests to start from.

use super::{Input, Patch, Step, Value};

const L2: u16 = 4 * 64;

fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    for sector in [0, 9, 100, 505] {
        steps.extend([
            Step::Write {
                sector,
                sectors: 11,
                value: sector as u8 | 1,
                fua: sector == 9,
            },
            Step::Read {
                sector,
                sectors: 20,
            },
        ]);
    }
    steps.extend([
        Step::Flush,
        Step::Discard {
            sector: 8,
            sectors: 15,
        },
        Step::Zeroes {
            sector: 100,
            sectors: 63,
            unmap: true,
        },
        Step::Write {
            sector: 104,
            sectors: 3,
            value: 7,
            fua: false,
        },
        Step::Reopen,
        Step::Read {
            sector: 0,
            sectors: 63,
        },
    ]);
    steps
}

fn damaged(place: u16, value: Value) -> Input {
    Input {
        small: true,
        used: true,
        patches: vec![Patch { place, value }],
        steps: steps(),
    }
}

/// All seeds.
pub fn all() -> Vec<(&'static str, Input)> {
    let sound = |small, used| Input {
        small,
        used,
        patches: Vec::new(),
        steps: steps(),
    };
    vec![
        ("sound", sound(false, false)),
        ("sound-small", sound(true, false)),
        ("used", sound(false, true)),
        ("data-is-header", damaged(L2, Value::Cluster { number: 0 })),
        ("data-is-l2", damaged(L2, Value::Cluster { number: 4 })),
        ("data-is-new", damaged(L2, Value::Cluster { number: 9 })),
        (
            "compressed",
            damaged(
                L2,
                Value::Compressed {
                    number: 5,
                    sectors: 3,
                },
            ),
        ),
        ("counts-lost", damaged(2 * 64, Value::Any { value: 0 })),
        ("l2-is-l1", damaged(3 * 64, Value::Cluster { number: 3 })),
        ("no-copied-flag", damaged(L2, Value::Bare { number: 5 })),
        ("size", damaged(3, Value::Any { value: 1 << 60 })),
    ]
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images and what is done with them, to start from.

use super::{Input, Made, Patch, Step, Value};

/// Where a new image of clusters of 512 bytes has its parts, in numbers of eight bytes: a cluster each.
const COUNTS: u16 = 2 * 64;
const L1: u16 = 3 * 64;

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
        Step::Map {
            sector: 3,
            most: 40,
        },
        Step::Write {
            sector: 104,
            sectors: 3,
            value: 7,
            fua: false,
        },
        Step::Grow { sectors: 1100 },
        Step::Write {
            sector: 1500,
            sectors: 3,
            value: 9,
            fua: true,
        },
        Step::Check { repair: 0 },
        Step::Reopen,
        Step::Read {
            sector: 0,
            sectors: 63,
        },
        Step::Check { repair: 2 },
    ]);
    steps
}

const SMALL: Made = Made {
    cluster: 0,
    extended: false,
    refcounts: 4,
    preallocated: false,
    used: true,
    bitmap: false,
};

fn damaged(place: u16, value: Value) -> Input {
    Input {
        made: SMALL,
        patches: vec![Patch { place, value }],
        steps: steps(),
    }
}

/// Where the first L2 table of a used image begins, and the number of the cluster of data that comes first.
fn used() -> (u16, u8) {
    let made = Input {
        made: SMALL,
        patches: Vec::new(),
        steps: Vec::new(),
    };
    let bytes = super::Host::new(&made).content();
    let place = |at: u64| {
        let at = at as usize;
        let bytes = bytes[at..at + 8].try_into().expect("eight");
        u64::from_be_bytes(bytes) & 0xff_ffff_ffff_fe00
    };
    let table = place(u64::from(L1) * 8);
    ((table / 8) as u16, (place(table) / 512) as u8)
}

/// A bitmap of which the first bits are said to be there.
fn bitmap_is(value: Value) -> Input {
    let made = Made {
        bitmap: true,
        ..SMALL
    };
    let image = Input {
        made: made.clone(),
        patches: Vec::new(),
        steps: Vec::new(),
    };
    // Its table is the last cluster.
    let bytes = super::Host::new(&image).content();
    let place = (bytes.len() / 8 - 64) as u16;
    Input {
        made,
        patches: vec![Patch { place, value }],
        steps: steps(),
    }
}

/// All seeds.
pub fn all() -> Vec<(&'static str, Input)> {
    let sound = |made: Made| Input {
        made,
        patches: Vec::new(),
        steps: steps(),
    };
    let (l2, data) = used();
    let table = (l2 / 64) as u8;
    let compressed = |number, sectors| Value::Compressed { number, sectors };
    vec![
        (
            "sound",
            sound(Made {
                cluster: 1,
                used: false,
                ..SMALL
            }),
        ),
        (
            "sound-small",
            sound(Made {
                used: false,
                refcounts: 0,
                ..SMALL
            }),
        ),
        (
            "subclusters",
            sound(Made {
                cluster: 2,
                extended: true,
                refcounts: 6,
                ..SMALL
            }),
        ),
        (
            "preallocated",
            sound(Made {
                cluster: 3,
                preallocated: true,
                ..SMALL
            }),
        ),
        ("used", sound(SMALL)),
        (
            "bitmap",
            sound(Made {
                cluster: 1,
                bitmap: true,
                ..SMALL
            }),
        ),
        (
            "bitmap-small",
            sound(Made {
                bitmap: true,
                ..SMALL
            }),
        ),
        ("bitmap-is-l1", bitmap_is(Value::Bare { number: 3 })),
        ("bitmap-is-ones", bitmap_is(Value::Any { value: 1 })),
        (
            "bitmap-is-nowhere",
            bitmap_is(Value::Any { value: 1 << 40 }),
        ),
        ("data-is-header", damaged(l2, Value::Cluster { number: 0 })),
        ("data-is-l2", damaged(l2, Value::Cluster { number: table })),
        ("data-is-new", damaged(l2, Value::Cluster { number: 90 })),
        ("compressed", damaged(l2, compressed(data, 3))),
        // Overwriting it would let go of the header's cluster.
        ("compressed-is-header", damaged(l2, compressed(0, 0))),
        ("counts-lost", damaged(COUNTS, Value::Any { value: 0 })),
        (
            "counts-too-many",
            damaged(COUNTS + 40, Value::Any { value: u64::MAX }),
        ),
        ("l2-is-l1", damaged(L1, Value::Cluster { number: 3 })),
        ("no-copied-flag", damaged(l2, Value::Bare { number: data })),
        ("size", damaged(3, Value::Any { value: 1 << 60 })),
        ("dirty", damaged(9, Value::Any { value: 1 })),
    ]
}

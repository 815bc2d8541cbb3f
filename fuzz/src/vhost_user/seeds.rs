// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the fuzzer starts from.

use super::{Input, Step, Word};

/// A client that brings queue 0 to work.
fn running() -> Vec<Step> {
    vec![
        Step::Negotiate { but: 63 },
        Step::Memory { regions: 3 },
        Step::Channel {},
        Step::InFlight {
            queues: 3,
            exponent: 4,
        },
        Step::Queue {
            index: 0,
            exponent: 4,
            base: 0,
        },
        Step::Request {
            queue: 0,
            kind: 1,
            sector: 3,
            segments: 1,
        },
    ]
}

fn then(more: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let mut steps = running();
    steps.extend(more);
    steps
}

/// All seeds.
pub fn all() -> Vec<(&'static str, Input)> {
    let request = |kind| Step::Request {
        queue: 0,
        kind,
        sector: 1,
        segments: 1,
    };
    let mut list = vec![
        ("nothing", vec![]),
        ("requests", then([request(0), request(4), request(8)])),
        (
            "stops",
            then([
                Step::GetBase { index: 0 },
                Step::Queue {
                    index: 0,
                    exponent: 4,
                    base: 1,
                },
                request(0),
                Step::Enable {
                    index: 0,
                    on: false,
                },
                Step::Enable { index: 0, on: true },
                Step::Reset {},
            ]),
        ),
        (
            "memory",
            then([
                Step::RemoveRegion { which: 0 },
                request(0),
                Step::AddRegion { which: 0 },
                request(0),
                Step::RemoveRegion { which: 3 },
                request(0),
                Step::Memory { regions: 0 },
                Step::Shrink { pages: 1 },
                request(0),
            ]),
        ),
        (
            "reconnect",
            then([
                request(1),
                Step::Reconnect {},
                Step::Negotiate { but: 63 },
                Step::Damage {
                    offset: 16,
                    value: 1,
                },
                Step::Memory { regions: 3 },
                Step::Queue {
                    index: 0,
                    exponent: 4,
                    base: 0,
                },
                request(0),
            ]),
        ),
        (
            "descriptors",
            then([
                Step::Descriptor {
                    index: 0,
                    kind: 0,
                    which: 2,
                },
                Step::Descriptor {
                    index: 0,
                    kind: 1,
                    which: 10,
                },
                Step::Log { len: 8 },
                request(0),
                Step::Config { offset: 0, len: 60 },
            ]),
        ),
        (
            "broken-ring",
            then([
                Step::Poke {
                    at: 128,
                    value: u64::MAX,
                },
                Step::Kick { queue: 0 },
                Step::Reset {},
            ]),
        ),
    ];
    list.push((
        "any-message",
        then([
            Step::Message {
                request: 13,
                flags: 8,
                words: vec![Word::Small { value: 0 }],
                descriptors: vec![0, 1, 2],
            },
            Step::Message {
                request: 9,
                flags: 0,
                words: vec![
                    Word::Pair { high: 0, low: 0 },
                    Word::Address { page: 2, offset: 0 },
                    Word::Power { exponent: 40 },
                    Word::Features { but: 3 },
                    Word::Any { value: 7 },
                ],
                descriptors: vec![],
            },
            Step::Bytes {
                bytes: vec![12, 0, 0, 0, 1],
                descriptors: vec![9],
            },
        ]),
    ));
    let slow = ["slow", "slow-reset", "slow-reconnect"].into_iter().zip([
        Step::GetBase { index: 0 },
        Step::Reset {},
        Step::Reconnect {},
    ]);
    let plain = list.into_iter().map(|(name, steps)| {
        let input = Input {
            is_slow: false,
            steps,
        };
        (name, input)
    });
    let slow = slow.map(|(name, step)| {
        let input = Input {
            is_slow: true,
            steps: then([request(1), request(1), request(0), step]),
        };
        (name, input)
    });
    plain.chain(slow).collect()
}

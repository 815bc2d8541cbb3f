// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that behave, and guests that resist.

use super::{Input, Shape, Step};

const SHAPE: Shape = Shape {
    compat: false,
    suspend: true,
    resume: true,
    midway: true,
    single_maps: false,
    event_idx: true,
    undrained: 0,
    pauses: true,
};

fn with(device: Shape, steps: Vec<Step>) -> Input {
    Input {
        device,
        auto: true,
        enforce: true,
        steps: [vec![Step::Load { nowhere: false }], steps].concat(),
    }
}

fn input(steps: Vec<Step>) -> Input {
    with(SHAPE, steps)
}

const fn request(index: u8, kind: u8, sector: u8) -> Step {
    Step::Request {
        index,
        kind,
        sector,
    }
}

/// A write, what is to happen with it in flight, and a read.
fn moved(steps: Vec<Step>) -> Vec<Step> {
    let begin = vec![request(0, 1, 3), request(1, 1, 4), request(0, 2, 0)];
    let end = vec![Step::Poll, request(0, 0, 3), request(1, 3, 0)];
    [begin, steps, end].concat()
}

/// There and back again.
fn about() -> Vec<Step> {
    let there = moved(vec![Step::Switch { slow: true }]);
    let back = moved(vec![Step::Switch { slow: false }, Step::Memory]);
    [there, back].concat()
}

/// The seeds, by name.
pub fn all() -> Vec<(&'static str, Input)> {
    let intercepted = |steps: Vec<Step>| input(moved([steps, vec![Step::Intercept]].concat()));
    let fail = |after, count| Step::Fail { after, count };
    let fails = |after, count| input(moved(vec![fail(after, count), Step::Intercept, Step::Heal]));
    vec![
        ("about", input(about())),
        (
            "compat",
            with(
                Shape {
                    compat: true,
                    single_maps: true,
                    ..SHAPE
                },
                about(),
            ),
        ),
        (
            "paused-vcpus",
            with(
                Shape {
                    suspend: false,
                    resume: false,
                    event_idx: false,
                    ..SHAPE
                },
                about(),
            ),
        ),
        (
            "starts-at-0",
            with(
                Shape {
                    midway: false,
                    ..SHAPE
                },
                about(),
            ),
        ),
        (
            "undrained",
            with(
                Shape {
                    undrained: 125,
                    resume: false,
                    ..SHAPE
                },
                about(),
            ),
        ),
        ("intercepted", intercepted(vec![])),
        (
            "released",
            input(moved(vec![Step::Intercept, Step::Release])),
        ),
        (
            "paused",
            input(moved(vec![
                Step::Pause,
                Step::Switch { slow: true },
                Step::Resume,
            ])),
        ),
        (
            "paused-intercepted",
            input(moved(vec![Step::Pause, Step::Intercept, Step::Resume])),
        ),
        ("jump", intercepted(vec![Step::Jump { index: 0, by: 1000 }])),
        (
            "nowhere",
            input(vec![
                Step::Load { nowhere: true },
                request(0, 1, 3),
                Step::Intercept,
            ]),
        ),
        (
            "poked",
            intercepted(vec![Step::Poke {
                at: 33,
                value: u64::MAX,
            }]),
        ),
        ("stuck", intercepted(vec![Step::Stuck])),
        (
            "deaf",
            input(moved(vec![
                Step::Deaf,
                Step::Intercept,
                Step::Heal,
                Step::Retry,
            ])),
        ),
        ("fails-early", fails(2, 1)),
        ("fails-late", fails(30, 1)),
        ("fails-long", fails(20, 255)),
        (
            "resets",
            input(vec![
                Step::Intercept,
                Step::Status { byte: 0 },
                Step::Load { nowhere: false },
                Step::Config { at: 32, value: 1 },
                Step::Kick { index: 1 },
                request(0, 1, 1),
                Step::Load { nowhere: false },
            ]),
        ),
        (
            "manual",
            Input {
                auto: false,
                enforce: false,
                ..input(moved(vec![
                    fail(25, 255),
                    Step::Switch { slow: true },
                    Step::Heal,
                    Step::Retry,
                ]))
            },
        ),
    ]
}

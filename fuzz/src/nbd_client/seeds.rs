// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that speak, more or less.

use super::{Flip, Input, Server, Step};

/// All that an export can do, but for a second connection.
const FLAGS: u16 = 0b1110_1101;

fn server(mode: u8) -> Server {
    Server {
        mode,
        blocks: 256,
        flags: FLAGS,
        minimum: 9,
        maximum: 32,
    }
}

fn input(mode: u8, steps: Vec<Step>) -> Input {
    Input {
        server: server(mode),
        flips: Vec::new(),
        steps,
    }
}

fn chunk(request: u8, kind: u16, last: bool) -> Step {
    Step::Chunk {
        request,
        kind,
        last,
        skip: 0,
        len: 255,
        more: 0,
    }
}

const fn simple(request: u8, error: u32, data: u8) -> Step {
    Step::Simple {
        request,
        error,
        data,
    }
}

/// The seeds, by name.
pub fn all() -> Vec<(&'static str, Input)> {
    let read = || Step::Read { at: 4, len: 4 };
    let write = || Step::Write {
        at: 8,
        len: 40,
        fua: true,
    };
    let ask = |step| vec![step, Step::Start, Step::Take];
    let then = |first: Vec<Step>, rest: Vec<Step>| [first, rest, vec![Step::Reap]].concat();
    vec![
        (
            "simple-read",
            input(0, then(ask(read()), vec![simple(0, 0, 255)])),
        ),
        (
            "simple-error",
            input(0, then(ask(read()), vec![simple(0, 5, 0)])),
        ),
        (
            "simple-write-in-parts",
            input(
                0,
                [
                    ask(write()),
                    vec![
                        simple(0, 0, 0),
                        Step::Reap,
                        Step::Take,
                        simple(0, 0, 0),
                        Step::Reap,
                        Step::Take,
                    ],
                    vec![simple(0, 0, 0), Step::Reap],
                ]
                .concat(),
            ),
        ),
        (
            "structured-read",
            input(1, then(ask(read()), vec![chunk(0, 1, true)])),
        ),
        (
            "structured-hole",
            input(1, then(ask(read()), vec![chunk(0, 2, true)])),
        ),
        (
            "structured-none",
            input(1, then(ask(Step::Flush), vec![chunk(0, 0, true)])),
        ),
        (
            "structured-error",
            input(1, then(ask(read()), vec![chunk(0, 0x8001, true)])),
        ),
        (
            "extended-read",
            input(
                2,
                then(ask(read()), vec![chunk(0, 1, false), chunk(0, 0, true)]),
            ),
        ),
        (
            "extended-pieces",
            input(
                2,
                then(
                    ask(Step::Read { at: 0, len: 1 }),
                    vec![
                        Step::Chunk {
                            request: 0,
                            kind: 1,
                            last: false,
                            skip: 0,
                            len: 200,
                            more: 0,
                        },
                        Step::Chunk {
                            request: 0,
                            kind: 2,
                            last: false,
                            skip: 100,
                            len: 100,
                            more: 0,
                        },
                        chunk(0, 0, true),
                    ],
                ),
            ),
        ),
        (
            "extended-too-long",
            input(
                2,
                then(
                    ask(read()),
                    vec![Step::Chunk {
                        request: 0,
                        kind: 1,
                        last: true,
                        skip: 0,
                        len: 255,
                        more: 1 << 20,
                    }],
                ),
            ),
        ),
        (
            "twice",
            input(
                1,
                then(ask(read()), vec![chunk(0, 1, true), chunk(0, 1, true)]),
            ),
        ),
        (
            "cancelled",
            input(
                1,
                then(
                    ask(read()),
                    vec![Step::Cancel { token: 1 }, chunk(0, 1, true), Step::Reopen],
                ),
            ),
        ),
        (
            "several",
            input(
                0,
                [
                    vec![
                        read(),
                        write(),
                        Step::Flush,
                        Step::Erase {
                            at: 0,
                            len: 9,
                            zero: true,
                        },
                    ],
                    vec![
                        Step::Erase {
                            at: 9,
                            len: 9,
                            zero: false,
                        },
                        Step::Start,
                        Step::Take,
                        Step::Release,
                    ],
                    vec![
                        simple(1, 0, 0),
                        simple(0, 0, 0),
                        Step::Reap,
                        Step::Close,
                        Step::Reap,
                    ],
                ]
                .concat(),
            ),
        ),
        (
            "rubbish",
            input(
                1,
                then(
                    ask(read()),
                    vec![Step::Say {
                        bytes: b"HTTP/1.1 400".to_vec(),
                    }],
                ),
            ),
        ),
        (
            "another-greeting",
            Input {
                server: server(1),
                flips: vec![Flip { at: 9, with: 1 }],
                steps: Vec::new(),
            },
        ),
        (
            "another-length",
            Input {
                server: server(1),
                flips: vec![Flip { at: 37, with: 1 }],
                steps: Vec::new(),
            },
        ),
        (
            "a-cut-handshake",
            Input {
                server: server(2),
                flips: vec![Flip { at: 1000, with: 0 }],
                steps: Vec::new(),
            },
        ),
    ]
}

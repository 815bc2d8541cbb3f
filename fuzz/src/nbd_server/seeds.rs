// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the fuzzer starts from.

use virtio_blk_nbd::proto::Command;

use super::{Input, Step};

fn request(command: Command, block: u32, blocks: u16) -> Step {
    flagged(command, 0, block, blocks)
}

fn flagged(command: Command, flags: u16, block: u32, blocks: u16) -> Step {
    Step::Request {
        command: command.0 as u8,
        flags,
        block,
        blocks,
        odd: 0,
    }
}

fn requests() -> Vec<Step> {
    vec![
        request(Command::WRITE, 1, 3),
        flagged(Command::WRITE, 1 | 32, 8, 1),
        request(Command::READ, 0, 200),
        flagged(Command::READ, 4, 0, 8),
        request(Command::BLOCK_STATUS, 0, 2048),
        flagged(Command::BLOCK_STATUS, 8, 0, 2048),
        flagged(Command::TRIM, 1, 4, 60),
        flagged(Command::WRITE_ZEROES, 2, 0, 2048),
        flagged(Command::WRITE_ZEROES, 16, 0, 2048),
        request(Command::FLUSH, 0, 0),
        request(Command::CACHE, 0, 1),
        request(Command::READ, u32::MAX, 1),
        request(Command::DISC, 0, 0),
    ]
}

fn after(mut steps: Vec<Step>) -> Vec<Step> {
    steps.push(Step::Export { go: true, infos: 8 });
    steps.extend(requests());
    steps
}

/// All seeds.
pub fn all() -> Vec<(&'static str, Input)> {
    let structured = Step::Agree { extended: false };
    let extended = Step::Agree { extended: true };
    let contexts = |set, which| Step::Contexts { set, which };
    let option = |kind, payload: &[u8]| Step::Option {
        kind,
        payload: payload.to_vec(),
    };
    let list = vec![
        ("nothing", vec![]),
        ("simple", after(vec![])),
        (
            "structured",
            after(vec![structured.clone(), contexts(true, 3)]),
        ),
        ("extended", after(vec![extended, contexts(true, 7)])),
        (
            "contexts",
            after(vec![
                contexts(true, 1),
                structured.clone(),
                contexts(false, 0),
                contexts(false, 0xff),
                contexts(true, 0xf8),
            ]),
        ),
        ("names", {
            let mut steps = vec![option(3, &[]), option(1, b"disk")];
            steps.extend(requests());
            steps
        }),
        (
            "options",
            after(vec![
                option(5, &[]),
                option(99, &[1, 2, 3]),
                Step::Export {
                    go: false,
                    infos: 0xff,
                },
                option(6, &[0xff; 9]),
                option(10, &[0, 0, 0, 4, 0xff]),
            ]),
        ),
        (
            "lengths",
            vec![
                Step::Cut {
                    kind: 3,
                    length: 70_000,
                    payload: vec![0; 20],
                },
                Step::Bytes {
                    bytes: b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff".to_vec(),
                },
            ],
        ),
        ("cut", {
            let mut steps = after(vec![structured]);
            steps.push(Step::Bytes {
                bytes: b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0".to_vec(),
            });
            steps
        }),
    ];
    let input = |(name, steps): (&'static str, Vec<Step>)| {
        let read_only = name == "simple";
        let input = Input {
            flags: if name == "names" { 0 } else { 3 },
            read_only,
            steps,
        };
        (name, input)
    };
    list.into_iter().map(input).collect()
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels that behave, more or less.

use super::{Attribute, Datagram, Input, Message, Value};

fn input(question: u8, messages: Vec<Message>) -> Input {
    Input {
        question,
        resolved: true,
        datagrams: vec![Datagram { messages, cut: 0 }],
        again: 0,
    }
}

fn attribute(kind: u8, value: Value) -> Attribute {
    Attribute {
        kind,
        value,
        more: 0,
    }
}

fn text(kind: u8, text: &[u8]) -> Attribute {
    let bytes = text.to_vec();
    attribute(kind, Value::Bytes { bytes })
}

fn content(command: u8, attributes: Vec<Attribute>) -> Message {
    Message::Content {
        command,
        sequence: 0,
        attributes,
    }
}

const fn acknowledged(code: i32) -> Message {
    Message::Control {
        kind: 2,
        flags: 0,
        sequence: 0,
        code: code as u32,
        echo: 16,
        attributes: Vec::new(),
    }
}

/// The seeds, by name.
pub fn all() -> Vec<(&'static str, Input)> {
    let device = |class| Message::Device { class };
    let word = |kind, value| attribute(kind, Value::Word { value });
    let long = |kind, value| attribute(kind, Value::Long { value });
    let config = vec![
        text(4, b"disk0\0"),
        word(5, 2),
        long(20, 0x3_3100_7644),
        long(21, 131_072),
        word(23, 512),
        attribute(25, Value::Short { value: 4 }),
        attribute(35, Value::Byte { value: 0 }),
        text(10, &[2, 0, 0, 0, 0, 1]),
        attribute(11, Value::Short { value: 1 }),
    ];
    let stats = vec![
        text(4, b"net0\0"),
        word(17, 3),
        text(18, b"received_desc\0"),
        long(19, 7),
    ];
    let parent = vec![text(2, b"vduse\0"), long(3, 6), word(15, 0), long(16, 0)];
    let refused = Message::Control {
        kind: 2,
        flags: 0x300,
        sequence: 0,
        code: -17_i32 as u32,
        echo: 16,
        attributes: vec![text(1, b"because\0")],
    };
    let mut unresolved = input(0, vec![device(2), Message::End]);
    unresolved.resolved = false;
    let mut endless = input(0, vec![device(2)]);
    endless.again = 200;
    let mut address = input(7, vec![device(1), Message::End]);
    address.datagrams.extend([
        Datagram {
            messages: vec![acknowledged(0)],
            cut: 0,
        },
        Datagram {
            messages: vec![content(6, config.clone()), Message::End],
            cut: 0,
        },
    ]);
    vec![
        (
            "devices",
            input(0, vec![device(2), device(1), Message::End]),
        ),
        ("device", input(1, vec![device(2), acknowledged(0)])),
        (
            "config",
            input(2, vec![content(6, config.clone()), Message::End]),
        ),
        (
            "configs",
            input(
                3,
                vec![content(6, config.clone()), content(6, config), Message::End],
            ),
        ),
        (
            "management",
            input(4, vec![content(1, parent), Message::End]),
        ),
        ("stats", input(5, vec![content(7, stats), Message::End])),
        ("delete", input(6, vec![acknowledged(0)])),
        ("address", address),
        ("refused", input(8, vec![refused])),
        ("unresolved", unresolved),
        ("endless", endless),
        (
            "rubbish",
            input(
                0,
                vec![Message::Any {
                    bytes: vec![0xff; 40],
                }],
            ),
        ),
    ]
}

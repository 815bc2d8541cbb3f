// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of almost right messages. One test, as it counts this process's threads and
//! descriptors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use common::{count, serve};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vblk_testing::frontend::{Wire, event, header, memory_file};

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

const PROTOCOL_FEATURES: u64 = 1 << 30;

/// One message of a hostile client.
#[derive(Clone, Debug)]
struct Message {
    request: u32,
    flags: u32,
    words: Vec<u64>,
    /// What is attached, as a number into a list of descriptors.
    fds: Vec<usize>,
}

fn words() -> impl Strategy<Value = Vec<u64>> {
    let word = prop_oneof![
        0..4u64,
        Just(16 << 32),
        Just(1 << 32),
        Just(1 << 20),
        Just(4096),
        Just(PROTOCOL_FEATURES | 1 << 32),
        Just(0xb22b),
        Just(u64::MAX),
        any::<u64>(),
    ];
    prop::collection::vec(word, 0..10)
}

fn message() -> impl Strategy<Value = Message> {
    let fds = prop::collection::vec(0..5usize, 0..4);
    let flags = prop_oneof![8 => Just(1u32), 4 => Just(9), 1 => any::<u32>()];
    let request = prop_oneof![9 => 0..46u32, 1 => any::<u32>()];
    (request, flags, words(), fds).prop_map(|(request, flags, words, fds)| Message {
        request,
        flags,
        words,
        fds,
    })
}

/// Messages that bring a ring to work, so that what follows meets one.
fn prologue(features: u64) -> Vec<Message> {
    let message = |request, words: &[u64], fds: &[usize]| Message {
        request,
        flags: 1,
        words: words.to_vec(),
        fds: fds.to_vec(),
    };
    vec![
        message(1, &[], &[]),
        message(SET_PROTOCOL_FEATURES, &[0xb22b], &[]),
        message(SET_FEATURES, &[features], &[]),
        message(SET_MEM_TABLE, &[1, 0, 1 << 20, 0, 0], &[0]),
        message(SET_VRING_NUM, &[16 << 32], &[]),
        message(SET_VRING_ADDR, &[0, 0, 8192, 4096, 0], &[]),
        message(SET_VRING_CALL, &[0], &[1]),
        message(SET_VRING_KICK, &[0], &[1]),
        message(SET_VRING_ENABLE, &[1 << 32], &[]),
    ]
}

#[test]
fn sequences_of_messages_leave_nothing_behind() {
    let (_disk, served) = serve();
    served.assert_serves();
    served.wait_idle();
    let memory = memory_file(1 << 20).unwrap();
    let eventfd = event().unwrap();
    let file: File = tempfile::tempfile().unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let fds = [
        memory.as_raw_fd(),
        eventfd.as_raw_fd(),
        file.as_raw_fd(),
        pipe.as_raw_fd(),
        socket.as_raw_fd(),
    ];
    let features = served.device.offered() | PROTOCOL_FEATURES;
    let sequence = (any::<bool>(), prop::collection::vec(message(), 1..30));
    let before = (count("fd"), count("task"));
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&sequence, |(started, tail)| {
            let mut messages = if started {
                prologue(features)
            } else {
                Vec::new()
            };
            messages.extend(tail);
            let mut wire = Wire::connect(&served.socket()).unwrap();
            for message in messages {
                let mut bytes = header(
                    message.request,
                    message.flags,
                    8 * message.words.len() as u32,
                );
                bytes.extend(message.words.iter().flat_map(|word| word.to_ne_bytes()));
                let attached: Vec<RawFd> = message.fds.iter().map(|fd| fds[*fd]).collect();
                wire.bytes_with(&bytes, &attached);
            }
            wire.finish().unwrap();
            Ok(())
        })
        .unwrap();
    served.assert_serves();
    served.wait_idle();
    assert_eq!((count("fd"), count("task")), before);
}

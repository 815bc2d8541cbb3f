// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What tests share that kill a server under load and start it again: the server, blocks whose content says which
//! version they are, and chance from a seed.

use std::time::{Duration, Instant};

use vblk_testing::frontend::{Client, PATIENCE};
use vblk_testing::server::{Config, Disk, Program, Server};

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of a block: the unit of requests.
pub const BLOCK: usize = 4096;
/// Sectors of a block.
pub const SECTORS: u32 = (BLOCK / 512) as u32;

/// What a version of a block holds that was written.
pub fn written(block: u64, version: u64) -> Vec<u8> {
    let stamp = (version << 20 | block).to_le_bytes();
    stamp.iter().copied().cycle().take(BLOCK).collect()
}

/// The first sector of a block.
pub const fn sector(block: u64) -> u64 {
    block * SECTORS as u64
}

/// A server of this disk.
pub fn config(disk: Disk, queues: usize) -> Config {
    Config {
        program: Program::Vblk(env!("CARGO_BIN_EXE_vblk").into()),
        disk,
        queues,
        queue_size: QUEUE_SIZE,
        read_only: false,
    }
}

/// A connection to a server that may not listen yet: the socket of a killed one is still there.
pub fn connect(server: &Server) -> Client {
    let started = Instant::now();
    loop {
        match Client::connect(&server.socket()) {
            Ok(client) => return client,
            Err(error) if started.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The server of tests that kill it under load and start it again.

use vblk_testing::server::{Config, Disk, Program};

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 64;

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

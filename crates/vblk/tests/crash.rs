// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! kill -9 of `vblk` under load, again and again: nothing is lost, and nothing is done twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/crash.rs"]
mod common;

use std::time::Duration;

use common::config;
use vblk_testing::kills::{self, BLOCK, Config};
use vblk_testing::server::Disk;

const QUEUES: usize = 3;
/// Blocks that each queue has to itself.
const BLOCKS: u64 = 96;
const KILLS: u64 = 60;

fn crashes(engine: Option<&str>, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let len = QUEUES as u64 * BLOCKS * BLOCK as u64;
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    let disk = Disk::Raw {
        path: path.clone(),
        engine: engine.map(Into::into),
    };
    let (report, contents) = kills::run(&Config {
        server: config(disk, QUEUES),
        blocks: BLOCKS,
        kills: KILLS,
        life: Duration::from_millis(6),
        seed,
    })
    .unwrap();
    // Nothing was done after its turn: the image holds the last version of each block.
    contents.check_file(&path).unwrap();
    println!("{report:?}");
    assert!(
        report.interrupted >= KILLS,
        "the load was there: {report:?}"
    );
    if engine.is_none() {
        assert!(report.overtaken > 0, "completions come out of order");
    }
}

#[test]
fn a_killed_server_loses_and_repeats_nothing() {
    crashes(None, 1);
}

#[test]
fn a_killed_server_without_io_uring() {
    crashes(Some("sync"), 2);
}

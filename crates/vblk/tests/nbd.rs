// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vhost-user --disk nbd:…` under a driver that shares no code with it, over servers of others, which are killed
//! meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-nbd/tests/servers/mod.rs"]
mod servers;

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use servers::Server as Nbd;
use vblk_testing::pattern::{self, Stamp};
use vblk_testing::server::{Config as ServerConfig, Disk, Program, Server};
use vblk_testing::verify::{self, Config};

const LEN: usize = 32 << 20;

/// Requests of a run.
fn operations() -> u64 {
    match std::env::var_os("VBLK_LONG_TESTS") {
        Some(_) => 200_000,
        None => 20_000,
    }
}

/// Verifies what four queues did to an export, with the server killed so many times meanwhile.
fn verify(mut nbd: Nbd, seed: u64, kills: u32) {
    // Not cut short in between: the server has it open.
    let content = nbd.file().with_extension("new");
    pattern::create_file(&content, LEN as u64).unwrap();
    let mut file = File::options().write(true).open(nbd.file()).unwrap();
    file.write_all(&std::fs::read(content).unwrap()).unwrap();
    let name = format!("nbd:{},reconnect=60,unflushed=trust", nbd.address());
    let server = Server::start(&ServerConfig {
        program: Program::Vblk(env!("CARGO_BIN_EXE_vblk").into()),
        disk: Disk::Named(name),
        queues: 4,
        queue_size: 512,
        read_only: false,
    })
    .unwrap();
    let config = Config {
        seed,
        initial: Stamp::FILE,
        ..Config::new(server.socket(), operations())
    };
    let (report, model) = std::thread::scope(|scope| {
        let run = scope.spawn(|| verify::run(&config));
        // From this thread: nbdkit ends with the thread that started it.
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(150));
            if run.is_finished() {
                break;
            }
            nbd.kill();
            nbd.run();
        }
        run.join().unwrap().unwrap()
    });
    assert!(report.reads > 1000 && report.writes > 1000, "{report}");
    assert!(report.fua > 100 && report.flushes > 100, "{report}");
    assert!(
        report.discards > 100 && report.zeroes_keep > 100,
        "{report}"
    );
    assert_eq!(report.deepest, 128, "{report}");
    server.stop().unwrap();
    model.check_file(&nbd.file()).unwrap();
}

#[test]
fn nbdkit_over_tcp() {
    verify(Nbd::nbdkit(LEN, true, &[], &[]), 1, 0);
}

#[test]
fn nbdkit_that_is_killed() {
    verify(Nbd::nbdkit(LEN, false, &[], &[]), 2, 5);
}

#[test]
fn qemu_nbd_that_is_killed() {
    verify(Nbd::qemu_nbd(LEN, &["--shared=8", "--discard=unmap"]), 3, 5);
}

#[test]
fn qemu_nbd_with_one_connection_for_all_queues() {
    verify(Nbd::qemu_nbd(LEN, &["--shared=1", "--discard=unmap"]), 4, 0);
}

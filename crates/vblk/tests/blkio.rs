// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve vhost-user` under a driver that shares no code with it, the `blkio` crate.
//!
//! These runs are short; `cargo xtask verify` makes two million requests. With
//! `VBLK_TEST_SERVER=qsd` the same tests look at `qemu-storage-daemon`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use vblk_testing::Error;
use vblk_testing::model::Model;
use vblk_testing::pattern::{self, Stamp};
use vblk_testing::server::{Config as ServerConfig, Disk, Program, Server};
use vblk_testing::verify::{self, Config};

const LEN: u64 = 32 << 20;

fn program() -> Program {
    match std::env::var("VBLK_TEST_SERVER").as_deref() {
        Ok("qsd") => Program::QemuStorageDaemon,
        Ok(other) => panic!("VBLK_TEST_SERVER={other}: only qsd is known"),
        Err(_) => Program::Vblk(env!("CARGO_BIN_EXE_vblk").into()),
    }
}

fn serve(disk: Disk, read_only: bool) -> Server {
    Server::start(&ServerConfig {
        program: program(),
        disk,
        queues: 4,
        queue_size: 512,
        read_only,
    })
    .unwrap()
}

/// An image full of [`Stamp::FILE`].
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let this = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        pattern::create_file(&this.path(), LEN).unwrap();
        this
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("disk.raw")
    }

    fn disk(&self, engine: Option<&str>) -> Disk {
        Disk::Raw {
            path: self.path(),
            engine: engine.map(Into::into),
        }
    }
}

/// Every kind of request was made, several at a time, and what one queue did another one saw.
fn assert_thorough(report: &verify::Report) {
    assert!(report.reads > 1000 && report.writes > 1000, "{report}");
    assert!(report.fua > 100 && report.flushes > 100, "{report}");
    assert!(report.discards > 100, "{report}");
    assert!(
        report.zeroes_unmap > 100 && report.zeroes_keep > 100,
        "{report}"
    );
    assert!(report.refused > 100 && report.vectored > 1000, "{report}");
    assert_eq!(report.deepest, 128, "{report}");
    assert!(report.ambiguous_sectors > 0, "{report}");
}

/// Runs on a disk with content, then again through a second connection. Returns what the disk must hold.
fn verify_twice(server: Server, seed: u64) -> Model {
    let mut config = Config {
        seed,
        initial: Stamp::FILE,
        ..Config::new(server.socket(), 20_000)
    };
    let (report, model) = verify::run(&config).unwrap();
    assert_thorough(&report);
    config.seed += 100;
    config.queues = 1;
    config.ops = 2_000;
    verify::resume(&config, &model).unwrap();
    server.stop().unwrap();
    model
}

/// Runs on an image, then again through a second connection, then compares the file.
fn verify_image(engine: Option<&str>, seed: u64) {
    let image = Image::new();
    let server = serve(image.disk(engine), false);
    let model = verify_twice(server, seed);
    model.check_file(&image.path()).unwrap();
}

#[test]
fn raw_image() {
    verify_image(None, 1);
}

#[test]
fn raw_image_without_io_uring() {
    let engine = match program() {
        Program::Vblk(_) => "sync",
        Program::QemuStorageDaemon => "threads",
    };
    verify_image(Some(engine), 2);
}

/// Runs `qemu-img`, which must agree. Returns what it prints.
fn qemu_img(args: &[&str]) -> String {
    let output = std::process::Command::new("qemu-img")
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("can't run qemu-img ({error}): apt-get install qemu-utils"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}{errors}");
    text
}

/// The model is checked by our reads first, then by QEMU's.
fn verify_qcow2(options: &str, seed: u64) {
    let image = Image::new();
    let (raw, qcow2) = (image.path(), image.dir.path().join("disk.qcow2"));
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    let convert = [
        "convert", "-f", "raw", "-O", "qcow2", "-o", options, from, to,
    ];
    qemu_img(&convert);
    let disk = Disk::Qcow2 {
        path: qcow2.clone(),
        engine: None,
        direct: false,
        backing: false,
    };
    let server = serve(disk, false);
    let model = verify_twice(server, seed);
    qemu_img(&["check", "-q", "-f", "qcow2", to]);
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", to, from]);
    model.check_file(&raw).unwrap();
}

#[test]
fn qcow2_image() {
    verify_qcow2("cluster_size=64k", 3);
}

#[test]
fn qcow2_image_with_small_clusters() {
    verify_qcow2("cluster_size=4k,refcount_bits=1", 4);
}

#[test]
fn memory() {
    if let Program::QemuStorageDaemon = program() {
        return;
    }
    let server = serve(Disk::Memory(LEN), false);
    let (report, _) = verify::run(&Config::new(server.socket(), 20_000)).unwrap();
    assert_thorough(&report);
    server.stop().unwrap();
}

#[test]
fn small_queues() {
    let image = Image::new();
    let server = serve(image.disk(None), false);
    // More requests than descriptors: the driver waits for room again and again.
    let (report, model) = verify::run(&Config {
        queue_size: 16,
        queues: 2,
        initial: Stamp::FILE,
        ..Config::new(server.socket(), 10_000)
    })
    .unwrap();
    assert_eq!(report.deepest, 128);
    server.stop().unwrap();
    model.check_file(&image.path()).unwrap();
}

#[test]
fn read_only() {
    let image = Image::new();
    let server = serve(image.disk(None), true);
    verify::refuses_writers(&server.socket()).unwrap();
    let (report, model) = verify::run(&Config {
        read_only: true,
        initial: Stamp::FILE,
        ..Config::new(server.socket(), 5_000)
    })
    .unwrap();
    assert!(report.reads > 1000 && report.refused > 10, "{report}");
    assert_eq!(report.ambiguous_sectors, 0, "{report}");
    server.stop().unwrap();
    model.check_file(&image.path()).unwrap();
}

#[test]
fn wrong_data_is_noticed() {
    let image = Image::new();
    let server = serve(image.disk(None), true);
    let error = verify::run(&Config {
        read_only: true,
        initial: Stamp::ZERO,
        ..Config::new(server.socket(), 5_000)
    })
    .unwrap_err();
    assert!(matches!(error, Error::Mismatch(_)), "{error}");
}

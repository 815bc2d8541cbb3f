// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers on a served disk under a driver that shares no code with it: changed while every byte is compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Server, vblk};
use serde_json::Value;
use vblk_testing::verify::{self, Config};

#[test]
fn layers_come_and_go_while_every_byte_is_compared() {
    let served = Server::of("memory:32M,verify,meter");
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let stacks = [
                "verify,throttle=iops:20000,meter",
                "verify,fault=seed:1/reorder:on,dirty=a,meter",
                "verify",
                "dirty=a,verify,throttle=bandwidth:200M/group:g,meter",
            ];
            let mut changes = 0;
            while working.load(Ordering::Relaxed) || changes < stacks.len() {
                let set = stacks[changes % stacks.len()];
                let answer = served.ask(&["layers", set, "--drop-bitmaps"]);
                let layers: Vec<_> = answer["layers"].as_array().unwrap().iter().collect();
                assert_eq!(layers.len(), set.split(',').count(), "{answer}");
                assert_eq!(answer["settled"], true);
                changes += 1;
            }
        });
        let (report, _) = verify::run(&Config::new(served.socket(), 20_000)).unwrap();
        assert!(report.reads > 1000 && report.writes > 1000, "{report}");
        working.store(false, Ordering::Relaxed);
        changer.join().unwrap();
    });
    let stats = served.ask(&["stats"]);
    assert_eq!(stats["lie"], Value::Null);
}

/// Some of all layers in some order, all of which follows from the seed.
fn some_layers(seed: u64) -> Vec<&'static str> {
    let mut left = vec![
        "meter",
        "verify",
        "dirty=a",
        "dirty=b/granularity:4K",
        "throttle=iops:50000/bandwidth:1G",
        "throttle=write_iops:20000/burst:100000/group:g",
        "fault=seed:3/reorder:on",
    ];
    let mut random = seed;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) as usize % below
    };
    let count = 2 + next(5);
    (0..count).map(|_| left.remove(next(left.len()))).collect()
}

#[test]
fn any_stack_serves_a_driver_that_shares_no_code() {
    for seed in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let layers = some_layers(seed);
        let disk = format!("raw:{},{}", path.display(), layers.join(","));
        let served = Server::of(&disk);
        let config = Config {
            seed,
            ..Config::new(served.socket(), 1200)
        };
        let (report, model) = verify::run(&config).unwrap();
        assert!(
            report.reads > 100 && report.writes > 100,
            "{disk}: {report}"
        );
        assert_eq!(served.ask(&["stats"])["lie"], Value::Null, "{disk}");
        served.ask(&["drain"]);
        model.check_file(&path).unwrap();
    }
}

#[test]
fn a_disk_is_described_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.toml");
    let disk = format!("toml:{}", path.display());
    let text = "format='memory'\nsize='1M'\n[[layer]]\ntype='throttle'\niops={rate=5,burst=9}\n";
    std::fs::write(&path, text).unwrap();
    let served = Server::of(&disk);
    assert_eq!(
        served.ask(&["layers"])["layers"],
        serde_json::json!(["throttle=iops:5/burst:9"])
    );
    std::fs::write(&path, "format='raw'\npath='x'\ncolour='red'").unwrap();
    let output = vblk(&[
        "serve",
        "vhost-user",
        "--socket",
        "/nonexistent/s",
        "--disk",
        &disk,
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let words = ["disk.toml, line 3: ", "`colour`"];
    assert!(
        words.iter().all(|word| said.contains(word)) && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn help_shows_the_layers() {
    for args in [&["serve", "vhost-user", "--help"][..], &["ctl", "--help"]] {
        let text = String::from_utf8(vblk(args).stdout).unwrap();
        for word in [
            "throttle=",
            "dirty=",
            "meter",
            "verify",
            "fault=",
            "toml:FILE",
        ] {
            assert!(text.contains(word), "{args:?}: {text}");
        }
    }
}

/// A format writes its last when nobody has the disk any longer, which the servers of metrics and control must not hinder.
#[test]
fn the_disk_is_let_go_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let qemu_img = |args: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(args).arg(&path).stdout(Stdio::null());
        command
    };
    let made = qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=32M"]).status();
    let made =
        made.unwrap_or_else(|e| panic!("can't run qemu-img ({e}): apt-get install qemu-utils"));
    assert!(made.success());
    let disk = format!("qcow2:{}", path.display());
    let mut served = Server::start(&["--queues", "4", "--disk", &disk, "--metrics", "127.0.0.1:0"]);
    verify::run(&Config::new(served.socket(), 300)).unwrap();
    // A client that stays.
    let mut idle = UnixStream::connect(served.control()).unwrap();
    idle.write_all(b"{\"command\":\"disks\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&idle).read_line(&mut answer).unwrap();
    assert!(answer.contains("ok"), "{answer}");
    let pid = served.child.id().try_into().unwrap();
    // SAFETY: plain kill(2), of a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert!(served.child.wait().unwrap().success());
    let checked = qemu_img(&["check", "-q", "-f", "qcow2"]).status().unwrap();
    assert_eq!(checked.code(), Some(0), "clusters that belong to nobody");
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking at an image changes nothing of it, also while others use it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Server, vblk};
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    let output = vblk(&[&["--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// All that a look could change of a file.
fn state(path: &Path) -> (Vec<u8>, [i64; 8]) {
    let meta: Metadata = std::fs::metadata(path).unwrap();
    let times = [
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.blocks() as i64,
        meta.len() as i64,
        i64::from(meta.mode()),
        meta.nlink() as i64,
    ];
    (std::fs::read(path).unwrap(), times)
}

/// Every command that looks at a disk.
fn look(disk: &str) {
    json(&["disk", "info", disk]);
    json(&["features", "--disk", disk]);
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output();
    let output =
        output.unwrap_or_else(|e| panic!("can't run qemu-img ({e}): apt-get install qemu-utils"));
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_file_that_grows_meanwhile_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let disk = format!("raw:{}", path.display());
    let mut file = File::create(&path).unwrap();
    // What was seen lost was behind the end of the file at the time of a look.
    for round in 0..40_u8 {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..64 {
                    file.write_all(&[round + 1; 64 << 10]).unwrap();
                }
            });
            while !writer.is_finished() {
                vblk(&["disk", "info", &disk]);
            }
            writer.join().unwrap();
        });
    }
    let content = std::fs::read(&path).unwrap();
    let right = content
        .chunks(4 << 20)
        .zip(1..)
        .all(|(part, round)| part.iter().all(|byte| *byte == round));
    assert!(right && content.len() == 40 * (4 << 20));
}

#[test]
fn nothing_of_an_image_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let before = state(&path);
    look(&format!("raw:{}", path.display()));
    assert_eq!(state(&path).1, before.1);
    // Nor does it have to be one's own, or to be writable.
    let toml = dir.path().join("disk.toml");
    std::fs::write(
        &toml,
        format!(
            "format='raw'\npath='{}'\n[[layer]]\ntype='meter'",
            path.display()
        ),
    )
    .unwrap();
    let disk = format!("toml:{}", toml.display());
    look(&disk);
    assert_eq!(
        json(&["disk", "info", &disk])["layers"],
        serde_json::json!(["meter"])
    );
    assert!(state(&path) == before);

    let image = dir.path().join("disk.qcow2");
    let name = image.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", name, "1M"]);
    qemu_img(&["bitmap", "--add", name, "b0"]);
    let before = state(&image);
    look(&format!("qcow2:{name}"));
    assert!(state(&image) == before);
    let info = qemu_img(&["info", name]);
    assert!(info.contains("b0") && !info.contains("in-use"), "{info}");
}

#[test]
fn an_image_in_use_can_be_looked_at_and_its_lock_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("raw:{}", path.display());
    let _server = Server::start(&["--disk", &disk]);
    look(&disk);
    let socket = dir.path().join("other");
    let second = [
        "serve",
        "vhost-user",
        "--disk",
        &disk,
        "--socket",
        socket.to_str().unwrap(),
    ];
    let refused = vblk(&second);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("locked") && refused.status.code() == Some(1),
        "{said}"
    );
}

#[test]
fn the_engine_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("raw:{},engine=sync", path.display());
    assert_eq!(json(&["disk", "info", &disk])["engine"], "system calls");
    let text = String::from_utf8(vblk(&["disk", "info", &disk]).stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("engine ")),
        "{text}"
    );
    assert_eq!(json(&["disk", "info", "memory:1M"]).get("engine"), None);
}

#[test]
fn features_lists_every_disk() {
    let disks = &json(&["features"])["disks"];
    assert_eq!(
        *disks,
        serde_json::json!(["raw", "qcow2", "memory", "null", "nbd", "rbd", "vdpa"])
    );
    // Each of them is known to `disk info`, whose errors are about something else.
    for format in disks.as_array().unwrap() {
        let disk = format!("{}:/nonexistent", format.as_str().unwrap());
        let output = vblk(&["disk", "info", &disk]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && !said.contains("unknown disk format"),
            "{said}"
        );
    }
}

#[test]
fn files_that_can_not_be_opened_are_named_with_what_to_do() {
    let refused = |disk: &str, words: &[&str]| {
        for command in [&["disk", "info", disk][..], &["features", "--disk", disk]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vblk"))
                .args(command)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8(std::mem::take(&mut command.stderr)).unwrap();
            assert_eq!(
                (command.status.code(), said.lines().count()),
                (Some(1), 1),
                "{said}"
            );
            assert!(!said.contains("disk I/O failed"), "{said}");
            for word in words {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
    };
    refused(
        "raw:/nonexistent/i",
        &["/nonexistent/i: No such file", "truncate -s"],
    );
    refused(
        "qcow2:/nonexistent/i",
        &["/nonexistent/i", "No such file", "check the path"],
    );
    refused("raw:/", &["/ is a directory"]);
}

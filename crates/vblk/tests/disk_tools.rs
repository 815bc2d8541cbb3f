// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk disk create`, `check` and `map`: QEMU agrees with what they make and say, and nothing half made is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{Server, vblk};
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What is in it.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A disk's words, with `@` for the place.
    fn disk(&self, text: &str) -> String {
        text.replace('@', self.0.path().to_str().unwrap())
    }

    fn run(&self, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|arg| self.disk(arg)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        vblk(&args)
    }

    /// What it prints with `--json`, and its status. It says nothing on standard error.
    fn json(&self, args: &[&str]) -> (Value, Option<i32>) {
        let output = self.run(&[&["--json"], args].concat());
        assert_eq!(output.stderr, b"", "{args:?}: {output:?}");
        let value = serde_json::from_slice(&output.stdout).unwrap();
        (value, output.status.code())
    }

    /// What it refuses, in one line.
    fn refused(&self, args: &[&str], status: i32) -> String {
        let output = self.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert_eq!(output.stdout, b"");
        said
    }
}

fn qemu(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    output
        .unwrap_or_else(|error| panic!("can't run {program} ({error}): apt-get install qemu-utils"))
}

fn qemu_ok(args: &[&str]) -> String {
    let output = qemu("qemu-img", args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_json(args: &[&str]) -> Value {
    serde_json::from_str(&qemu_ok(&[args, &["--output=json"]].concat())).unwrap()
}

fn write(image: &Path, commands: &[&str]) {
    let commands: Vec<&str> = commands
        .iter()
        .flat_map(|command| ["-c", command])
        .collect();
    let output = qemu(
        "qemu-io",
        &[&["-f", "qcow2"], &commands[..], &[image.to_str().unwrap()]].concat(),
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn qemu_finds_what_was_asked_for() {
    let place = Place::new();
    fs::write(place.path("base.img"), vec![5; 1 << 20]).unwrap();
    let image = place.path("disk.qcow2");
    let name = image.to_str().unwrap();
    for (options, bytes, expected) in [
        ("size=1G", 1 << 30, json!({"cluster-size": 65536})),
        (
            "size=64M,cluster=4K",
            64 << 20,
            json!({"cluster-size": 4096}),
        ),
        (
            "size=64M,extended_l2=on,compression=zstd,preallocation=metadata",
            64 << 20,
            json!({"extended-l2": true, "compression-type": "zstd"}),
        ),
        (
            "size=1G,refcount_bits=1,lazy_refcounts=on",
            1 << 30,
            json!({"refcount-bits": 1, "lazy-refcounts": true}),
        ),
        (
            "backing=base.img,backing_format=raw",
            1 << 20,
            json!({"backing-filename": "base.img", "backing-filename-format": "raw"}),
        ),
        (
            "size=2M,backing=base.img,backing_format=raw",
            2 << 20,
            json!({"backing-filename": "base.img"}),
        ),
        (
            "size=8M,data_file=@/data",
            8 << 20,
            json!({"data-file-raw": false}),
        ),
        (
            "size=8M,data_file=@/data,data_file_raw=on",
            8 << 20,
            json!({"data-file-raw": true, "data-file": place.path("data")}),
        ),
    ] {
        let disk = format!("qcow2:@/disk.qcow2,{options}");
        let (said, status) = place.json(&["disk", "create", "--force", &disk]);
        assert_eq!((&said["bytes"], status), (&json!(bytes), Some(0)), "{said}");
        qemu_ok(&["check", "-q", name]);
        let info = qemu_json(&["info", name]);
        assert_eq!(info["virtual-size"], bytes);
        for (key, value) in expected.as_object().unwrap() {
            let specific = &info["format-specific"]["data"][key];
            assert!(
                info[key] == *value || specific == value,
                "{options}: {info}"
            );
        }
        let (found, status) = place.json(&["disk", "check", "qcow2:@/disk.qcow2"]);
        assert_eq!(
            (&found["result"], status),
            (&json!("sound"), Some(0)),
            "{found}"
        );
    }
    for (what, has_space) in [("off", false), ("falloc", true), ("full", true)] {
        for format in ["raw", "qcow2"] {
            let disk = format!("{format}:@/space,size=4M,preallocation={what}");
            assert!(
                place
                    .run(&["disk", "create", "--force", &disk])
                    .status
                    .success()
            );
            let space = fs::metadata(place.path("space")).unwrap().blocks() * 512;
            assert_eq!(space >= 4 << 20, has_space, "{disk}");
            let zeroes = place.path("zeroes");
            File::create(&zeroes).unwrap().set_len(4 << 20).unwrap();
            let (space, zeroes) = (place.path("space"), zeroes.to_str().unwrap().to_owned());
            qemu_ok(&[
                "compare",
                "-q",
                "-f",
                format,
                "-F",
                "raw",
                space.to_str().unwrap(),
                &zeroes,
            ]);
        }
    }
}

#[test]
fn a_chain_is_made_of_what_is_there() {
    let place = Place::new();
    let create = |disk: &str| place.run(&["disk", "create", disk]);
    assert!(create("qcow2:@/a.qcow2,size=3M").status.success());
    assert!(
        create("qcow2:@/b.qcow2,backing=a.qcow2,backing_format=qcow2")
            .status
            .success()
    );
    let b = place.path("b.qcow2");
    assert_eq!(
        qemu_json(&["info", b.to_str().unwrap()])["virtual-size"],
        3 << 20
    );
    for (disk, word) in [
        (
            "qcow2:@/c.qcow2,backing=z.qcow2,backing_format=qcow2",
            "z.qcow2",
        ),
        (
            "qcow2:@/c.qcow2,size=1M,backing=nbd:a,backing_format=raw",
            "nbd:a",
        ),
        ("qcow2:@/a.qcow2,size=1M", "--force"),
        (
            "qcow2:@/c.qcow2,size=1M,cluster=512,extended_l2=on",
            "16384",
        ),
        ("qcow2:@/c.qcow2,size=1M,data_file=@/a.qcow2", "--force"),
        ("qcow2:@/no/c.qcow2,size=1M", "No such file"),
        ("raw:/dev/null,size=1M", "no regular file"),
    ] {
        let said = place.refused(&["disk", "create", disk], 1);
        assert!(said.contains(word), "{disk}: {said}");
    }
    assert!(
        place
            .refused(&["disk", "create", "qcow2:@/c"], 2)
            .contains("size")
    );
    assert_eq!(place.names(), ["a.qcow2", "b.qcow2"]);
}

#[test]
fn an_image_that_is_in_use_is_not_replaced() {
    let place = Place::new();
    fs::write(place.path("disk.img"), vec![7; 1 << 20]).unwrap();
    let server = Server::of(&place.disk("raw:@/disk.img"));
    let said = place.refused(&["disk", "create", "--force", "raw:@/disk.img,size=2M"], 1);
    assert!(
        said.contains("can't be replaced") && said.contains("is locked"),
        "{said}"
    );
    assert_eq!(fs::metadata(place.path("disk.img")).unwrap().len(), 1 << 20);
    drop(server);
    assert_eq!(place.names(), ["disk.img"]);
    let output = place.run(&["disk", "create", "--force", "raw:@/disk.img,size=2M"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::metadata(place.path("disk.img")).unwrap().len(), 2 << 20);
}

/// A terminal: what is written to it, and its other end.
fn terminal() -> (File, Stdio) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: two places for descriptors, and nothing else is asked for.
    let result = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            none,
            none.cast(),
            none.cast(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: both have just been opened, and nobody else has them.
    unsafe { (File::from_raw_fd(ours), Stdio::from_raw_fd(theirs)) }
}

#[test]
fn what_is_interrupted_leaves_nothing_and_a_terminal_shows_how_far_it_was() {
    let place = Place::new();
    for (format, signal) in [
        ("raw", libc::SIGINT),
        ("qcow2", libc::SIGTERM),
        ("qcow2", libc::SIGHUP),
    ] {
        let (mut screen, errors) = terminal();
        let disk = place.disk(&format!("{format}:@/disk,size=64G,preallocation=full"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
            .args(["disk", "create", &disk])
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        let (mut seen, mut piece) = (Vec::new(), [0; 256]);
        while !seen.contains(&b'%') {
            let count = screen.read(&mut piece).unwrap();
            seen.extend_from_slice(&piece[..count]);
        }
        let text = String::from_utf8(seen).unwrap();
        assert!(text.contains("creating ["), "{text}");
        assert!(place.names()[0].starts_with("disk.unfinished-"));
        let pid = child.id().try_into().unwrap();
        // SAFETY: plain kill(2), of a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert_eq!(place.names(), [""; 0]);
    }
}

#[test]
fn what_fails_leaves_nothing() {
    let place = Place::new();
    for disk in [
        "raw:@/disk,size=4M",
        "qcow2:@/disk,size=4M,preallocation=full",
        "qcow2:@/disk,size=4M,data_file=@/data,data_file_raw=on",
    ] {
        let script = format!(
            "ulimit -f 1024; exec {} disk create '{}'",
            env!("CARGO_BIN_EXE_vblk"),
            place.disk(disk)
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("File too large"), "{said}");
        assert_eq!(place.names(), [""; 0]);
    }
}

/// Sets a refcount of 16 bits in the first block.
fn set_count(image: &Path, cluster: u64, count: u16) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let be64 = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let block = be64(be64(48));
    file.write_all_at(&count.to_be_bytes(), block + cluster * 2)
        .unwrap();
}

#[test]
fn checks_end_as_those_of_qemu() {
    let place = Place::new();
    let image = place.path("disk.qcow2");
    let name = image.to_str().unwrap();
    assert!(
        place
            .run(&["disk", "create", "qcow2:@/disk.qcow2,size=16M"])
            .status
            .success()
    );
    write(&image, &["write -P 1 0 1M", "write -c -P 2 4M 64k"]);
    let disk = "qcow2:@/disk.qcow2";
    let agree = |status: i32| {
        let (found, own) = place.json(&["disk", "check", disk]);
        let output = qemu("qemu-img", &["check", "--output=json", name]);
        assert_eq!(
            (own, output.status.code()),
            (Some(status), Some(status)),
            "{found}"
        );
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        for (own, key) in [
            ("total_clusters", "total-clusters"),
            ("allocated_clusters", "allocated-clusters"),
            ("compressed_clusters", "compressed-clusters"),
            ("fragmented_clusters", "fragmented-clusters"),
            ("image_end_offset", "image-end-offset"),
            ("leaks", "leaks"),
            ("corruptions", "corruptions"),
        ] {
            let theirs = theirs[key].as_u64().unwrap_or(0);
            assert_eq!(found[own], theirs, "{own}: {found}");
        }
        found
    };
    let end = agree(0)["image_end_offset"].as_u64().unwrap();
    set_count(&image, end / 65536 + 1, 1);
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(end + (4 << 16))
        .unwrap();
    agree(3);
    let output = place.run(&["disk", "check", disk]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("cluster ") && text.contains("space is lost"),
        "{text}"
    );
    let (found, status) = place.json(&["disk", "check", "--repair=leaks", disk]);
    assert_eq!((&found["leaks_fixed"], status), (&json!(1), Some(0)));
    agree(0);
    // A cluster that is used and not counted.
    set_count(&image, end / 65536 - 2, 0);
    let (found, status) = place.json(&["disk", "check", disk]);
    assert_eq!(
        (&found["result"], status),
        (&json!("damaged"), Some(2)),
        "{found}"
    );
    assert_eq!(qemu("qemu-img", &["check", name]).status.code(), Some(2));
    let (found, status) = place.json(&["disk", "check", "--repair", disk]);
    assert_eq!(
        (&found["corruptions_fixed"], status),
        (&json!(1), Some(0)),
        "{found}"
    );
    agree(0);
    let said = place.refused(&["disk", "check", "qcow2:@/nothing"], 1);
    assert!(said.contains("nothing"), "{said}");
    let said = place.refused(&["disk", "check", "raw:@/disk.qcow2"], 63);
    assert!(said.contains("raw"), "{said}");
    // It is nobody's to mend while it is in use.
    let server = Server::of(&place.disk(disk));
    let said = place.refused(&["disk", "check", "--repair", disk], 1);
    assert!(said.contains("is locked"), "{said}");
    drop(server);
    // Nothing can be said of an image whose tables lie outside of it.
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&(1_u64 << 40).to_be_bytes(), 40).unwrap();
    let (found, status) = place.json(&["disk", "check", disk]);
    assert_eq!(status, Some(2), "{found}");
    assert!(
        found["faults"][0].as_str().unwrap().contains("L1 table"),
        "{found}"
    );
}

/// Parts of a map that QEMU names alike: those of one kind that follow each other are one.
fn parts(lines: Vec<Value>) -> Vec<Value> {
    let mut parts: Vec<Value> = Vec::new();
    for line in lines {
        let is = |key: &str| line[key].as_bool().unwrap();
        let (start, length) = (
            line["start"].as_u64().unwrap(),
            line["length"].as_u64().unwrap(),
        );
        let at = if is("data") {
            line["offset"].as_u64()
        } else {
            None
        };
        let depth = if is("data") {
            line["depth"].clone()
        } else {
            json!(null)
        };
        let kind = json!([is("zero"), is("compressed"), depth]);
        if let Some(last) = parts.last_mut() {
            let before = last["length"].as_u64().unwrap();
            let follows = last["at"].as_u64().map(|at| at + before) == at;
            if last["kind"] == kind && follows {
                last["length"] = json!(before + length);
                continue;
            }
        }
        parts.push(json!({"start": start, "length": length, "at": at, "kind": kind}));
    }
    parts
}

#[test]
fn maps_are_those_of_qemu() {
    let place = Place::new();
    let base = File::create(place.path("base.img")).unwrap();
    base.set_len(4 << 20).unwrap();
    base.write_all_at(&vec![1; 1 << 20], 1 << 20).unwrap();
    base.sync_all().unwrap();
    let create = |disk: &str| assert!(place.run(&["disk", "create", disk]).status.success());
    create("qcow2:@/middle.qcow2,size=8M,backing=base.img,backing_format=raw");
    write(
        &place.path("middle.qcow2"),
        &[
            "write -P 2 512k 128k",
            "write -c -P 3 5M 64k",
            "write -z 1M 64k",
        ],
    );
    create("qcow2:@/top.qcow2,backing=middle.qcow2,backing_format=qcow2,cluster=4K");
    write(
        &place.path("top.qcow2"),
        &["write -P 4 516k 8k", "write -P 5 7M 4k"],
    );
    for (disk, format, file) in [
        ("qcow2:@/top.qcow2,backing=allow", "qcow2", "top.qcow2"),
        ("raw:@/base.img", "raw", "base.img"),
    ] {
        let output = place.run(&["--json", "disk", "map", disk]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let own = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let file = place.path(file);
        let theirs = qemu_json(&["map", "-f", format, file.to_str().unwrap()]);
        assert_eq!(
            parts(own),
            parts(theirs.as_array().unwrap().clone()),
            "{disk}"
        );
    }
    let output = place.run(&["disk", "map", "qcow2:@/top.qcow2,backing=allow"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(first.trim_start().starts_with("START"), "{text}");
    for word in [
        "data",
        "zero",
        "none",
        "compressed",
        "base.img",
        "middle.qcow2",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let said = place.refused(&["disk", "map", "qcow2:@/top.qcow2"], 1);
    assert!(said.contains("backing=allow"), "{said}");
}

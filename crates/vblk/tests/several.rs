// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several disks in one process: each has its options, its place in what is shown, and its own end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::{Value, json};
use vblk_testing::frontend::Client;
use vblk_testing::verify::{self, Config};

fn vblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(args)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(all).unwrap()
}

struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Served {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
            .args(["--json", "serve", "vhost-user"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    fn event(&mut self, event: &str) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["event"], event, "{line}");
        value
    }

    /// Ends it. Returns the exit code and its complaints.
    fn end(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let code = self.child.wait().unwrap().code();
        let mut said = String::new();
        let errors = self.child.stderr.as_mut().unwrap();
        errors.read_to_string(&mut said).unwrap();
        (code, said)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn two_disks_are_shown_and_changed_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b, control) = (path("a"), path("b"), path("control"));
    let mut served = Served::start(&[
        "--queues",
        "4",
        "--disk",
        "memory:32M",
        "--socket",
        &a,
        "--control",
        &control,
        "--disk",
        "memory:16M,dirty=changes",
        "--read-only",
        "--socket",
        &b,
        "--metrics",
        "127.0.0.1:0",
    ]);
    // What tells that drivers can come is last.
    let address = served.event("metrics")["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let first = served.event("listening");
    UnixStream::connect(&control).unwrap();
    assert_eq!(
        [&first["socket"], &first["queues"], &first["read_only"]],
        [&json!(a), &json!(4), &json!(false)]
    );
    let second = served.event("listening");
    assert_eq!(
        [&second["socket"], &second["queues"], &second["read_only"]],
        [&json!(b), &json!(4), &json!(true)]
    );
    verify::run(&Config::new(&a, 2000)).unwrap();
    assert_eq!(
        Client::connect(b.as_ref()).unwrap().capacity().unwrap(),
        32768
    );

    let ctl = |args: &[&str]| vblk(&[&["--json", "ctl", &control], args].concat());
    let value = |args: &[&str]| -> Value { serde_json::from_slice(&ctl(args).stdout).unwrap() };
    assert_eq!(value(&["disks"]), json!({"disks": [a, b]}));
    // Which one is meant must be said.
    for command in ["stats", "layers", "refresh"] {
        let refused = ctl(&[command]);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused);
        assert!(
            said.contains("--disk") && said.contains(&a) && said.contains(&b),
            "{said}"
        );
    }
    let said = text(&ctl(&["--disk", "c", "stats"]));
    assert!(said.contains("\\\"c\\\"") && said.contains(&b), "{said}");
    let stats = value(&["--disk", &a, "stats"]);
    assert_eq!(
        [&stats["name"], &stats["disk"]],
        [&json!(a), &json!("memory:32M")]
    );
    let reads = stats["total"]["ops"]["read"]["count"].as_u64().unwrap();
    assert!(reads > 0);
    assert_eq!(value(&["--disk", &b, "refresh"])["capacity"], 16 << 20);
    assert_eq!(
        value(&["--disk", &b, "layers", "none", "--drop-bitmaps"])["layers"],
        json!([])
    );
    // The other keeps its own: --metrics gave both a meter.
    assert_eq!(value(&["--disk", &a, "layers"])["layers"], json!(["meter"]));

    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    for (disk, bytes) in [(&a, 32 << 20), (&b, 16 << 20)] {
        let line = format!("vblk_capacity_bytes{{disk=\"{disk}\"}} {bytes}");
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    let counted = format!("vblk_operations_total{{disk=\"{a}\",");
    assert!(metrics.contains(&counted), "{metrics}");
    let top = text(&vblk(&[
        "top",
        &control,
        "--count",
        "1",
        "--interval",
        "0.01",
    ]));
    for line in [
        format!("{a}  memory:32M  32 MiB"),
        format!("{b}  memory:16M  16 MiB"),
    ] {
        assert!(top.contains(&line), "{top}");
    }
    assert_eq!(served.end(), (Some(0), String::new()));
    assert!(!dir.path().join("a").exists() && !dir.path().join("b").exists());
}

#[test]
fn one_that_can_not_be_served_does_not_stop_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b) = (path("a"), path("b"));
    let gone = format!("raw:{}", path("gone"));
    let mut served = Served::start(&[
        "--queues",
        "4",
        "--disk",
        &gone,
        "--socket",
        &a,
        "--disk",
        "memory:16M",
        "--socket",
        &b,
    ]);
    assert_eq!(served.event("listening")["socket"], b);
    verify::run(&Config::new(&b, 500)).unwrap();
    let (code, said) = served.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&gone) && said.contains("No such file"),
        "{said}"
    );
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(
        [&last["event"], &last["message"]],
        [&json!("error"), &json!("1 of 2 disks failed")]
    );
}

#[test]
fn wrong_groups_are_refused() {
    for (args, code, word) in [
        // One name for two.
        (
            &[
                "--socket",
                "/tmp/x",
                "--disk",
                "memory:1M",
                "--disk",
                "memory:1M",
                "--socket",
                "/tmp/y",
            ][..],
            2,
            "--socket",
        ),
        (
            &[
                "--disk",
                "memory:1M",
                "--socket",
                "/tmp/x",
                "--disk",
                "memory:1M",
            ],
            2,
            "--socket",
        ),
        (
            &[
                "--disk",
                "memory:1M",
                "--socket",
                "/tmp/x",
                "--control",
                "/tmp/1",
                "--disk",
                "memory:1M",
                "--socket",
                "/tmp/y",
                "--control",
                "/tmp/2",
            ],
            1,
            "--control",
        ),
        (
            &[
                "--disk",
                "raw:/gone/1",
                "--socket",
                "/tmp/x",
                "--disk",
                "raw:/gone/2",
                "--socket",
                "/tmp/y",
            ],
            1,
            "none of the disks",
        ),
    ] {
        let output = vblk(&[&["serve", "vhost-user"], args].concat());
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

/// What only one disk can have is refused by its name, and nobody else is blamed for it.
#[test]
fn what_two_disks_can_not_share_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, link, a, b) = (path("disk.img"), path("link.img"), path("a"), path("b"));
    std::fs::File::create(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    std::fs::hard_link(&image, &link).unwrap();
    let (disk, linked) = (format!("raw:{image}"), format!("raw:{link}"));
    for second in [&disk, &linked] {
        let mut served = Served::start(&[
            "--disk", &disk, "--socket", &a, "--disk", second, "--socket", &b,
        ]);
        served.event("listening");
        let (code, said) = served.end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("which this process serves already"), "{said}");
        assert!(!said.contains("another process"), "{said}");
    }
    let refused = |args: &[&str], words: &str| {
        let output = vblk(&[&["serve", "vhost-user"], args].concat());
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    };
    refused(
        &[
            "--disk",
            "memory:1M",
            "--socket",
            &a,
            "--disk",
            "memory:1M",
            "--socket",
            &a,
        ],
        "is there for two disks",
    );
    refused(
        &["--disk", "memory:1M", "--socket", &a, "--control", &a],
        "is also the --control socket",
    );
}

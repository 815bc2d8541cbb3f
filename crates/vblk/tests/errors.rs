// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What fails on the host is seen: in the log, in `vblk ctl stats`, in the metrics; and a guest can't fill the log with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod exposition;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::{Server, guest};
use serde_json::Value;
use vblk_testing::frontend::Queue;
use virtio_blk_driver::request::Request;

/// Runs requests that all fail.
fn fail(queue: &mut Queue, requests: impl Iterator<Item = Request<'static>>) {
    for request in requests {
        assert!(!queue.run(&request).unwrap().is_ok());
    }
}

/// Ends a server and returns the messages of its log.
fn log_of(server: Server) -> Vec<String> {
    server.signal(libc::SIGTERM);
    let (status, said) = server.end();
    assert!(status.success(), "{said}");
    let lines = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| line["message"].as_str().unwrap().to_owned())
        .collect()
}

fn metrics(address: &str) -> Vec<exposition::Family> {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    exposition::parse(body).unwrap_or_else(|why| panic!("{why}\n{body}"))
}

const DATA: [u8; 4096] = [1; 4096];

#[test]
fn the_first_error_of_each_kind_is_logged_and_the_rest_is_counted() {
    let args = [
        "--json",
        "--metrics",
        "127.0.0.1:0",
        "--disk",
        "memory:1M,fault=errors:1000",
    ];
    let mut server = Server::spawn(&args, None, None);
    let address = server.metrics_address();
    server.event("listening");
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    fail(
        &mut queue,
        (16..216).map(|sector| Request::write(sector, &DATA)),
    );
    fail(&mut queue, (8..18).map(|sector| Request::read(sector, 512)));
    fail(&mut queue, [Request::flush()].into_iter());

    let stats = server.ask(&["stats"]);
    let of = |operation: &str| {
        let errors = stats["errors"].as_array().unwrap();
        errors
            .iter()
            .find(|one| one["operation"] == operation)
            .unwrap()
            .clone()
    };
    assert_eq!(stats["errors"].as_array().unwrap().len(), 3, "{stats}");
    for (operation, count) in [("write", 200), ("read", 10), ("flush", 1)] {
        let errors = of(operation);
        assert_eq!(errors["count"], count, "{stats}");
        assert_eq!(
            [&errors["error"], &errors["errno"]],
            [&Value::from("EIO"), &5.into()]
        );
    }
    let last = of("write")["last"].as_str().unwrap().to_owned();
    assert!(
        last.starts_with("write of 4096 bytes at byte 110080 failed"),
        "{last}"
    );
    assert_eq!(stats["flush_error"], Value::Null);
    let table = String::from_utf8(server.ctl(&["stats"]).stdout).unwrap();
    assert!(
        table.contains("errors: 200 of the kind write, EIO"),
        "{table}"
    );
    assert!(table.contains("last error: flush failed"), "{table}");

    let families = metrics(&address);
    let family = |name: &str| families.iter().find(|family| family.name == name).unwrap();
    let writes = family("vblk_failures")
        .samples
        .iter()
        .find(|one| [one.label("operation"), one.label("error")] == [Some("write"), Some("EIO")]);
    assert_eq!(writes.unwrap().value, 200.0);
    let last = &family("vblk_last_failure_time_seconds").samples;
    assert_eq!((last.len(), last[0].label("operation")), (1, Some("flush")));
    assert!(last[0].value > 1.7e9);
    assert_eq!(family("vblk_flush_lost").samples[0].value, 0.0);

    drop(client);
    let log = log_of(server);
    let lines = |words: &[&str]| {
        let has = |line: &&String| words.iter().all(|word| line.contains(word));
        log.iter().filter(has).count()
    };
    let first = [
        "write of 4096 bytes at byte 8192 failed",
        "Input/output error",
        "EIO",
    ];
    assert_eq!(lines(&first), 1, "{log:?}");
    assert_eq!(
        lines(&["read of 512 bytes at byte 4096 failed"]),
        1,
        "{log:?}"
    );
    assert_eq!(lines(&["flush failed"]), 1, "{log:?}");
    assert_eq!(
        lines(&["199 more errors of the kind write, EIO", "byte 110080"]),
        1,
        "{log:?}"
    );
    assert_eq!(lines(&["9 more errors of the kind read"]), 1, "{log:?}");
    assert_eq!(log.len(), 5, "{log:?}");
}

/// The host's own error, from a limit that holds for the server alone.
#[test]
fn a_file_that_may_not_grow_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("disk.img"), dir.path().join("socket"));
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let mut child = Command::new("sh")
        .args([
            "-c",
            "ulimit -f 64; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_vblk"),
        ])
        .args(["--json", "serve", "vhost-user", "--disk"])
        .arg(format!("raw:{},mmap=off", disk.display()))
        .arg("--socket")
        .arg(&socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut one = [0];
    // It listens.
    child.stdout.as_mut().unwrap().read_exact(&mut one).unwrap();
    let mut client = vblk_testing::frontend::Client::connect(&socket).unwrap();
    let (_guest, mut queue) = guest(&mut client);
    fail(
        &mut queue,
        (1000..1500).map(|sector| Request::write(sector, &DATA)),
    );
    drop(client);
    let pid = child.id().try_into().unwrap();
    // SAFETY: plain kill(2), of a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    for words in [
        "write of 4096 bytes at byte 512000 failed",
        "File too large",
        "EFBIG",
        "499 more",
        "ulimit -f",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.lines().count() <= 4, "{said}");
}

#[test]
fn a_driver_that_breaks_its_queue_again_and_again_does_not_fill_the_log() {
    let server = Server::start(&["--disk", "memory:1M"]);
    let mut client = server.connect();
    let (_guest, queue) = guest(&mut client);
    let broken = || {
        let stats = server.ask(&["stats"]);
        let error = &stats["errors"][0];
        assert!(error.is_null() || error["operation"] == "queue", "{stats}");
        error["count"].as_u64().unwrap_or(0)
    };
    // A queue that is stopped at once does not always come to see its ring.
    while broken() <= 500 {
        for _ in 0..100 {
            client.stop(0).unwrap();
            // More requests than the ring has room for.
            client.start(0, &queue, 1000).unwrap();
        }
    }
    drop(client);
    let log = log_of(server);
    let has = |word: &str| log.iter().any(|line| line.contains(word));
    assert!(log.len() < 300, "{} lines", log.len());
    assert!(
        has("queue 0") && has("more errors of the kind queue, broken"),
        "{log:?}"
    );
}

#[test]
fn operations_that_are_held_are_shown() {
    let disk = "memory:1M,fault=errors:1000,werror=stop";
    let mut server = Server::spawn(
        &["--json", "--metrics", "127.0.0.1:0", "--disk", disk],
        None,
        None,
    );
    let address = server.metrics_address();
    server.event("listening");
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    for sector in 0..3 {
        queue.driver.submit(&Request::write(sector, &DATA)).unwrap();
    }
    queue.publish().unwrap();
    let said = server.complaint("is held");
    assert!(
        said.contains("a write of 4096 bytes at byte 0 is held") && said.contains("resume"),
        "{said}"
    );
    while server.ask(&["stats"])["held"]["operations"] != 3 {}
    let families = metrics(&address);
    let held = families
        .iter()
        .find(|family| family.name == "vblk_held_operations")
        .unwrap();
    assert_eq!(held.samples[0].value, 3.0);
    let table = String::from_utf8(server.ctl(&["stats"]).stdout).unwrap();
    assert!(table.contains("held: 3 operations that failed"), "{table}");
}

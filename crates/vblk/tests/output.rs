// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is printed, and where it can't be: output that nobody takes neither ends nor holds up a server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use common::{Server, guest, vblk};
use serde_json::{Value, json};

fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// A pipe without a reader.
fn unread() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A pipe that has no room, and its reader.
fn clogged() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    // SAFETY: plain fcntl(2) on a descriptor that is open.
    let len = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    writer
        .write_all(&vec![b'x'; len.try_into().unwrap()])
        .unwrap();
    (reader, writer)
}

/// Serves a driver and ends in order.
fn assert_serves(server: Server) {
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    queue.write(0, &[7; 4096]).unwrap();
    assert_eq!(queue.read(0, 4096).unwrap(), [7; 4096]);
    // Something goes wrong, and is logged.
    drop(client);
    server.signal(libc::SIGTERM);
    assert_eq!(server.end().0.code(), Some(0));
}

#[test]
fn a_server_whose_output_fails_serves_on() {
    for json in [&["--json"][..], &[]] {
        let args = [
            json,
            &["-vvv", "--metrics", "127.0.0.1:0", "--disk", "memory:1M"],
        ]
        .concat();
        let spawn = |out, errors| Server::spawn(&args, Some(out), Some(errors));
        assert_serves(spawn(full(), full()));
        assert_serves(spawn(unread(), unread()));
    }
}

#[test]
fn a_server_whose_log_is_not_read_serves_on() {
    let (reader, writer) = clogged();
    let server = Server::spawn(&["-vvv", "--disk", "memory:1M"], None, Some(writer.into()));
    assert_serves(server);
    drop(reader);
}

#[test]
fn commands_say_that_their_output_is_full() {
    for args in [
        &["disk", "info", "memory:1M"][..],
        &["--json", "disk", "info", "memory:1M"],
        &["features"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vblk"));
        let output = command.args(args).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("standard output can't be written: No space left"),
            "{said}"
        );
    }
}

#[test]
fn commands_whose_reader_has_gone_end_as_by_sigpipe_without_a_word() {
    let server = Server::start(&["--disk", "memory:1M"]);
    let control = server.control();
    for args in [
        &["disk", "info", "memory:1M"][..],
        &["--json", "features"],
        &["ctl", &control, "stats"],
        &["--json", "ctl", &control, "disks"],
        &["top", &control, "--interval", "0.01"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vblk"));
        let output = command.args(args).stdout(unread()).output().unwrap();
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGPIPE),
            "{args:?}: {output:?}"
        );
        assert_eq!(output.stderr, b"", "{args:?}");
    }
}

#[test]
fn errors_keep_their_status_where_they_can_not_be_said() {
    for (args, status) in [
        (&["disk", "info", "raw:/nonexistent"][..], 1),
        (&["frobnicate"], 2),
    ] {
        for errors in [full(), unread()] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vblk"));
            let output = command.args(args).stderr(errors).output().unwrap();
            assert_eq!(output.status.code(), Some(status), "{args:?}");
        }
    }
}

#[test]
fn errors_are_objects_with_json() {
    let error = |args: &[&str]| -> Value {
        let output = vblk(args);
        assert_eq!(output.stdout, b"");
        let value: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(
            output.status.code().map(i64::from),
            value["status"].as_i64()
        );
        value
    };
    let gone = error(&["--json", "disk", "info", "raw:/nonexistent"]);
    let message = gone["message"].as_str().unwrap();
    assert!(message.contains("/nonexistent: No such file"), "{message}");
    assert_eq!(
        gone,
        json!({"event": "error", "kind": "failed", "message": message, "errno": libc::ENOENT, "status": 1})
    );
    let usage = error(&["frobnicate", "--json"]);
    assert_eq!(
        [&usage["kind"], &usage["status"]],
        [&json!("usage"), &json!(2)]
    );
    assert_eq!(usage["errno"], Value::Null);
    let control = error(&["--json", "ctl", "/nonexistent/c", "stats"]);
    assert_eq!(control["errno"], libc::ENOENT);
}

#[test]
fn the_log_is_objects_with_json() {
    let server = Server::spawn(&["--json", "-v", "--disk", "memory:1M"], None, None);
    drop(server.connect());
    server.signal(libc::SIGTERM);
    let (status, said) = server.end();
    assert!(status.success(), "{said}");
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(!lines.is_empty());
    assert!(
        lines
            .iter()
            .all(|line| line["event"] == "log" && line["level"].is_string()),
        "{said}"
    );
}

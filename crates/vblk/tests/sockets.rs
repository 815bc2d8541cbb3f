// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How `vblk serve vhost-user` listens, and how many descriptors it has for its queues.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use vblk_testing::frontend::{Client, Guest};

/// A server that listens, started by a shell that does `before` it.
struct Server(Child);

impl Server {
    fn start(before: &str, args: &[&str]) -> Self {
        let mut child = command(before, args).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mut this = Self(child);
        if !line.contains("listening") {
            panic!("{line}{}", this.complaint());
        }
        this
    }

    fn complaint(&mut self) -> String {
        let mut said = String::new();
        let errors = self.0.stderr.as_mut().unwrap();
        errors.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(before: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{before} exec \"$@\""))
        .args(["sh", env!("CARGO_BIN_EXE_vblk"), "--json", "serve"])
        .args(["vhost-user", "--disk", "memory:1M"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn refused(before: &str, args: &[&str]) -> String {
    let Output { status, stderr, .. } = command(before, args).output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && said.lines().count() == 1, "{said}");
    said
}

#[test]
fn mode_and_group() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let path = socket.to_str().unwrap();
    let file = || std::fs::symlink_metadata(&socket).unwrap();
    let group = file_group(&dir).to_string();
    for (umask, args, mode) in [
        ("umask 077;", vec![], 0o700),
        ("umask 077;", vec!["--socket-mode", "666"], 0o666),
        ("umask 0;", vec!["--socket-mode", "600"], 0o600),
        ("umask 0;", vec!["--socket-group", &group], 0o660),
    ] {
        let server = Server::start(umask, &[&["--socket", path][..], &args].concat());
        assert_eq!(file().mode() & 0o777, mode, "{args:?}");
        assert!(file().file_type().is_socket());
        drop(server);
    }
    for (option, value, word) in [
        ("--socket-mode", "888", "octal"),
        ("--socket-mode", "1777", "octal"),
        ("--socket-group", "no-such-group", "no group"),
        ("--socket", "fd:x", "descriptor"),
        ("--socket", "fd:1000", "no unix stream socket"),
        ("--socket", "fd:0", "no unix stream socket"),
    ] {
        let mut args = vec![option, value];
        if option != "--socket" {
            args.extend(["--socket", path]);
        }
        let said = refused("exec </dev/null;", &args);
        assert!(said.contains(word), "{said}");
    }
}

/// A group that this process may give files to.
fn file_group(dir: &tempfile::TempDir) -> u32 {
    std::fs::metadata(dir.path()).unwrap().gid()
}

#[test]
fn a_socket_that_is_passed_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let socket = format!("fd:{}", listener.as_raw_fd());
    // It waits where it was made, also while no server is there.
    for _ in 0..2 {
        let server = Server::start("", &["--socket", &socket]);
        assert_eq!(Client::connect(&path).unwrap().capacity().unwrap(), 2048);
        drop(server);
    }
    assert!(path.exists());
}

#[test]
fn as_many_queues_as_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let path = socket.to_str().unwrap();
    let args = ["--socket", path, "--queues", "50"];
    // The soft limit does not count.
    let server = Server::start("ulimit -Sn 100;", &args);
    let mut client = Client::connect(&socket).unwrap();
    let mut guest = Guest::new(&[(0, 8 << 20)]).unwrap();
    client.set_memory(&guest).unwrap();
    let mut queues = Vec::new();
    for index in 0..50 {
        let queue = guest.queue(4, 512, 0).unwrap();
        client.start(index, &queue, 0).unwrap();
        queues.push(queue);
    }
    for queue in &mut queues {
        queue.write(0, &[1; 512]).unwrap();
    }
    drop((client, server));
    // It was killed, so its socket is there.
    std::fs::remove_file(&socket).unwrap();
    let said = refused("ulimit -n 400;", &args);
    assert!(
        said.contains("50 queues") && said.contains("ulimit"),
        "{said}"
    );
    assert!(!socket.exists());
}

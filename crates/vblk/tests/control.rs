// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control socket and those who talk to it: `vblk ctl` and `vblk top`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::ptr::null_mut;

use common::{Server, guest, vblk};
use serde_json::Value;

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), &output.stderr].concat()).unwrap()
}

/// One line on standard error with these words, and status 1.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn statistics_are_a_table_for_people() {
    let server = Server::start(&[
        "--disk",
        "memory:1M,throttle=iops:1000000,dirty=backup,meter",
    ]);
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    for sector in 0..10 {
        queue.write(sector * 8, &[1; 4096]).unwrap();
    }
    let output = server.ctl(&["stats"]);
    let table = said(&output);
    assert!(output.status.success(), "{table}");
    for word in [
        "memory:1M  1 MiB",
        "ops       bytes",
        "p99.99",
        "throttle=iops:1000000: 0 waiting",
        "dirty backup: 1 MiB, incomplete: all counts as changed",
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let write = table
        .lines()
        .find(|line| line.trim_start().starts_with("write "))
        .unwrap();
    let words: Vec<_> = write.split_whitespace().collect();
    assert_eq!(words[..4], ["write", "10", "40", "KiB"], "{table}");
}

#[test]
fn another_socket_is_told_from_a_control_socket() {
    let mut server = Server::spawn(&["-v", "--json", "--disk", "memory:1M"], None, None);
    server.event("listening");
    let socket = server.socket();
    let refused = vblk(&["ctl", socket.to_str().unwrap(), "stats"]);
    assert_refused(&refused, &["no control socket", "--control", "--socket"]);
    // While it has a client, it takes no other.
    let client = server.connect();
    let refused = vblk(&["ctl", socket.to_str().unwrap(), "stats"]);
    assert_refused(&refused, &["no control socket", "it said nothing"]);
    let refused = vblk(&["top", socket.to_str().unwrap()]);
    assert_refused(&refused, &["no control socket"]);
    let file = vblk(&["ctl", "/dev/null", "stats"]);
    assert_refused(&file, &["/dev/null is not a socket", "--control"]);
    drop(client);
    server.signal(libc::SIGTERM);
    let (status, log) = server.end();
    assert!(status.success());
    assert!(
        !log.contains("\"warn\"") && !log.contains("\"error\""),
        "{log}"
    );
}

#[test]
fn a_server_that_takes_no_connections_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: plain listen(2) on a socket that listens, for room of its choice.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let _one = UnixStream::connect(&path).unwrap();
    let refused = vblk(&["ctl", path.to_str().unwrap(), "stats"]);
    assert_refused(&refused, &["takes no more connections"]);
}

#[test]
fn clients_beyond_the_last_are_told() {
    let server = Server::start(&["--disk", "memory:1M"]);
    let mut idle: Vec<UnixStream> = (0..64)
        .map(|_| UnixStream::connect(server.control()).unwrap())
        .collect();
    assert_refused(&server.ctl(&["stats"]), &["64 clients", "try again later"]);
    // With one gone, there is room.
    let mut gone = idle.pop().unwrap();
    gone.write_all(b"{\"command\":\"disks\"}\n").unwrap();
    let mut gone = BufReader::new(gone);
    gone.read_line(&mut String::new()).unwrap();
    gone.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(gone.read(&mut [0]).unwrap(), 0);
    drop(gone);
    while !server.ctl(&["stats"]).status.success() {}
}

#[test]
fn a_line_that_is_too_long_is_told() {
    let server = Server::start(&["--disk", "memory:1M"]);
    let mut stream = UnixStream::connect(server.control()).unwrap();
    // The server may close before it has all.
    let _ = stream.write_all(&[b' '; 64 << 10]);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("longer than 65536 bytes"), "{line}");
}

#[test]
fn control_sockets_that_can_not_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let serve = |control: &str| {
        let socket = path("socket");
        vblk(&[
            "serve",
            "vhost-user",
            "--disk",
            "memory:1M",
            "--socket",
            &socket,
            "--control",
            control,
        ])
    };
    let file = path("precious");
    std::fs::write(&file, "precious").unwrap();
    assert_refused(&serve(&file), &["--control", &file, "is not a socket"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert_refused(&serve(&path("")), &["--control", "is not a socket"]);
    assert_refused(&serve(&path("no/c")), &["--control", "No such file"]);
    assert_refused(&serve(&path(&"x".repeat(150))), &["--control"]);
    let taken = path("taken");
    let listener = UnixListener::bind(&taken).unwrap();
    assert_refused(
        &serve(&taken),
        &["--control", &taken, "in use by another server"],
    );
    drop(listener);
    // Its server is dead: it is replaced.
    let server = Server::spawn(&["--json", "--disk", "memory:1M"], None, None);
    drop(server);
}

#[test]
fn a_control_socket_that_another_server_took_over_is_left_alone() {
    let first = Server::start(&["--disk", "memory:1M"]);
    let control = first.control();
    std::fs::remove_file(&control).unwrap();
    let _second = UnixListener::bind(&control).unwrap();
    first.signal(libc::SIGTERM);
    // The directory goes with the server: look before.
    let mut first = first;
    assert!(first.child.wait().unwrap().success());
    assert!(std::path::Path::new(&control).exists());
}

/// `vblk top` on a terminal, and the terminal's other end.
fn top(server: &Server) -> (Child, File) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: openpty(3) fills two descriptors in; it takes null for all else.
    let made = unsafe { libc::openpty(&mut ours, &mut theirs, null_mut(), null_mut(), null_mut()) };
    assert_eq!(made, 0);
    // SAFETY: both are open and nobody else's.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let stdio = || Stdio::from(theirs.try_clone().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_vblk"));
    command.args(["top", &server.control(), "--interval", "0.01"]);
    command.stdin(stdio()).stdout(stdio()).stderr(stdio());
    // SAFETY: setsid(2) and ioctl(2) are async-signal-safe; standard input is the terminal.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    (command.spawn().unwrap(), ours.into())
}

/// Reads what appears on a terminal up to this word.
fn read_to(terminal: &mut File, word: &str) {
    let mut shown = Vec::new();
    loop {
        let mut part = [0; 4096];
        let read = terminal.read(&mut part).unwrap();
        shown.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&shown);
        if text.contains(word) {
            return;
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// Whether lines come whole and are echoed.
fn is_as_usual(terminal: &File) -> bool {
    // SAFETY: all bytes zero are a value of the type.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: plain tcgetattr(3) on a descriptor that is open.
    let got = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut modes) };
    assert_eq!(got, 0);
    modes.c_lflag & (libc::ICANON | libc::ECHO) == libc::ICANON | libc::ECHO
}

#[test]
fn top_ends_at_q_and_at_an_interrupt() {
    let server = Server::start(&["--disk", "memory:1M,meter"]);
    // The second is Ctrl-C.
    for key in [b"q", b"\x03"] {
        let (mut child, mut terminal) = top(&server);
        read_to(&mut terminal, "q ends");
        assert!(!is_as_usual(&terminal));
        terminal.write_all(key).unwrap();
        // A terminal whose last user has gone can't be read: EIO.
        while terminal.read(&mut [0; 4096]).is_ok() {}
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(is_as_usual(&terminal));
    }
}

#[test]
fn top_survives_a_server_that_restarts() {
    let mut server = Server::start(&["--disk", "memory:1M,meter"]);
    let control = server.control();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(["--json", "top", &control, "--interval", "0.01"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |is: &dyn Fn(&Value) -> bool| {
        while !is(&serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()) {}
    };
    until(&|line| line["disk"] == "memory:1M");
    server.kill();
    until(&|line| line["socket"] == *control && line["error"].is_string());
    let again = Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args([
            "serve",
            "vhost-user",
            "--disk",
            "memory:2M,meter",
            "--control",
            &control,
        ])
        .arg("--socket")
        .arg(server.socket())
        .stderr(Stdio::null())
        .spawn();
    server.child = again.unwrap();
    until(&|line| line["disk"] == "memory:2M" && line["interval"].is_number());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wrong_requests_get_errors_and_change_nothing() {
    let served = Server::of("memory:1M,meter");
    for (set, word) in [
        ("metre", "`metre`"),
        ("meter,meter", "twice"),
        ("throttle=iops:x", "`x`"),
        ("meter,verify", "from the start"),
    ] {
        let said = served.refused(&["layers", set]);
        assert!(said.contains(word), "{set}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let mut stream = UnixStream::connect(served.control()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in [
        "rubbish",
        "{}",
        "[1]",
        "{\"command\":\"fly\"}",
        "{\"command\":\"layers\",\"set\":7}",
        "{\"command\":\"dirty\"}",
        "{\"command\":\"stats\",\"more\":1}",
        "{\"command\":\"drain\",\"hold\":4000}",
        "{\"command\":\"resize\",\"bytes\":-1}",
        "{\"command\":\"dirty\",\"bitmap\":\"a\",\"take\":true,\"load\":\"/x\"}",
        "\u{0}",
    ] {
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].is_string(), "{line}: {answer}");
    }
    // A line without an end is not kept for ever.
    let mut endless = UnixStream::connect(served.control()).unwrap();
    let closed = (0..64).any(|_| endless.write_all(&[b' '; 4096]).is_err())
        || endless.read(&mut [0]).is_ok_and(|read| read == 0);
    assert!(closed);
    assert_eq!(
        served.ask(&["layers"]),
        serde_json::json!({"layers": ["meter"], "settled": true})
    );
    let refreshed = served.ask(&["refresh"]);
    assert_eq!(refreshed["capacity"], 1 << 20);
    let mode = std::fs::metadata(served.control())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn nobody_to_talk_to_is_one_line() {
    for args in [
        &["ctl", "/nonexistent/c", "stats"][..],
        &["top", "/nonexistent/c"],
    ] {
        let output = vblk(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("--control") && said.lines().count() == 1,
            "{said}"
        );
    }
}

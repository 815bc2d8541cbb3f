// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line: each error is one line and an exit code, and a server starts and ends in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vblk_testing::frontend::{Client, Guest, PATIENCE};

fn vblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(args)
        .output()
        .unwrap()
}

/// One line on standard error that has all of these words, and this exit code.
fn assert_refused(args: &[&str], code: i32, words: &[&str]) {
    let output = vblk(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("vblk: "), "{args:?}: {said}");
    assert!(!said.contains("panicked"), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: {said}");
    }
    assert_eq!(output.stdout, b"", "{args:?}");
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn image(&self, len: u64) -> String {
        let path = self.path("disk.raw");
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

/// A server that listens.
struct Server {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    socket: PathBuf,
}

impl Server {
    fn start(disk: &str, socket: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
            .args([
                "--json",
                "serve",
                "vhost-user",
                "--disk",
                disk,
                "--socket",
                socket,
            ])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(
            line.starts_with('{') && line.contains("\"event\":\"listening\""),
            "{line}"
        );
        Self {
            child,
            output,
            socket: socket.into(),
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end. Returns the exit code, what it said, and its complaints.
    fn end(mut self) -> (Option<i32>, String, String) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(1));
        };
        let (mut said, mut complaints) = (String::new(), String::new());
        self.output.read_to_string(&mut said).unwrap();
        let errors = self.child.stderr.as_mut().unwrap();
        errors.read_to_string(&mut complaints).unwrap();
        (status.code(), said, complaints)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `args` prints, as JSON.
fn json(args: &[&str]) -> serde_json::Value {
    let output = vblk(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `args` prints, as JSON with these fields.
fn assert_json(args: &[&str], fields: &[&str]) {
    let value = json(args);
    for field in fields {
        assert!(value.get(field).is_some(), "{field} in {value}");
    }
}

#[test]
fn bad_command_lines() {
    let place = Place::new();
    let socket = &place.path("socket");
    let serve = |disk, more: &[&'static str]| -> Vec<String> {
        ["serve", "vhost-user", "--disk", disk, "--socket", socket]
            .iter()
            .chain(more)
            .map(|arg| (*arg).to_owned())
            .collect()
    };
    let refused = |args: Vec<String>, code, words: &[&str]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_refused(&args, code, words);
    };
    assert_refused(&["disk", "info", "vdpa:"], 2, &["vdpa:/dev/vhost-vdpa-N"]);
    let gone = "vdpa:/dev/vhost-vdpa-none";
    assert_refused(
        &["disk", "info", gone],
        1,
        &["/dev/vhost-vdpa-none", "No such file"],
    );
    // Some other device says itself that it is none.
    assert_refused(&["disk", "info", "vdpa:/dev/null"], 1, &["VHOST_SET_OWNER"]);
    assert_refused(&["frobnicate"], 2, &["frobnicate"]);
    assert_refused(&["serve", "vhost-user"], 2, &["--disk", "--socket"]);
    assert_refused(&["disk", "info"], 2, &["<DISK>"]);
    assert_refused(&["--jsn", "features"], 2, &["--jsn", "--json"]);
    refused(
        serve("disk.img", &[]),
        2,
        &["raw:disk.img", "another format"],
    );
    refused(serve("qcow:disk.img", &[]), 2, &["qcow", "qcow2"]);
    refused(serve("raw:", &[]), 2, &["raw:PATH"]);
    refused(serve("raw:x,direct=perhaps", &[]), 2, &["direct", "on"]);
    refused(serve("raw:x,colour=red", &[]), 2, &["colour"]);
    refused(serve("memory:1000", &[]), 2, &["512"]);
    refused(serve("memory:99999999999T", &[]), 2, &["99999999999T"]);
    refused(
        serve("memory:1M", &["--queues", "0"]),
        2,
        &["--queues", "1"],
    );
    refused(
        serve("memory:1M", &["--queues", "257"]),
        2,
        &["--queues", "256"],
    );
    refused(
        serve("memory:1M", &["--queue-size", "100"]),
        1,
        &["100", "power of two"],
    );
    refused(
        serve("memory:1M", &["--queue-size", "70000"]),
        2,
        &["70000"],
    );
    let long = ["--serial", "123456789012345678901"];
    refused(serve("memory:1M", &long), 1, &["20"]);
    assert!(!Path::new(socket).exists());
}

#[test]
fn help_and_versions_are_no_errors() {
    for args in [
        &["--help"][..],
        &["serve", "vhost-user", "--help"],
        &["--version"],
    ] {
        let output = vblk(args);
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{args:?}"
        );
        assert_eq!(output.stderr, b"");
    }
}

#[test]
fn what_is_printed_as_json_parses() {
    let place = Place::new();
    let disk = format!("raw:{}", place.image(1 << 20));
    let fields = ["bytes", "sectors", "logical_block", "read_only", "discard"];
    assert_json(&["--json", "disk", "info", &disk], &fields);
    assert_json(&["disk", "info", "memory:1M", "--json"], &fields);
    assert_json(&["--json", "features"], &[]);
    assert_json(&["--json", "features", "--disk", &disk], &[]);
}

#[test]
fn unusable_images() {
    let place = Place::new();
    let socket = &place.path("socket");
    let refused = |disk: &str, words: &[&str]| {
        let serve = ["serve", "vhost-user", "--disk", disk, "--socket", socket];
        assert_refused(&serve, 1, words);
        assert_refused(&["disk", "info", disk], 1, words);
    };
    let missing = place.path("missing");
    refused(&format!("raw:{missing}"), &[&missing, "No such file"]);
    refused(&format!("raw:{}", place.0.path().display()), &["directory"]);
    let odd = place.image(1000);
    // It can be read, though not written.
    let disk = &format!("raw:{odd}");
    let serve = ["serve", "vhost-user", "--disk", disk, "--socket", socket];
    assert_refused(&serve, 1, &[&odd, "512", "readonly=on"]);
    let shown = vblk(&["--json", "disk", "info", disk]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("\"read_only\":true"), "{shown}");
    refused("raw:/dev/null", &["/dev/null"]);
    assert!(!Path::new(socket).exists());
}

#[test]
fn sockets_in_use() {
    let place = Place::new();
    let socket = &place.path("socket");
    let serve = [
        "serve",
        "vhost-user",
        "--disk",
        "memory:1M",
        "--socket",
        socket,
    ];
    // By something that is no socket: it is left alone.
    std::fs::write(socket, "precious").unwrap();
    assert_refused(&serve, 1, &[socket, "not a socket"]);
    assert_eq!(std::fs::read(socket).unwrap(), b"precious");
    std::fs::remove_file(socket).unwrap();
    // By a server that is dead: it is replaced.
    drop(UnixListener::bind(socket).unwrap());
    let server = Server::start("memory:1M", socket, &[]);
    // By one that lives.
    assert_refused(&serve, 1, &[socket, "in use"]);
    assert_eq!(
        Client::connect(&server.socket).unwrap().capacity().unwrap(),
        2048
    );
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
    // In a directory that is not there, or with a name that is too long.
    let nowhere = &place.path("no/socket");
    let serve = [
        "serve",
        "vhost-user",
        "--disk",
        "memory:1M",
        "--socket",
        nowhere,
    ];
    assert_refused(&serve, 1, &[nowhere]);
    let long = &place.path(&"x".repeat(150));
    let serve = [
        "serve",
        "vhost-user",
        "--disk",
        "memory:1M",
        "--socket",
        long,
    ];
    assert_refused(&serve, 1, &[long]);
}

#[test]
fn a_socket_that_another_server_took_over_is_left_alone() {
    let place = Place::new();
    let socket = place.path("socket");
    let first = Server::start("memory:1M", &socket, &[]);
    std::fs::remove_file(&socket).unwrap();
    let second = Server::start("memory:2M", &socket, &[]);
    first.signal("-TERM");
    assert_eq!(first.end().0, Some(0));
    assert_eq!(
        Client::connect(&second.socket).unwrap().capacity().unwrap(),
        4096
    );
}

#[test]
fn images_in_use_and_read_only() {
    let place = Place::new();
    let image = place.image(1 << 20);
    let disk = &format!("raw:{image}");
    let other = &place.path("other");
    let server = Server::start(disk, &place.path("socket"), &[]);
    let serve = ["serve", "vhost-user", "--disk", disk, "--socket", other];
    assert_refused(&serve, 1, &[&image, "locked"]);
    let read_only = [
        "serve",
        "vhost-user",
        "--disk",
        disk,
        "--socket",
        other,
        "--read-only",
    ];
    assert_refused(&read_only, 1, &[&image, "locked"]);
    // Looking at it is allowed.
    assert_json(&["--json", "disk", "info", disk], &["bytes"]);
    server.signal("-INT");
    assert_eq!(server.end().0, Some(0));
    // Readers share it.
    let one = Server::start(disk, &place.path("socket"), &["--read-only"]);
    let two = Server::start(disk, other, &["--read-only"]);
    const RO: u64 = 1 << 5;
    for server in [&one, &two] {
        let client = Client::connect(&server.socket).unwrap();
        assert!(client.offered & RO != 0);
    }
}

#[test]
fn sigterm_drains_and_cleans_up() {
    let place = Place::new();
    let disk = &format!("raw:{}", place.image(1 << 20));
    let server = Server::start(disk, &place.path("socket"), &["--queues", "2"]);
    let mut client = Client::connect(&server.socket).unwrap();
    let mut guest = Guest::new(&[(0, 4 << 20)]).unwrap();
    client.set_memory(&guest).unwrap();
    let mut queue = guest.queue(64, 4096, 0).unwrap();
    client.start(0, &queue, 0).unwrap();
    queue.write(0, &[1; 4096]).unwrap();
    for sector in 0..20 {
        let data = [2; 4096];
        queue
            .driver
            .submit(&virtio_blk_driver::request::Request::write(sector, &data))
            .unwrap();
    }
    queue.publish().unwrap();
    server.signal("-TERM");
    let socket = server.socket.clone();
    let (code, said, complaints) = server.end();
    assert_eq!(code, Some(0), "{complaints}");
    assert_eq!(complaints, "");
    assert!(!socket.exists());
    let ended: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(ended["event"], "ended");
    assert_eq!(ended["clients"], 1);
    // What was taken was answered, and was counted.
    let mut answered = 0;
    while let Some(done) = queue.driver.poll().unwrap() {
        assert!(done.is_ok());
        answered += 1;
    }
    assert_eq!(ended["writes"], 1 + answered);
    assert_eq!(ended["errors"], 0);
}

#[test]
fn a_resize_is_seen_at_sighup_and_by_itself() {
    let place = Place::new();
    let image = place.image(1 << 20);
    let server = Server::start(&format!("raw:{image}"), &place.path("socket"), &[]);
    let mut client = Client::connect(&server.socket).unwrap();
    let mut channel = client.open_backend_channel().unwrap();
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    for (megabytes, hup) in [(2, true), (3, false), (1, true)] {
        file.set_len(megabytes << 20).unwrap();
        if hup {
            server.signal("-HUP");
        }
        let mut message = [0; 12];
        channel.read_exact(&mut message).unwrap();
        assert_eq!(client.capacity().unwrap(), megabytes * 2048);
    }
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn vdpa_command_lines() {
    for (args, words) in [
        (&["vdpa", "show", ".."][..], "can't be \"..\""),
        (&["vdpa", "add", "../disk"], "can't have '/'"),
        (&["vdpa", "del", ""], "can't be empty"),
        (&["vdpa", "add", "a", "--mgmtdev", "pci/"], "can't be empty"),
        (&["vdpa", "add", "a", "--features", "x"], "not a number"),
        (&["vdpa", "bind", "a", "usb"], "virtio, vhost, none"),
        (&["vdpa", "add", "a", "--mac", "1"], "six bytes"),
        (&["vdpa", "add", "a", "--mtu", "67"], "68"),
        (&["vdpa", "add", "a", "--max-vqp", "0"], "1..=32768"),
        (&["vdpa", "set", "a"], "--mac"),
        (&["vdpa", "stats", "a", "--queue", "-1"], "-1"),
    ] {
        assert_refused(args, 2, &[words]);
    }
    assert_refused(&["vdpa", "del", &"x".repeat(256)], 2, &["255 bytes"]);
}

/// Most hosts have no vDPA, and are told how to get it.
#[test]
fn vdpa_says_what_is_missing() {
    let bus = Path::new("/sys/bus/vdpa");
    if bus.exists() {
        let bind = ["vdpa", "bind", "no-such-device", "none"];
        assert_refused(&bind, 1, &["no-such-device", "vblk vdpa list"]);
        return;
    }
    for args in [
        &["vdpa", "mgmt"][..],
        &["vdpa", "list"],
        &["vdpa", "show", "disk0"],
        &["vdpa", "add", "disk0"],
        &["vdpa", "del", "disk0"],
        &["vdpa", "set", "disk0", "--mac", "02:00:00:00:00:01"],
        &["vdpa", "stats", "disk0"],
        &["vdpa", "bind", "disk0", "vhost"],
    ] {
        assert_refused(args, 1, &["modprobe vdpa"]);
    }
}

#[test]
fn a_vduse_device_needs_a_name_and_a_module() {
    let vduse = |name, rest: &[&'static str]| {
        let mut args = vec!["serve", "vduse", "--disk", "memory:1M", "--name", name];
        args.extend(rest);
        args
    };
    assert_refused(&vduse("a/b", &[]), 2, &["'/'"]);
    assert_refused(&vduse("disk0", &["--queues", "0"]), 2, &["--queues"]);
    assert_refused(
        &vduse("disk0", &["--attach", "scsi"]),
        2,
        &["virtio", "vhost"],
    );
    assert_refused(
        &vduse("disk0", &["--queue-size", "100"]),
        1,
        &["power of two"],
    );
    if !Path::new("/dev/vduse").exists() {
        assert_refused(&vduse("disk0", &[]), 1, &["modprobe vduse"]);
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A `vblk serve vhost-user` under test.

// Each test file uses some of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::Instant;

use serde_json::Value;
use vblk_testing::frontend::{Client, Guest, PATIENCE, Queue};
use virtio_blk_core::disk::{Completion, IoQueue, Wait};

/// Runs `vblk` to its end.
pub fn vblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(args)
        .output()
        .unwrap()
}

/// A server, with its sockets in a directory of its own.
pub struct Server {
    pub child: Child,
    pub dir: tempfile::TempDir,
    output: Option<BufReader<ChildStdout>>,
    errors: Option<BufReader<ChildStderr>>,
}

impl Server {
    /// Starts one with these arguments, a `--socket` and a `--control`. Streams that are not given are read by the test.
    pub fn spawn(args: &[&str], stdout: Option<Stdio>, stderr: Option<Stdio>) -> Self {
        Self::spawn_with(args, stdout, stderr, |_| ())
    }

    /// As [`Server::spawn`], with something else done to the command.
    pub fn spawn_with(
        args: &[&str],
        stdout: Option<Stdio>,
        stderr: Option<Stdio>,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        // A name that has to be quoted in some places.
        let dir = tempfile::Builder::new()
            .prefix("a \"b\\")
            .tempdir()
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vblk"));
        prepare(&mut command);
        let mut child = command
            .args(["serve", "vhost-user"])
            .args(args)
            .arg("--socket")
            .arg(dir.path().join("socket"))
            .arg("--control")
            .arg(dir.path().join("control"))
            .stdout(stdout.unwrap_or_else(Stdio::piped))
            .stderr(stderr.unwrap_or_else(Stdio::piped))
            .spawn()
            .unwrap();
        Self {
            output: child.stdout.take().map(BufReader::new),
            errors: child.stderr.take().map(BufReader::new),
            child,
            dir,
        }
    }

    /// Starts one that speaks JSON, and waits until drivers can come.
    pub fn start(args: &[&str]) -> Self {
        let mut this = Self::spawn(&[&["--json"], args].concat(), None, None);
        this.event("listening");
        this
    }

    /// One of this disk, with four queues.
    pub fn of(disk: &str) -> Self {
        Self::start(&["--queues", "4", "--disk", disk])
    }

    /// Reads events up to this one.
    pub fn event(&mut self, event: &str) -> Value {
        let output = self.output.as_mut().unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended");
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == event {
                return value;
            }
        }
    }

    /// Where it serves metrics, once it does.
    pub fn metrics_address(&mut self) -> String {
        let event = self.event("metrics");
        event["address"].as_str().unwrap().to_owned()
    }

    /// Reads its standard error up to a line with this word.
    pub fn complaint(&mut self, word: &str) -> String {
        let errors = self.errors.as_mut().unwrap();
        loop {
            let mut line = String::new();
            let read = errors.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "it ended without `{word}`");
            if line.contains(word) {
                return line;
            }
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn control(&self) -> String {
        let path = self.dir.path().join("control");
        path.to_str().unwrap().to_owned()
    }

    /// A connected client, waiting for the socket to be there.
    pub fn connect(&self) -> Client {
        let started = Instant::now();
        loop {
            match Client::connect(&self.socket()) {
                Ok(client) => return client,
                Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    /// Runs `vblk ctl` on it.
    pub fn ctl(&self, args: &[&str]) -> Output {
        vblk(&[&["ctl", &self.control()], args].concat())
    }

    /// What `vblk --json ctl` prints.
    pub fn ask(&self, args: &[&str]) -> Value {
        let output = vblk(&[&["--json", "ctl", &self.control()], args].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs `vblk ctl` for what it refuses. Returns what it says.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = self.child.id().try_into().unwrap();
        // SAFETY: plain kill(2), of a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Ends it without a word, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end. Returns what it said on standard error since.
    pub fn end(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        if let Some(errors) = &mut self.errors {
            errors.read_to_string(&mut said).unwrap();
        }
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a driver's queue has a completion.
pub fn completion(queue: &mut dyn IoQueue) -> Completion {
    let mut done = Vec::new();
    queue.flush_batch().unwrap();
    while queue.reap(&mut done).unwrap() == 0 {
        let Wait::Fd(fd) = queue.wait() else {
            panic!("the driver has a descriptor");
        };
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
    }
    done.pop().unwrap()
}

/// A guest with one queue, started.
pub fn guest(client: &mut Client) -> (Guest, Queue) {
    let mut guest = Guest::new(&[(0, 4 << 20)]).unwrap();
    client.set_memory(&guest).unwrap();
    let queue = guest.queue(64, 4096, 0).unwrap();
    client.start(0, &queue, 0).unwrap();
    (guest, queue)
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `docs/backup.md`, as it stands: its commands are run one block after the other, and a guest writes where it says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::completion;
use serde_json::Value;
use vblk_testing::client_disk::ClientDisk;
use virtio_blk_core::disk::{Disk, IoBuf, Op, OpKind, Submit, Token};

/// What the page has, in order.
enum Step {
    Commands(String),
    GuestWrites,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        match line {
            "```sh" => {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                steps.push(Step::Commands(block.join("\n")));
            }
            "<!-- the guest writes -->" => steps.push(Step::GuestWrites),
            _ => {}
        }
    }
    steps
}

/// A shell that runs one block after the other, and ends at the first command that fails.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn new(directory: &Path, format: &str) -> Self {
        let tool = Path::new(env!("CARGO_BIN_EXE_vblk")).parent().unwrap();
        let path = format!("{}:{}", tool.display(), std::env::var("PATH").unwrap());
        let mut child = Command::new("sh")
            .arg("-e")
            .current_dir(directory)
            .env("PATH", path)
            .env("format", format)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut this = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        // What it starts has the same output, which therefore does not end with it.
        this.run("trap 'echo @failed' EXIT");
        this
    }

    fn run(&mut self, block: &str) {
        // The shell may have ended.
        let _ = writeln!(self.input, "{block}\necho '@done'");
        let mut said = String::new();
        loop {
            let from = said.len();
            let read = self.output.read_line(&mut said).unwrap();
            match said.get(from..) {
                Some("@done\n") => return,
                Some("@failed\n") => panic!("a command failed:\n{block}\n{said}"),
                _ => assert_ne!(read, 0, "{said}"),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // With what it has started.
        let group = -i32::try_from(self.child.id()).unwrap();
        // SAFETY: plain kill(2), of a group whose leader has not been waited for.
        unsafe { libc::kill(group, libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Changes a few places of the disk, all of which follow from `round`.
fn guest_writes(socket: &Path, round: u64) {
    let disk = ClientDisk::connect(socket, 1).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let mut random = round;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let blocks = disk.caps().capacity_bytes() / 4096;
    let mut ops: Vec<(OpKind, usize)> = (0..12)
        .map(|_| {
            let offset = next(blocks - 16) * 4096;
            let len = (1 + next(16)) * 4096;
            (OpKind::Write { offset, fua: false }, len as usize)
        })
        .collect();
    // The end, zeroes, and everything stable.
    let offset = (blocks - 1) * 4096;
    ops.push((OpKind::Write { offset, fua: false }, 4096));
    ops.push((
        OpKind::WriteZeroes {
            offset: next(blocks - 16) * 4096,
            len: 16 * 4096,
            unmap: true,
            fua: false,
        },
        0,
    ));
    ops.push((OpKind::Flush, 0));
    for (kind, len) in ops {
        let buf = IoBuf::from_vec(vec![1 + next(255) as u8; len]);
        let op = Op {
            token: Token(0),
            kind,
            buf,
        };
        let done = match queue.submit(op) {
            Submit::Done(done) => done,
            Submit::Queued => completion(&mut *queue),
            Submit::Full(_) => panic!("there is room for one"),
        };
        done.result.unwrap();
    }
}

fn run(format: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/backup.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Shell::new(dir.path(), format);
    let (mut round, mut took) = (0, Vec::new());
    for step in steps(&page) {
        match step {
            Step::GuestWrites => {
                round += 1;
                guest_writes(&dir.path().join("disk.sock"), round);
            }
            Step::Commands(block) => {
                shell.run(&block);
                if block.starts_with("backup ") {
                    let take = std::fs::read(dir.path().join("take.json")).unwrap();
                    took.push(serde_json::from_slice::<Value>(&take).unwrap());
                }
            }
        }
    }
    assert!(round >= 6, "{round}");
    let size = |take: &Value| take["size"].as_u64().unwrap();
    let bytes = |take: &Value| take["bytes"].as_u64().unwrap();
    let [first, later @ ..] = took.as_slice() else {
        panic!("there is no backup");
    };
    assert_eq!(
        (&first["incomplete"], bytes(first)),
        (&true.into(), size(first))
    );
    for take in later {
        assert_eq!(take["incomplete"], false, "{take}");
        assert!(0 < bytes(take) && bytes(take) < size(take) / 2, "{take}");
    }
    assert_eq!(later.last().map(size), Some(96 << 20));
    // Not only `qemu-img compare` says so.
    if format == "raw" {
        let [disk, restored] =
            ["disk.img", "restored.raw"].map(|name| std::fs::read(dir.path().join(name)).unwrap());
        assert!(disk == restored);
    }
}

#[test]
fn the_page_works_with_raw_images() {
    run("raw");
}

#[test]
fn the_page_works_with_qcow2_images() {
    run("qcow2");
}

/// The examples of `ctl --help` are commands that work.
#[test]
fn the_examples_of_ctl_work() {
    let dir = tempfile::tempdir().unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(["ctl", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, examples) = help.split_once("Examples:").unwrap();
    let (examples, _) = examples.split_once("docs/backup.md").unwrap();
    let commands: Vec<String> = examples
        .lines()
        .filter(|line| {
            line.starts_with("  ") && (line.contains("vblk ctl") || line.contains("cp "))
        })
        .map(|line| {
            // What it is for stands behind several spaces.
            let command = line.trim().split("  ").next().unwrap();
            command.replace("/run/disk0.ctl", "disk0.ctl")
        })
        .collect();
    assert!(commands.len() >= 8, "{commands:?}");
    let mut shell = Shell::new(dir.path(), "raw");
    shell.run(
        "truncate -s 1M disk.img
        vblk serve vhost-user --socket s --control disk0.ctl --disk raw:disk.img,dirty=backup & server=$!
        until vblk ctl disk0.ctl disks 2>/dev/null; do sleep 0.1; done",
    );
    for command in &commands {
        shell.run(command);
    }
    assert!(dir.path().join("copy.img").exists());
}

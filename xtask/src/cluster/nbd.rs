// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! NBD servers, each with a disk of zeroes on a unix socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::process::Process;
use super::{LEN, Lab};
use crate::command::{Error, command};

/// A kind of server.
pub struct Kind {
    pub name: &'static str,
    /// Starts one that keeps its file in a directory; `vblk` is the program's path.
    pub start: fn(&Path, &Path) -> Result<Server, Error>,
}

/// A server that listens.
pub struct Server {
    _process: Process,
    pub socket: PathBuf,
}

/// All of them.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "nbdkit",
        start: |dir, _| {
            let (image, socket) = (dir.join("nbdkit.img"), dir.join("nbdkit.sock"));
            Lab::image(&image)?;
            let mut server = command("nbdkit", ["--foreground", "--unix"]);
            server.arg(&socket).arg("file").arg(&image);
            listening(server, dir, socket)
        },
    },
    Kind {
        name: "qemu-nbd",
        start: |dir, _| {
            let (image, socket) = (dir.join("qemu-nbd.img"), dir.join("qemu-nbd.sock"));
            Lab::image(&image)?;
            let words = [
                "--persistent",
                "--shared=8",
                "--discard=unmap",
                "--format=raw",
                "--socket",
            ];
            let mut server = command("qemu-nbd", words);
            server.arg(&socket).arg(&image);
            listening(server, dir, socket)
        },
    },
    Kind {
        name: "vblk serve nbd",
        start: |dir, vblk| {
            let socket = dir.join("vblk.sock");
            let mut server = command(vblk, ["serve", "nbd", "--socket"]);
            server
                .arg(&socket)
                .arg("--disk")
                .arg(format!("memory:{LEN}"));
            listening(server, dir, socket)
        },
    },
];

fn listening(
    mut server: std::process::Command,
    dir: &Path,
    socket: PathBuf,
) -> Result<Server, Error> {
    let mut process = Process::start(&mut server, &dir.join("nbd.log"))?;
    process.until("listens", || UnixStream::connect(&socket).is_ok())?;
    Ok(Server {
        _process: process,
        socket,
    })
}

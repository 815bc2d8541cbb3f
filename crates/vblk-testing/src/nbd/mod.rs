// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers of network block devices (NBD), of several programs.

pub mod compare;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::Error;
use crate::server::Server;

/// A program that serves a raw image as its default export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// `vblk serve nbd`.
    Vblk,
    /// `nbdkit`, with its file plugin.
    Nbdkit,
    /// `qemu-nbd`.
    QemuNbd,
    /// The export of `qemu-storage-daemon`.
    Qsd,
}

impl Kind {
    /// The program's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vblk => "vblk",
            Self::Nbdkit => "nbdkit",
            Self::QemuNbd => "qemu-nbd",
            Self::Qsd => "qemu-storage-daemon",
        }
    }

    /// Serves `image`. `vblk`: where that program is.
    ///
    /// # Errors
    /// The program can't be started, or does not listen.
    pub fn serve(self, vblk: &Path, image: &Path) -> Result<Server, Error> {
        Server::spawn(|socket| Ok(self.command(vblk, image, socket)))
    }

    fn command(self, vblk: &Path, image: &Path, socket: &Path) -> Command {
        let of = |text: &str, path: &Path| {
            let mut arg = OsString::from(text);
            arg.push(path);
            arg
        };
        match self {
            Self::Vblk => {
                let mut command = Command::new(vblk);
                command.args(["serve", "nbd", "--disk"]);
                command.arg(of("raw:", image)).arg("--socket").arg(socket);
                command
            }
            Self::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "-U"]).arg(socket);
                command.arg("file").arg(image);
                command
            }
            Self::QemuNbd => {
                let mut command = Command::new("qemu-nbd");
                command.args(["--persistent", "--shared=8", "--format=raw"]);
                command.args(["--cache=writeback", "--aio=io_uring", "--discard=unmap"]);
                command.arg(of("--socket=", socket)).arg(image);
                command
            }
            Self::Qsd => {
                let mut command = Command::new("qemu-storage-daemon");
                let node = "driver=file,node-name=disk,aio=io_uring,discard=unmap,filename=";
                command.arg("--blockdev").arg(of(node, image));
                let server = "addr.type=unix,max-connections=8,addr.path=";
                command.arg("--nbd-server").arg(of(server, socket));
                command.args([
                    "--export",
                    "type=nbd,id=export,node-name=disk,writable=on,name=",
                ]);
                command
            }
        }
    }
}

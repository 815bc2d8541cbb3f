// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask cluster`: disks of other programs' servers, on this machine, under verified load.
//!
//! A Ceph cluster of one monitor and one OSD, `nbdkit`, `qemu-nbd` and our own NBD server are started on loopback and unix
//! sockets, and ended again. The loads are those of `vblk-testing`, over `vblk serve vhost-user`.

mod ceph;
mod faults;
mod nbd;
mod process;
mod readers;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use ceph::{Ceph, Store};

use crate::command::{Error, command, run as execute, target_dir};

/// Options of `cargo xtask cluster`.
#[derive(clap::Args)]
pub struct Args {
    /// Two million requests of each load, all faults, on both of Ceph's stores, and twenty kills
    #[arg(long)]
    full: bool,
    /// Take the programs as they are built for debugging
    #[arg(long)]
    debug: bool,
    /// Requests of each load
    #[arg(long)]
    ops: Option<u64>,
    /// Only these parts: nbd, rbd
    #[arg(value_name = "PART", value_parser = ["nbd", "rbd"])]
    parts: Vec<String>,
}

/// Bytes of each disk.
const LEN: u64 = 64 << 20;

/// What is run, and how much of it.
struct Lab {
    /// Where `vblk` and `vblk-testing` are.
    programs: PathBuf,
    /// Where servers keep what they need.
    dir: tempfile::TempDir,
    /// Requests of each load.
    operations: u64,
    /// How often `vblk` is killed.
    kills: u64,
}

/// Programs, and Debian's packages that have them.
const NBD: &[(&str, &str)] = &[("nbdkit", "nbdkit"), ("qemu-nbd", "qemu-utils")];
const RBD: &[(&str, &str)] = &[
    // In one go: each needs the same.
    ("ceph-mon", "ceph-mon ceph-osd ceph-common librbd1"),
    ("ceph-osd", "ceph-osd"),
    ("rbd", "ceph-common"),
    ("qemu-img", "qemu-utils"),
];

/// Runs everything.
///
/// # Errors
/// A package can't be had, a server does not start, or something was wrong: the client has said what.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let wanted = |part: &str| args.parts.is_empty() || args.parts.iter().any(|p| p == part);
    for (part, needs) in [("nbd", NBD), ("rbd", RBD)] {
        if wanted(part) {
            needs
                .iter()
                .try_for_each(|(program, packages)| need(program, packages))?;
        }
    }
    let profile = if args.debug { "debug" } else { "release" };
    let mut build = command("cargo", ["build", "-p", "vblk", "-p", "vblk-testing"]);
    if !args.debug {
        build.arg("--release");
    }
    execute(&mut build)?;
    let lab = Lab {
        programs: target_dir().join(profile),
        dir: tempfile::tempdir()
            .map_err(|error| Error::Other(format!("no directory for the servers: {error}")))?,
        operations: args
            .ops
            .unwrap_or(if args.full { 2_000_000 } else { 100_000 }),
        kills: if args.full { 20 } else { 1 },
    };
    if wanted("nbd") {
        lab.nbd()?;
    }
    if wanted("rbd") {
        lab.rbd(Store::Memory, args.full)?;
        if args.full {
            lab.rbd(Store::Blue, true)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the repository's own shell function install packages where the program is missing.
fn need(program: &str, packages: &str) -> Result<(), Error> {
    let script = format!(". .ci/setup.sh && need {program} {packages}");
    execute(&mut command("bash", ["-c", &script]))
}

impl Lab {
    /// A load, told and timed.
    fn part(&self, what: &str, load: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        println!("--- {what}");
        let since = Instant::now();
        load()?;
        println!("    {what}: {:.1} s", since.elapsed().as_secs_f64());
        Ok(())
    }

    fn vblk(&self) -> PathBuf {
        self.programs.join("vblk")
    }

    /// The client: `verify` or `kills`.
    fn client(&self, load: &str, args: &[&str]) -> Command {
        let mut client = command(self.programs.join("vblk-testing"), [load, "--vblk"]);
        client.arg(self.vblk()).args(args);
        client
    }

    /// So many requests on four queues, every byte compared, on a disk of zeroes.
    fn verify(&self, disk: &str, operations: u64, seed: u64) -> Command {
        let (operations, seed) = (operations.to_string(), seed.to_string());
        let args = ["--name", disk, "--ops", &operations, "--seed", &seed];
        self.client("verify", &args)
    }

    fn nbd(&self) -> Result<(), Error> {
        let dir = self.dir.path();
        for (seed, kind) in (1..).zip(nbd::KINDS) {
            self.part(&format!("nbd: {}", kind.name), || {
                let server = (kind.start)(dir, &self.vblk())?;
                let disk = format!("nbd:unix:{}", server.socket.display());
                execute(&mut self.verify(&disk, self.operations, seed))
            })?;
        }
        Ok(())
    }

    fn rbd(&self, store: Store, full: bool) -> Result<(), Error> {
        let dir = self.dir.path().join(store.name());
        let mut ceph = None;
        self.part(&format!("a cluster on {}", store.name()), || {
            ceph = Some(Ceph::start(&dir, store)?);
            Ok(())
        })?;
        let Some(mut ceph) = ceph else {
            return Ok(());
        };
        self.part("rbd: four queues", || {
            let disk = ceph.create("verify", LEN)?;
            execute(&mut self.verify(&disk, self.operations, 10))
        })?;
        self.part("rbd: vblk is killed", || faults::kills(self, &ceph))?;
        self.part("rbd: the OSD is frozen, and started anew", || {
            faults::osd(self, &mut ceph)
        })?;
        self.part("rbd: resized both ways", || faults::resize(self, &ceph))?;
        self.part("rbd: what is only read", || readers::readers(self, &ceph))?;
        if full {
            self.part("rbd: the monitor is started anew", || {
                faults::monitor(self, &mut ceph)
            })?;
        }
        ceph.stop()
    }

    /// A file of zeroes for a server.
    fn image(path: &Path) -> Result<(), Error> {
        let made = std::fs::File::create(path).and_then(|file| file.set_len(LEN));
        made.map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })
    }
}

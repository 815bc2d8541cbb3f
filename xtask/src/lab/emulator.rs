// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The emulator: Debian's QEMU with its libraries, unpacked beside the rest of the lab. Nothing of it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Context, Result};
use super::packages::is_tool_or_library;
use super::plan::{digest, resolve, unpack};
use super::tools::loader;

/// Where it comes from, independent of the host and of the kernel in the guest, and where its libraries are: 10.0.2.
/// On 11.1.3, of trixie-backports, a virtual CPU that ran a nested guest took no interrupt any more; on 10.0.13, of
/// trixie, the firmware makes larger rings than QEMU asks in-flight areas for.
const SUITES: [&str; 3] = ["bookworm-backports", "bookworm", "bookworm-updates"];
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// What it loads into guests.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub enum Emulator {
    /// The lab's, unpacked in this directory.
    Unpacked(PathBuf),
    /// Another program.
    Program(String),
}

impl Emulator {
    /// Finds or unpacks the lab's. Works without a network once it has run, until `update` asks to look for newer
    /// packages.
    ///
    /// # Errors
    /// What apt or dpkg says.
    pub fn prepare(lab: &Path, update: bool) -> Result<Self> {
        let name = format!("qemu-{:016x}", digest(&(SUITES, PACKAGES)));
        let plan = resolve(lab, &name, &SUITES, update, |apt| {
            let mut packages = apt.closure(SUITES[0], &PACKAGES)?;
            packages.retain(|package| is_tool_or_library(package, &PACKAGES));
            Ok(packages)
        })?;
        let directory = lab.join("qemu").join(format!("{:016x}", digest(&plan)));
        let done = directory.join("done");
        if !done.exists() {
            eprintln!("lab: unpacking {}", directory.display());
            if directory.exists() {
                fs::remove_dir_all(&directory).on("remove", &directory)?;
            }
            unpack(lab, &SUITES, &plan, &directory)?;
            fs::write(&done, "").on("write", &done)?;
        }
        Ok(Self::Unpacked(directory))
    }

    /// The start of its command line.
    pub fn command(&self) -> Command {
        match self {
            Self::Program(program) => Command::new(program),
            Self::Unpacked(directory) => {
                let mut command = loader(directory);
                command.arg(directory.join(PROGRAM));
                for firmware in FIRMWARE {
                    command.arg("-L").arg(directory.join(firmware));
                }
                command
            }
        }
    }
}

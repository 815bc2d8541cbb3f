// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What scripts need that is built on the host: binaries of this project, and kernel modules. Each once.

use std::collections::HashMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Error, Result};
use super::script::Script;
use super::server::Kind;
use super::{Args, built, process};

/// The musl target makes binaries that need nothing of the guest.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";
/// Binaries for this one are linked statically, for the same.
const GNU_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What one script needs.
pub struct Needs {
    /// The disk's server, if there is a disk.
    pub server: Option<Kind>,
    /// The guest's binaries.
    pub binaries: Vec<PathBuf>,
    /// The directory with the modules that are built for the lab, if they are wanted.
    pub modules: Option<PathBuf>,
}

/// A binary: its package and example, target, and whether it is built for speed.
type Wish = (String, &'static str, bool);

/// Builds, and remembers what is built.
pub struct Builds<'a> {
    args: &'a Args,
    root: &'a Path,
    target: &'a Path,
    lab: &'a Path,
    kernel: String,
    binaries: HashMap<Wish, PathBuf>,
}

impl<'a> Builds<'a> {
    /// Nothing is built yet. Modules will be for the kernel of this version.
    pub fn new(
        args: &'a Args,
        root: &'a Path,
        target: &'a Path,
        lab: &'a Path,
        kernel: String,
    ) -> Self {
        let binaries = HashMap::new();
        Self {
            args,
            root,
            target,
            lab,
            kernel,
            binaries,
        }
    }

    /// Builds what a script needs.
    ///
    /// # Errors
    /// What cargo, rustup, apt or make says.
    pub fn of(&mut self, script: &Script) -> Result<Needs> {
        let machine = &script.machine;
        let server = match (&machine.disk, self.args.server.as_str()) {
            (None, _) => None,
            // The guests' one does here, too.
            (Some(_), "vblk") => Some(Kind::Vblk(self.binary("vblk", GUEST_TARGET, false)?)),
            (Some(_), "qsd") => Some(Kind::Qsd),
            (Some(_), template) => Some(Kind::Custom(template.to_owned())),
        };
        let mut binaries = Vec::new();
        for (names, target) in [
            (&machine.binaries, GUEST_TARGET),
            (&machine.gnu, GNU_TARGET),
        ] {
            for name in names {
                binaries.push(self.binary(name, target, machine.release)?);
            }
        }
        let modules = match machine.built {
            true => {
                let (suite, update) = (&self.args.kernel, self.args.update);
                Some(built::prepare(self.lab, suite, &self.kernel, update)?)
            }
            false => None,
        };
        Ok(Needs {
            server,
            binaries,
            modules,
        })
    }

    fn binary(&mut self, name: &str, target: &'static str, release: bool) -> Result<PathBuf> {
        let wish = (name.to_owned(), target, release);
        if let Some(built) = self.binaries.get(&wish) {
            return Ok(built.clone());
        }
        let built = self.build(name, target, release)?;
        self.binaries.insert(wish, built.clone());
        Ok(built)
    }

    /// Builds the binary of one of the workspace's packages, or an example as `PACKAGE/EXAMPLE`, and returns
    /// its path. Unless the script compares speeds with debug assertions: they catch overflows.
    fn build(&self, name: &str, target: &str, release: bool) -> Result<PathBuf> {
        eprintln!("lab: building {name}");
        let (package, example) = match name.split_once('/') {
            Some((package, example)) => (package, Some(example)),
            None => (name, None),
        };
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(self.root)
            .args(["build", "--quiet", "--package", package])
            .arg("--target-dir")
            .arg(self.target);
        need_target(target)?;
        command.args(["--target", target]).env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        );
        let mut directory = self.target.join(target);
        directory.push(if release { "release" } else { "debug" });
        if release {
            command.arg("--release");
        }
        if let Some(example) = example {
            command.args(["--all-features", "--example", example]);
            directory.push("examples");
        }
        process::output(&mut command)?;
        Ok(directory.join(example.unwrap_or(package)))
    }
}

/// Makes sure that the toolchain which runs this can build for `target`; rustup adds what is missing.
///
/// # Errors
/// [`Error::Missing`] without rustup; what rustup says otherwise.
fn need_target(target: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]);
    let libraries = process::output(&mut rustc)?;
    if Path::new(libraries.trim()).exists() {
        return Ok(());
    }
    eprintln!("lab: adding the target {target}");
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", target]);
    match process::output(&mut rustup) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(Error::Missing {
                what: format!("the toolchain has no libraries for {target}"),
                hint: "install those of your Rust".to_owned(),
            })
        }
        done => done.map(drop),
    }
}

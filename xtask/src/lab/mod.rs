// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask lab`: scripts under `lab/`, each in a small virtual machine. `lab/README.md` is the guide.

mod apt;
mod base;
mod cpio;
mod emulator;
mod error;
mod image;
mod migrate;
mod modules;
mod packages;
mod plan;
mod process;
mod qemu;
mod script;
mod server;
mod simulator;
mod sources;
#[cfg(test)]
mod tests;
mod tools;
mod vm;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use base::Base;
use emulator::Emulator;
pub use error::Error;
use error::{Context, Result};
use qemu::Clock;
use script::{Machine, Script};
use server::{Kind, Server};
use vm::Vm;

/// The musl target makes binaries that need nothing of the guest.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";
/// Binaries for this one are linked statically, for the same.
const GNU_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub struct Args {
    /// Scripts to run, by name; all of lab/*.sh if none is named
    #[arg(value_name = "SCRIPT")]
    scripts: Vec<String>,
    /// Show the scripts and end
    #[arg(long)]
    list: bool,
    /// The disk server: vblk, qsd (qemu-storage-daemon), or a command with {disk}, {socket}, {queues}, {serial}
    #[arg(long, value_name = "CMD", default_value = "vblk")]
    server: String,
    /// The Debian suite whose cloud kernel is booted
    #[arg(long, value_name = "SUITE", default_value = "bookworm-backports")]
    kernel: String,
    /// QEMU's accelerator
    #[arg(long, value_name = "ACCEL", default_value = "tcg,thread=multi")]
    accel: String,
    /// Another QEMU than the lab's own, 10 or newer
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<String>,
    /// Let the guest's clock count instructions, a nanosecond each: its figures don't depend on what else
    /// this machine does. The guest has one thread of execution, whatever its number of CPUs
    #[arg(long, conflicts_with = "accel")]
    icount: bool,
    /// Look for newer packages instead of using what was fetched before
    #[arg(long)]
    update: bool,
}

impl Args {
    fn clock(&self) -> Clock<'_> {
        if self.icount {
            Clock::Instructions
        } else {
            Clock::Host(&self.accel)
        }
    }
}

/// Runs the chosen scripts one after another; the status is a success only if all are.
///
/// # Errors
/// What is missing, or an unknown script. A failing script is reported and the next one runs.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scripts = chosen(Script::all(&root.join("lab"))?, &args.scripts)?;
    if args.list {
        for script in &scripts {
            println!("{:18} {}", script.name, script.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    fs::create_dir_all(&target).on("create", &target)?;
    let target = target.canonicalize().on("find", &target)?;
    let lab = target.join("lab");
    fs::create_dir_all(&lab).on("create", &lab)?;
    let emulator = match &args.qemu {
        Some(program) => Emulator::Program(program.clone()),
        None => Emulator::prepare(&lab, args.update)?,
    };
    let base = Base::prepare(&lab, &args.kernel, args.update)?;
    let mut bench = Bench {
        args,
        root,
        target,
        lab,
        emulator,
        base,
        server: None,
    };
    let mut failed = Vec::new();
    for script in &scripts {
        println!("=== {}: {}", script.name, script.about);
        let start = Instant::now();
        let mut verdict = bench.run(script);
        for _ in 0..2 {
            let Err(error @ Error::Emulator { .. }) = verdict else {
                break;
            };
            println!("=== {}: once more: {error}", script.name);
            verdict = bench.run(script);
        }
        let seconds = start.elapsed().as_secs_f32();
        match verdict {
            Ok(0) => println!("=== {}: passed in {seconds:.1} s", script.name),
            Ok(status) => {
                println!(
                    "=== {}: FAILED with status {status} after {seconds:.1} s",
                    script.name
                );
                failed.push(script.name.as_str());
            }
            Err(error) => {
                println!("=== {}: FAILED after {seconds:.1} s: {error}", script.name);
                failed.push(script.name.as_str());
            }
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("=== failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn chosen(all: Vec<Script>, names: &[String]) -> Result<Vec<Script>> {
    if names.is_empty() {
        let unnamed = all.into_iter().filter(|script| !script.machine.named);
        return Ok(unnamed.collect());
    }
    let find = |name: &String| {
        // A path works too, so that a shell can complete it.
        let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
        let found = all.iter().find(|script| Some(script.name.as_str()) == stem);
        found.cloned().ok_or_else(|| Error::Script {
            script: name.clone(),
            what: "no such script under lab/ (--list shows them)".to_owned(),
        })
    };
    names.iter().map(find).collect()
}

/// What all scripts of one call share.
struct Bench<'a> {
    args: &'a Args,
    root: PathBuf,
    target: PathBuf,
    lab: PathBuf,
    emulator: Emulator,
    base: Base,
    /// Known once the first script with a disk has asked for it.
    server: Option<Kind>,
}

impl Bench<'_> {
    fn run(&mut self, script: &Script) -> Result<u8> {
        let kind = match &script.machine.disk {
            Some(_) => Some(self.server()?),
            None => None,
        };
        let disk = script.machine.disk.as_ref();
        if disk.is_some_and(|disk| disk.migrates) && !matches!(kind, Some(Kind::Vblk(_))) {
            println!("two servers of one image: only vblk is told how to share it");
            return Ok(0);
        }
        if disk.is_some_and(|disk| disk.crashes) && kind == Some(Kind::Qsd) {
            println!("qemu-storage-daemon keeps no record of requests in flight: nothing to show");
            return Ok(0);
        }
        let binaries = self.guest_binaries(&script.machine)?;
        let run = self.lab.join("run").join(&script.name);
        if run.exists() {
            fs::remove_dir_all(&run).on("remove", &run)?;
        }
        fs::create_dir_all(&run).on("create", &run)?;
        // A socket's path must be short, which a target directory's often isn't.
        let sockets = tempfile::Builder::new().prefix("vblk-lab-").tempdir();
        let sockets = sockets.on("create a directory in", &env::temp_dir())?;

        let name = kind.as_ref().map_or("none", Kind::name);
        let overlay = run.join("overlay");
        image::overlay(
            &self.base,
            script,
            &self.root.join("lab/guest"),
            name,
            &binaries,
            &overlay,
        )?;
        if script.machine.simulator {
            let kernel = self.base.kernel_version()?;
            let modules =
                simulator::prepare(&self.lab, &self.args.kernel, &kernel, self.args.update)?;
            simulator::copy(&modules, &overlay.join("lab/simulator"))?;
        }
        let initramfs = run.join("initramfs");
        let root_on_disk = script.machine.disk.as_ref().is_some_and(|disk| disk.root);
        image::initramfs(&self.base, &overlay, root_on_disk, &initramfs)?;
        let socket = sockets.path().join("disk");
        let mut server = None;
        if let (Some(disk), Some(kind)) = (&script.machine.disk, kind) {
            let file = run.join("disk.img");
            image::disk(&self.base, disk, &overlay, &run.join("tree"), &file)?;
            let log = run.join("server.log");
            server = Some(Server::start(kind, &file, &socket, disk, &log)?);
        }
        let paths = qemu::Paths {
            kernel: &self.base.kernel,
            initramfs: &initramfs,
            console: &run.join("console.log"),
            sockets: sockets.path(),
            disk: &socket,
            incoming: None,
        };
        let log = run.join("output.log");
        let vm = Vm::start(
            &script.machine,
            &self.emulator,
            self.args.clock(),
            paths,
            &log,
            server.as_mut(),
        )?;
        let status = vm.finish()?;
        if let Some(server) = server {
            server.stop()?;
        }
        Ok(status)
    }

    fn server(&mut self) -> Result<Kind> {
        if let Some(kind) = &self.server {
            return Ok(kind.clone());
        }
        let kind = match self.args.server.as_str() {
            "vblk" => Kind::Vblk(self.build("vblk", None, false)?),
            "qsd" => Kind::Qsd,
            template => Kind::Custom(template.to_owned()),
        };
        self.server = Some(kind.clone());
        Ok(kind)
    }

    fn guest_binaries(&self, machine: &Machine) -> Result<Vec<PathBuf>> {
        let names = |names: &[String], target| {
            let build = |name: &String| self.build(name, Some(target), machine.release);
            names.iter().map(build).collect::<Result<Vec<_>>>()
        };
        let mut binaries = names(&machine.binaries, GUEST_TARGET)?;
        binaries.extend(names(&machine.gnu, GNU_TARGET)?);
        Ok(binaries)
    }

    /// Builds the binary of one of the workspace's packages, or an example as `PACKAGE/EXAMPLE`, and returns
    /// its path. Unless the script compares speeds with debug assertions: they catch overflows.
    fn build(&self, name: &str, target: Option<&str>, release: bool) -> Result<PathBuf> {
        eprintln!("lab: building {name}");
        let (package, example) = match name.split_once('/') {
            Some((package, example)) => (package, Some(example)),
            None => (name, None),
        };
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .args(["build", "--quiet", "--package", package])
            .arg("--target-dir")
            .arg(&self.target);
        let mut directory = self.target.clone();
        if let Some(target) = target {
            need_target(target)?;
            command.args(["--target", target]);
            command.env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-C target-feature=+crt-static",
            );
            directory.push(target);
        }
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

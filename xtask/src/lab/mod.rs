// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask lab`: scripts under `lab/`, each in a small virtual machine. `lab/README.md` is the guide.

mod apt;
mod base;
mod builds;
mod built;
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
mod sources;
#[cfg(test)]
mod tests;
mod tools;
mod vm;

use std::env;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use base::Base;
use builds::{Builds, Needs};
use emulator::Emulator;
pub use error::Error;
use error::{Context, Result};
use qemu::Clock;
use script::Script;
use server::{Kind, Server};
use vm::{Verdict, Vm};

/// The file with what a script printed.
const OUTPUT: &str = "output.log";

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
    /// Machines that run side by side; what a script prints is shown at its end then. Those with guests inside run alone
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZero<usize>,
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

/// Runs the chosen scripts; the status is a success only if all are. While one runs, what the next ones need is built.
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
    let mut builds = Builds::new(args, &root, &target, &lab, base.kernel_version()?);
    let bench = Bench {
        args,
        root: &root,
        lab: &lab,
        emulator,
        base,
        alone: RwLock::new(()),
    };
    let (sender, receiver) = channel();
    let receiver = Mutex::new(receiver);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            let sender = sender;
            for script in &scripts {
                // The receivers are there until all was sent.
                let _ = sender.send((script, builds.of(script)));
            }
        });
        for _ in 0..args.jobs.get() {
            scope.spawn(|| {
                loop {
                    let next = lock(&receiver).recv();
                    let Ok((script, needs)) = next else { break };
                    if !bench.report(script, needs) {
                        lock(&failed).push(script.name.as_str());
                    }
                }
            });
        }
    });
    let failed = lock(&failed);
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("=== failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Locks; a thread that panicked ends the whole run anyhow.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn chosen(all: Vec<Script>, names: &[String]) -> Result<Vec<Script>> {
    if names.is_empty() {
        let mut unnamed: Vec<_> = all.into_iter().filter(|s| !s.machine.named).collect();
        // First those for which little is built, last those that run alone, when nothing is built any more.
        unnamed.sort_by_key(|Script { machine, .. }| {
            let binaries = machine.binaries.len() + 2 * machine.gnu.len();
            (machine.nests(), machine.built, binaries)
        });
        return Ok(unnamed);
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
    root: &'a Path,
    lab: &'a Path,
    emulator: Emulator,
    base: Base,
    /// Held for writing by a script that runs alone, for reading by any other.
    alone: RwLock<()>,
}

impl Bench<'_> {
    /// Runs a script, again where the emulator failed, and says how that went. Returns whether it passed.
    fn report(&self, script: &Script, needs: Result<Needs>) -> bool {
        let (mut shared, mut alone) = (None, None);
        if script.machine.nests() {
            alone = Some(self.alone.write());
        } else {
            shared = Some(self.alone.read());
        }
        let live = self.args.jobs.get() == 1;
        let title = format!("=== {}: {}\n", script.name, script.about);
        if live {
            print!("{title}");
        }
        let mut report = if live { String::new() } else { title };
        let start = Instant::now();
        let mut verdict = needs.and_then(|needs| {
            let mut verdict = self.run(script, &needs, live);
            for _ in 0..2 {
                let Err(error @ Error::Emulator { .. }) = verdict else {
                    break;
                };
                println!("=== {}: once more: {error}", script.name);
                verdict = self.run(script, &needs, live);
            }
            verdict
        });
        drop((shared.take(), alone.take()));
        let log = self.run_directory(script).join(OUTPUT);
        if !live && let Ok(output) = fs::read(log) {
            report.push_str(&String::from_utf8_lossy(&output));
        }
        let name = &script.name;
        let seconds = start.elapsed().as_secs_f32();
        let end = match &mut verdict {
            Ok(Verdict { status: 0, cpu }) => {
                let cpu = cpu.as_secs_f32();
                format!("passed in {seconds:.1} s, of which QEMU was busy for {cpu:.1}")
            }
            Ok(Verdict { status, .. }) => {
                format!("FAILED with status {status} after {seconds:.1} s")
            }
            Err(error) => format!("FAILED after {seconds:.1} s: {error}"),
        };
        println!("{report}=== {name}: {end}");
        matches!(verdict, Ok(Verdict { status: 0, .. }))
    }

    fn run_directory(&self, script: &Script) -> PathBuf {
        self.lab.join("run").join(&script.name)
    }

    fn run(&self, script: &Script, needs: &Needs, live: bool) -> Result<Verdict> {
        let kind = &needs.server;
        let disk = script.machine.disk.as_ref();
        if disk.is_some_and(|disk| disk.migrates) && !matches!(kind, Some(Kind::Vblk(_))) {
            println!("two servers of one image: only vblk is told how to share it");
            return Ok(Verdict::default());
        }
        if disk.is_some_and(|disk| disk.crashes) && *kind == Some(Kind::Qsd) {
            println!("qemu-storage-daemon keeps no record of requests in flight: nothing to show");
            return Ok(Verdict::default());
        }
        let run = self.run_directory(script);
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
            &needs.binaries,
            &overlay,
        )?;
        if let Some(modules) = &needs.modules {
            built::copy(modules, &overlay.join("lab/built"))?;
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
            server = Some(Server::start(kind.clone(), &file, &socket, disk, &log)?);
        }
        let function = run.join("function.img");
        if let Some(mib) = script.machine.function {
            let file = fs::File::create(&function).on("create", &function)?;
            file.set_len(u64::from(mib) << 20).on("size", &function)?;
        }
        let paths = qemu::Paths {
            kernel: &self.base.kernel,
            initramfs: &initramfs,
            console: &run.join("console.log"),
            sockets: sockets.path(),
            disk: &socket,
            function: &function,
            incoming: None,
        };
        let log = run.join(OUTPUT);
        let vm = Vm::start(
            &script.machine,
            &self.emulator,
            self.args.clock(),
            paths,
            &log,
            live,
            server.as_mut(),
        )?;
        let verdict = vm.finish()?;
        // They are large, and made anew by the next run.
        fs::remove_file(&initramfs).on("remove", &initramfs)?;
        fs::remove_dir_all(&overlay).on("remove", &overlay)?;
        if let Some(server) = server {
            server.stop()?;
        }
        Ok(verdict)
    }
}

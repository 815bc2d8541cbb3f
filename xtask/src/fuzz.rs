// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fuzz`.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::command::{
    Error, cargo_with, command, need_cargo_tool, output, root, run as execute, tool_path,
};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Targets, by name; all if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long to continue with each target after its seeds; 0: only the seeds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// So many executions of each target instead, those of its seeds included
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u32>,
}

/// The sanitizers need it.
const TOOLCHAIN: &str = "nightly";

/// Where `cargo fuzz` puts its programs, below `fuzz`.
const PROGRAMS: &str = "target";

/// Builds the targets and runs them: several side by side, as many as there are CPUs.
///
/// # Errors
/// A target can't be built, or found something. libFuzzer has said what, and where the input is.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let fuzz = root().join("fuzz");
    if !fuzz.join("Cargo.toml").is_file() {
        return Err(Error::Other(format!(
            "{} is missing",
            fuzz.join("Cargo.toml").display()
        )));
    }
    need_cargo_tool("fuzz")?;
    let cargo_fuzz = |command: &str| {
        let mut line = cargo_with(TOOLCHAIN, ["fuzz", command]);
        line.env("PATH", tool_path());
        line
    };
    let known = output(&mut cargo_fuzz("list"))?;
    let known: Vec<&str> = known.lines().collect();
    if let Some(unknown) = args.targets.iter().find(|t| !known.contains(&t.as_str())) {
        return Err(Error::Other(format!(
            "no fuzz target {unknown}; there are: {}",
            known.join(", ")
        )));
    }
    let chosen = |name: &&str| args.targets.is_empty() || args.targets.iter().any(|t| t == name);
    let targets: Vec<&str> = known.into_iter().filter(chosen).collect();
    let build = || {
        let mut line = cargo_fuzz("build");
        line.arg("--target-dir").arg(fuzz.join(PROGRAMS));
        line
    };
    match args.targets.is_empty() {
        true => execute(&mut build())?,
        false => targets
            .iter()
            .try_for_each(|target| execute(build().arg(target)))?,
    }
    let programs = fuzz.join(PROGRAMS).join(host()?).join("release");
    let lines = targets
        .into_iter()
        .map(|target| Ok((target, line(&fuzz, &programs, target, args)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    side_by_side(lines)?;
    Ok(ExitCode::SUCCESS)
}

/// The kind of this machine, as the toolchain calls it.
fn host() -> Result<String, Error> {
    let said = output(&mut command("rustup", ["run", TOOLCHAIN, "rustc", "-vV"]))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| Error::Other("`rustc -vV` does not name this machine".to_owned()))
}

/// The command that runs a target, as `cargo fuzz run` does.
fn line(fuzz: &Path, programs: &Path, target: &str, args: &Args) -> Result<Command, Error> {
    let seeds = fuzz.join("seeds").join(target);
    let corpus = fuzz.join("corpus").join(target);
    let artifacts = fuzz.join("artifacts").join(target);
    let failed = |path: &Path, source| Error::File {
        path: path.to_owned(),
        source,
    };
    let count = fs::read_dir(&seeds)
        .map_err(|source| failed(&seeds, source))?
        .count();
    if count == 0 {
        return Err(Error::Other(format!("{} has no seeds", seeds.display())));
    }
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    }
    // libFuzzer counts the seeds as runs; 0 runs means the seeds and no more.
    let (long, limit) = match (args.runs, args.seconds) {
        (Some(runs), _) => (format!("{runs} runs in all"), format!("-runs={runs}")),
        (None, 0) => ("nothing".to_owned(), "-runs=0".to_owned()),
        (None, seconds) => (format!("{seconds} s"), format!("-max_total_time={seconds}")),
    };
    println!("fuzzing {target}: {count} seeds, then {long}");
    let mut line = command(programs.join(target), [limit.as_str()]);
    line.arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .args(["-verbosity=0"])
        .args([&corpus, &seeds])
        .env("ASAN_OPTIONS", "detect_odr_violation=0");
    Ok(line)
}

/// Runs commands, as many at once as there are CPUs. Of several, what one says is shown when it has ended. The first that
/// fails keeps the rest from being started.
fn side_by_side(lines: Vec<(&str, Command)>) -> Result<(), Error> {
    let at_once = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(lines.len());
    if at_once < 2 {
        return lines
            .into_iter()
            .try_for_each(|(_, mut line)| execute(&mut line));
    }
    let waiting = Mutex::new(lines.into_iter());
    let failure = Mutex::new(None);
    let next = || match *failure.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(_) => None,
        None => waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next(),
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((target, mut line)) = next() {
                    if let Err(error) = quietly(target, &mut line) {
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Runs a command and shows what it said, in one piece.
fn quietly(target: &str, line: &mut Command) -> Result<(), Error> {
    let done = line.output().map_err(|source| Error::Start {
        command: target.to_owned(),
        source,
    })?;
    let said = String::from_utf8_lossy(&done.stderr);
    eprintln!("{target}:\n{said}");
    if done.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        command: target.to_owned(),
        status: done.status,
    })
}

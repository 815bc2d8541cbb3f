// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask fuzz`.

use std::fs;
use std::process::ExitCode;

use crate::command::{Error, cargo_with, need_cargo_tool, output, root, run as execute, tool_path};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Targets, by name; all if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long to continue with each target after its seeds; 0: only the seeds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// The sanitizers need it.
const TOOLCHAIN: &str = "nightly";

/// Runs the targets one after the other.
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
    for target in known {
        if !args.targets.is_empty() && !args.targets.iter().any(|t| t == target) {
            continue;
        }
        let seeds = fuzz.join("seeds").join(target);
        let corpus = fuzz.join("corpus").join(target);
        let count = fs::read_dir(&seeds)
            .map_err(|source| Error::File {
                path: seeds.clone(),
                source,
            })?
            .count();
        if count == 0 {
            return Err(Error::Other(format!("{} has no seeds", seeds.display())));
        }
        fs::create_dir_all(&corpus).map_err(|source| Error::File {
            path: corpus.clone(),
            source,
        })?;
        println!("fuzzing {target}: {count} seeds, then {} s", args.seconds);
        // libFuzzer counts the seeds as runs; 0 runs means the seeds and no more.
        let limit = match args.seconds {
            0 => "-runs=0".into(),
            seconds => format!("-max_total_time={seconds}"),
        };
        execute(
            cargo_fuzz("run")
                .arg(target)
                .arg(&corpus)
                .arg(&seeds)
                .arg("--")
                .args([&limit, "-timeout=30", "-rss_limit_mb=2048"])
                .args(["-print_final_stats=1", "-verbosity=0"]),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

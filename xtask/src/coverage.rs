// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask coverage`: the tests, once, and what they cover by the rules of rust-vmm's CI: lines, and a tolerance in
//! both directions.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::command::{
    Error, command, need_cargo_tool, root, run as execute, target_dir, tool_path,
};
use crate::replace::replace;

/// Options of `cargo xtask coverage`.
#[derive(clap::Args)]
pub struct Args {
    /// Record the measured score instead of comparing it
    #[arg(long)]
    update: bool,
    /// List the files, the least covered first
    #[arg(long)]
    files: bool,
}

/// `coverage_config_ARCH.json`.
#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct Config {
    /// Covered lines in percent.
    coverage_score: f64,
    /// A regular expression for files to leave out.
    exclude_path: String,
    /// Features for rust-vmm's CI, separated by commas; empty: all, as `tests.sh` has them.
    crate_features: String,
}

/// What `cargo llvm-cov --json --summary-only` prints, as far as it matters.
#[derive(Debug, Deserialize)]
struct Summary {
    data: Vec<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    totals: Counts,
    files: Vec<File>,
}

#[derive(Debug, Deserialize)]
struct File {
    filename: String,
    summary: Counts,
}

#[derive(Debug, Deserialize)]
struct Counts {
    lines: Lines,
}

#[derive(Debug, Deserialize)]
struct Lines {
    count: u64,
    covered: u64,
    percent: f64,
}

/// Points by which the score may differ.
const TOLERANCE: f64 = 0.5;

/// Runs `tests.sh`, measures, prints, and compares or records.
///
/// # Errors
/// A test fails, or the score differs from the recorded one by more than [`TOLERANCE`].
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let path = root().join(format!("coverage_config_{}.json", std::env::consts::ARCH));
    let mut config: Config = parse(&path.display().to_string(), &read(&path)?)?;
    // Of the toolchain that runs this.
    execute(&mut command("rustup", ["component", "add", "llvm-tools"]))?;
    need_cargo_tool("llvm-cov")?;
    let llvm_cov = |args: &[&str]| {
        let mut command = command("cargo", ["llvm-cov"]);
        command.args(args).env("PATH", tool_path());
        command
    };
    // What an earlier run left would count.
    execute(&mut llvm_cov(&["clean", "--profraw-only"]))?;
    execute(
        command("./tests.sh", [""; 0])
            .env("PATH", tool_path())
            .env("CARGO_TEST", "cargo llvm-cov test --no-report"),
    )?;
    let mut report = llvm_cov(&["report", "--json", "--summary-only"]);
    // Tests kill processes, some of them while they write what they covered: that of the others counts.
    report.args(["--failure-mode", "all"]);
    if !config.exclude_path.is_empty() {
        report.args(["--ignore-filename-regex", &config.exclude_path]);
    }
    let result = target_dir().join("coverage.json");
    execute(report.arg("--output-path").arg(&result))?;
    let summary: Summary = parse(&result.display().to_string(), &read(&result)?)?;
    let [data] = summary.data.as_slice() else {
        return Err(Error::Other("cargo llvm-cov measured nothing".into()));
    };
    if args.files {
        list(&data.files);
    }
    let measured = (data.totals.lines.percent * 100.0).round() / 100.0;
    let recorded = config.coverage_score;
    println!(
        "{} of {} lines covered: {measured} % (recorded: {recorded} %)",
        data.totals.lines.covered, data.totals.lines.count
    );
    if args.update {
        config.coverage_score = measured;
        let json = serde_json::to_string(&config).map_err(|source| Error::Format {
            what: path.display().to_string(),
            source,
        })?;
        replace(&path, &(json + "\n")).map_err(|source| Error::File { path, source })?;
        return Ok(ExitCode::SUCCESS);
    }
    match verdict(recorded, measured) {
        None => Ok(ExitCode::SUCCESS),
        Some(advice) => Err(Error::Other(advice)),
    }
}

fn verdict(recorded: f64, measured: f64) -> Option<String> {
    let difference = measured - recorded;
    if difference.abs() <= TOLERANCE {
        None
    } else if difference < 0.0 {
        Some(format!(
            "the coverage is {:.2} points lower than recorded: add tests",
            -difference
        ))
    } else {
        Some(format!(
            "the coverage is {difference:.2} points higher than recorded: \
             run `cargo xtask coverage --update`"
        ))
    }
}

fn list(files: &[File]) {
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by(|a, b| a.summary.lines.percent.total_cmp(&b.summary.lines.percent));
    let root = root();
    for file in files {
        let name = Path::new(&file.filename);
        let name = name.strip_prefix(&root).unwrap_or(name);
        println!(
            "{:6.2} %  {:5} lines missed  {}",
            file.summary.lines.percent,
            file.summary.lines.count - file.summary.lines.covered,
            name.display()
        );
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        path: path.into(),
        source,
    })
}

fn parse<T: for<'a> Deserialize<'a>>(what: &str, json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|source| Error::Format {
        what: what.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tolerance_goes_both_ways() {
        assert_eq!(verdict(90.0, 90.5), None);
        assert_eq!(verdict(90.0, 89.5), None);
        assert!(verdict(90.0, 89.4).unwrap().contains("add tests"));
        assert!(verdict(90.0, 90.6).unwrap().contains("--update"));
    }

    #[test]
    fn the_recorded_configuration_is_readable() {
        let path = root().join("coverage_config_x86_64.json");
        let config: Config = parse("", &read(&path).unwrap()).unwrap();
        assert_eq!(config.crate_features, "");
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask request-path`: the files whose code runs for one request, for `docs/architecture.md`. What a start and an
//! end take is left out by comparing the line coverage of two runs, one of which makes one request more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::command::{Error, command, output, root, run as execute, target_dir};

/// Requests of the two runs. The first ones find out what later ones know.
const RUNS: [u32; 2] = [5, 6];
/// The requests that are looked at, and what they add to the name of the disk.
const KINDS: [(&str, &str); 2] = [
    ("a read of 4 KiB that the page cache has", ""),
    (
        "a read of 4 KiB from the device, with `direct=on`",
        ",direct=on",
    ),
];

/// How often each line of each file ran.
type Coverage = BTreeMap<PathBuf, BTreeMap<u32, u64>>;

/// Options of `cargo xtask request-path`.
#[derive(clap::Args)]
pub struct Args {
    /// Where to put the image: a directory of a local file system that direct I/O works on; the target directory if it is
    /// not said
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Builds the example that makes the requests, runs it and prints the files.
///
/// # Errors
/// A program can't be built or run, or the image can't be made.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    execute(&mut command("rustup", ["component", "add", "llvm-tools"]))?;
    let target = target_dir().join("request-path");
    let mut build = command(
        "cargo",
        ["build", "--quiet", "--package", "virtio-blk-disks"],
    );
    build
        .args(["--example", "request_path", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-Cinstrument-coverage");
    execute(&mut build)?;
    let program = target.join("debug/examples/request_path");
    let image = args
        .dir
        .as_ref()
        .unwrap_or(&target)
        .join("request-path.img");
    // Every page is there, so that none is a hole.
    fs::write(&image, vec![1; 1 << 20]).map_err(|source| Error::File {
        path: image.clone(),
        source,
    })?;
    let tools = PathBuf::from(output(&mut command("rustc", ["--print", "target-libdir"]))?.trim())
        .with_file_name("bin");
    for (kind, options) in KINDS {
        let disk = format!("raw:{}{options}", image.display());
        let [fewer, more] = RUNS;
        let fewer = measure(&program, &tools, &target, &disk, fewer)?;
        let more = measure(&program, &tools, &target, &disk, more)?;
        let files = passed(&fewer, &more, &root().join("crates"));
        println!("{kind}: {} files", files.len());
        for file in files {
            println!("  {}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The coverage of so many reads.
fn measure(
    program: &Path,
    tools: &Path,
    target: &Path,
    disk: &str,
    reads: u32,
) -> Result<Coverage, Error> {
    let (raw, data) = (target.join("raw.profile"), target.join("merged.profile"));
    let mut reading = command(program, [disk, &reads.to_string()]);
    execute(reading.env("LLVM_PROFILE_FILE", &raw))?;
    let mut merge = command(tools.join("llvm-profdata"), ["merge", "-o"]);
    execute(merge.args([&data, &raw]))?;
    let mut export = command(tools.join("llvm-cov"), ["export", "--format=lcov"]);
    export
        .arg(program)
        .arg(format!("--instr-profile={}", data.display()));
    Ok(lines(&output(&mut export)?))
}

/// Reads lcov's format, as far as it is about lines.
fn lines(lcov: &str) -> Coverage {
    let mut coverage = Coverage::new();
    let mut file = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = Some(coverage.entry(path.into()).or_default());
        } else if let Some(file) = &mut file
            && let Some((line, count)) = line
                .strip_prefix("DA:")
                .and_then(|entry| entry.split_once(','))
            && let (Ok(line), Ok(count)) = (line.parse(), count.parse())
        {
            file.insert(line, count);
        }
    }
    coverage
}

/// The files below `crates` that one request more passed, without those of its driver.
fn passed(fewer: &Coverage, more: &Coverage, crates: &Path) -> Vec<PathBuf> {
    let changed = |file: &PathBuf| more.get(file) != fewer.get(file);
    more.keys()
        .filter(|file| changed(file))
        .filter_map(|file| file.strip_prefix(crates).ok())
        .filter(|file| !file.starts_with("virtio-blk-driver"))
        .filter(|file| file.components().any(|part| part.as_os_str() == "src"))
        .map(Path::to_path_buf)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_one_more_request_passed_are_found() {
        let fewer = lines(
            "SF:/r/crates/core/src/a.rs\nFN:1,f\nDA:1,5\nDA:2,1\nend_of_record\n\
             SF:/r/crates/core/src/b.rs\nDA:1,1\nend_of_record\n\
             SF:/r/crates/virtio-blk-driver/src/c.rs\nDA:1,5\nend_of_record\n\
             SF:/r/crates/core/examples/d.rs\nDA:1,5\nSF:/registry/e.rs\nDA:1,5\n",
        );
        let more = lines(
            "SF:/r/crates/core/src/a.rs\nFN:1,f\nDA:1,6\nDA:2,1\nend_of_record\n\
             SF:/r/crates/core/src/b.rs\nDA:1,1\nend_of_record\n\
             SF:/r/crates/virtio-blk-driver/src/c.rs\nDA:1,6\nend_of_record\n\
             SF:/r/crates/core/examples/d.rs\nDA:1,6\nSF:/registry/e.rs\nDA:1,6\n",
        );
        let files = passed(&fewer, &more, Path::new("/r/crates"));
        assert_eq!(files, [Path::new("core/src/a.rs")]);
    }
}

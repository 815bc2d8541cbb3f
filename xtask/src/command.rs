// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Running other programs, and getting them first where they are missing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, io};

/// What keeps a chore from being done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program can't be started.
    #[error("can't start `{command}`")]
    Start {
        /// Its command line.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed. It has said why.
    #[error("`{command}` ended with {status}")]
    Failed {
        /// Its command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A file can't be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or an output is not what it should be.
    #[error("{what}")]
    Format {
        /// Which one.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Where cargo builds.
pub fn target_dir() -> PathBuf {
    let dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), Into::into);
    root().join(dir)
}

/// A command line that starts in the root of the repository.
pub fn command<I>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item: Into<OsString>>,
{
    let mut command = Command::new(program);
    command
        .args(args.into_iter().map(Into::into))
        .current_dir(root())
        .stdin(Stdio::null());
    command
}

/// A cargo command line with a toolchain other than the one that runs this program.
pub fn cargo_with<I>(toolchain: &str, args: I) -> Command
where
    I: IntoIterator<Item: Into<OsString>>,
{
    let args = args.into_iter().map(Into::into);
    let mut all: Vec<OsString> = vec!["run".into(), toolchain.into(), "cargo".into()];
    all.extend(args);
    let mut command = command("rustup", all);
    // What cargo has set for this program speaks of another toolchain.
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// Runs to the end.
///
/// # Errors
/// It can't be started, or its status is not 0.
pub fn run(command: &mut Command) -> Result<(), Error> {
    let status = command.status().map_err(|source| Error::Start {
        command: line(command),
        source,
    })?;
    check(command, status)
}

/// Runs to the end and returns what it wrote to its standard output.
///
/// # Errors
/// As for [`run`], or the output is not UTF-8.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start {
            command: line(command),
            source,
        })?;
    check(command, output.status)?;
    String::from_utf8(output.stdout)
        .map_err(|_| Error::Other(format!("`{}` did not print UTF-8", line(command))))
}

fn check(command: &Command, status: ExitStatus) -> Result<(), Error> {
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed {
            command: line(command),
            status,
        })
    }
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Makes sure that a program is there; root gets the Debian package of that name where it is not.
///
/// # Errors
/// It is missing and can't be installed.
pub fn need_program(name: &str, package: &str) -> Result<(), Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|dir| dir.join(name).is_file()) {
        return Ok(());
    }
    // SAFETY: it has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Err(Error::Other(format!(
            "{name} is missing: install it (Debian's package: {package})"
        )));
    }
    eprintln!("installing {package}");
    run(&mut command("apt-get", ["update", "--quiet"]))?;
    run(
        command("apt-get", ["install", "--yes", "--no-install-recommends"])
            .arg(package)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Makes sure that `cargo NAME` works; what is missing is installed under the target directory.
/// Commands that need it are given [`tool_path`] as their search path.
///
/// # Errors
/// It can't be installed.
pub fn need_cargo_tool(name: &str) -> Result<(), Error> {
    let program = format!("cargo-{name}");
    let known = env::split_paths(&tool_path()).any(|dir| dir.join(&program).is_file());
    if known {
        return Ok(());
    }
    eprintln!("installing {program}");
    let root = tools();
    run(command(
        "cargo",
        ["install", "--locked", "--debug", "--quiet", "--root"],
    )
    .arg(&root)
    .arg("--target-dir")
    .arg(root.join("build"))
    .arg(&program)
    // Built once and used for a moment: the time to build is what counts.
    .env("CARGO_PROFILE_DEV_DEBUG", "0"))
}

/// The search path, with the tools that [`need_cargo_tool`] installed.
pub fn tool_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain([tools().join("bin")]);
    env::join_paths(dirs).unwrap_or(path)
}

fn tools() -> PathBuf {
    target_dir().join("tools")
}

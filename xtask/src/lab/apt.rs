// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian packages, fetched without touching the system's own apt state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Context, Result};
use super::packages::{Package, parse_simulation};
use super::process::output;
use super::sources::Archive;

/// apt with lists, cache and installed set of its own in one directory.
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Prepares `directory` and fetches the lists of these suites from the system's mirror.
    ///
    /// # Errors
    /// No apt, no network, or a suite the mirror doesn't have.
    pub fn update(directory: &Path, suites: &[&str]) -> Result<Self> {
        let apt = Self {
            directory: directory.to_owned(),
        };
        apt.lay_out(&Archive::of_this_system().sources_file(suites))?;
        // As on an empty system, so that a simulated installation names the whole closure.
        let status = apt.directory.join("status");
        fs::write(&status, "").on("write", &status)?;
        output(apt.get().arg("update").arg("--error-on=any"))?;
        Ok(apt)
    }

    /// What the installation of `names` from `suite` on an empty system would bring.
    ///
    /// # Errors
    /// A package that the suite doesn't have.
    pub fn closure(&self, suite: &str, names: &[&str]) -> Result<Vec<Package>> {
        let mut command = self.get();
        command.args(["--simulate", "--no-install-recommends"]);
        command.arg(format!("--target-release={suite}"));
        Ok(parse_simulation(&output(
            command.arg("install").args(names),
        )?))
    }

    /// Fetches those of `packages` that are not in `into` yet.
    ///
    /// # Errors
    /// What apt says.
    pub fn download(&self, packages: &[Package], into: &Path) -> Result<()> {
        let missing: Vec<String> = packages
            .iter()
            .filter(|package| !into.join(package.file_name()).exists())
            .map(|package| format!("{}={}", package.name, package.version))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(into).on("create", into)?;
        output(self.get().current_dir(into).arg("download").args(missing))?;
        Ok(())
    }

    fn lay_out(&self, sources: &str) -> Result<()> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = self.directory.join(part);
            fs::create_dir_all(&path).on("create", &path)?;
        }
        let file = self.directory.join("lab.sources");
        fs::write(&file, sources).on("write", &file)
    }

    fn get(&self) -> Command {
        let mut command = private("apt-get", &self.directory);
        let status = self.directory.join("status");
        command.arg(format!("-oDir::State::status={}", status.display()));
        command
    }
}

/// A command of apt with sources and lists in `directory`, the system's own left alone.
fn private(program: &str, directory: &Path) -> Command {
    let at = |option: &str, part: &str| format!("-o{option}={}", directory.join(part).display());
    let mut command = Command::new(program);
    command
        .arg("-qq")
        .arg(at("Dir::Etc::sourcelist", "lab.sources"))
        .arg("-oDir::Etc::sourceparts=-")
        .arg(at("Dir::State::lists", "lists"))
        .arg(at("Dir::Cache", "cache"))
        // The target directory is often not open to apt's unprivileged user.
        .arg("-oAPT::Sandbox::User=root")
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

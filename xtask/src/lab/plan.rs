// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which versions of which packages are used: noted by the first run, so that later ones need no network.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use super::apt::Apt;
use super::error::{Context, Result};
use super::packages::Package;
use super::process::output;
use crate::replace::replace;

/// The packages of the note `name`; if there is none, or with `update`, those that `choose` finds in the suites now,
/// which are fetched and noted.
///
/// # Errors
/// What apt says.
pub fn resolve(
    lab: &Path,
    name: &str,
    suites: &[&str],
    update: bool,
    choose: impl FnOnce(&Apt) -> Result<Vec<Package>>,
) -> Result<Vec<Package>> {
    let file = lab.join(format!("plan-{name}"));
    if !update
        && let Ok(text) = fs::read_to_string(&file)
        && let Some(packages) = noted(&text)
    {
        return Ok(packages);
    }
    eprintln!("lab: looking for packages in {}", suites.join(" and "));
    let apt = Apt::update(&lab.join("apt"), suites)?;
    let mut packages = choose(&apt)?;
    packages.sort();
    packages.dedup();
    let text: String = packages
        .iter()
        .map(|package| format!("{package}\n"))
        .collect();
    apt.download(&packages, &lab.join("packages"))?;
    replace(&file, &text).on("write", &file)?;
    Ok(packages)
}

/// What a note says; `None` if it is not whole.
fn noted(text: &str) -> Option<Vec<Package>> {
    let packages: Option<Vec<_>> = text.lines().map(Package::parse).collect();
    packages.filter(|packages| !packages.is_empty() && text.ends_with('\n'))
}

/// Unpacks packages, side by side, into a directory. Those that are no longer there are fetched again.
///
/// # Errors
/// What apt or dpkg says.
pub fn unpack(lab: &Path, suites: &[&str], plan: &[Package], into: &Path) -> Result<()> {
    let packages = lab.join("packages");
    if plan
        .iter()
        .any(|package| !packages.join(package.file_name()).exists())
    {
        let apt = Apt::update(&lab.join("apt"), suites)?;
        apt.download(plan, &packages)?;
    }
    fs::create_dir_all(into).on("create", into)?;
    for package in plan {
        let file = packages.join(package.file_name());
        output(Command::new("dpkg-deb").arg("-x").arg(file).arg(into))?;
    }
    Ok(())
}

/// A number that names a value, for files made from it.
pub fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_is_not_whole_is_none() {
        let whole = "qemu 1:10.0 amd64\nzlib 1.3 amd64\n";
        let packages: Vec<String> = noted(whole)
            .unwrap()
            .iter()
            .map(|p| p.to_string())
            .collect();
        assert_eq!(packages.join("\n") + "\n", whole);
        for end in 0..whole.len() {
            // After a line it can't be told.
            if !whole[..end].ends_with('\n') {
                assert!(noted(&whole[..end]).is_none(), "{end}");
            }
        }
        assert!(noted("one\n").is_none());
    }
}

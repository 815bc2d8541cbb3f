// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tools inside the guest: chosen programs out of unpacked packages, with the libraries they need.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Context, Error, Result};
use super::process::output;

const PROGRAMS: [&str; 30] = [
    "blkdiscard",
    "blkid",
    "blkzone",
    "blockdev",
    "dash",
    "debugfs",
    "dumpe2fs",
    "e2fsck",
    "fio",
    "fsck.ext4",
    "fstrim",
    "iscsiadm",
    "iscsid",
    "kexec",
    "lsblk",
    "mke2fs",
    "mkfs.ext4",
    "mount",
    "partx",
    "qemu-img",
    "qemu-storage-daemon",
    "resize2fs",
    "setpriv",
    "sfdisk",
    "tgtadm",
    "tgtd",
    "umount",
    "unshare",
    "vdpa",
    "zstd",
];
const PROGRAM_DIRECTORIES: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];
const LIBRARY_DIRECTORIES: [&str; 3] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/ceph",
];
const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// The path to the loader that programs carry, and where it leads.
const LOADER_LINK: [&str; 2] = [
    "usr/lib64/ld-linux-x86-64.so.2",
    "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
];
const CONFIGURATION: &str = "etc/mke2fs.conf";

/// Copies the programs, their libraries and their configuration from `sysroot` into `tree`, everything
/// below `usr`.
///
/// # Errors
/// A program or library that is not in the packages.
pub fn copy_tools(sysroot: &Path, tree: &Path) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let file = program_file(sysroot, program)?;
        let listing = output(loader(sysroot).arg("--list").arg(sysroot.join(&file)))?;
        libraries.extend(needed_libraries(&listing));
        copy(sysroot, tree, &file)?;
    }
    for library in libraries {
        let file = LIBRARY_DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(&library))
            .find(|path| sysroot.join(path).exists())
            .ok_or_else(|| missing(&library))?;
        copy(sysroot, tree, &file)?;
    }
    copy(sysroot, tree, Path::new(LOADER))?;
    let link = tree.join(LOADER_LINK[0]);
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent).on("create", parent)?;
    }
    symlink(LOADER_LINK[1], &link).on("create", &link)?;
    copy(sysroot, tree, Path::new(CONFIGURATION))
}

/// A command line that runs one of the programs of a tree that [`copy_tools`] made on the host.
///
/// # Errors
/// A program that is not in the tree.
pub fn on_host(tree: &Path, program: &str) -> Result<Command> {
    let mut command = loader(&tree.join("usr"));
    command.arg(tree.join(program_file(tree, program)?));
    command.env("MKE2FS_CONFIG", tree.join(CONFIGURATION));
    Ok(command)
}

/// The dynamic loader below `root`, told to look for libraries there too.
pub fn loader(root: &Path) -> Command {
    let paths: Vec<String> = LIBRARY_DIRECTORIES
        .iter()
        .map(|directory| root.join(directory).display().to_string())
        .collect();
    let mut command = Command::new(root.join(LOADER));
    command.arg("--library-path").arg(paths.join(":"));
    command
}

/// The file names of the libraries in a listing by the dynamic loader (the form `ldd` prints).
pub fn needed_libraries(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter_map(|line| {
            let name = line.split_once("=>")?.0.trim();
            Some(Path::new(name).file_name()?.to_str()?.to_owned())
        })
        .collect()
}

fn program_file(sysroot: &Path, program: &str) -> Result<PathBuf> {
    PROGRAM_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| {
            let file = sysroot.join(path);
            // An absolute link stands for a file in another of these directories.
            let elsewhere = fs::read_link(&file).is_ok_and(|target| target.is_absolute());
            file.symlink_metadata().is_ok() && !elsewhere
        })
        .ok_or_else(|| missing(program))
}

fn missing(file: &str) -> Error {
    Error::Missing {
        what: format!("{file} is in none of the lab's packages"),
        hint: "the lists in xtask/src/lab/base.rs and tools.rs don't fit together".to_owned(),
    }
}

/// Copies one file, following links outside the file's own directory, to its place below `usr`.
fn copy(sysroot: &Path, tree: &Path, file: &Path) -> Result<()> {
    let from = sysroot.join(file);
    let below_root = ["bin", "sbin", "lib", "lib64"]
        .iter()
        .any(|top| file.starts_with(top));
    let to = if below_root {
        tree.join("usr").join(file)
    } else {
        tree.join(file)
    };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).on("create", parent)?;
    }
    if to.symlink_metadata().is_ok() {
        return Ok(());
    }
    match fs::read_link(&from) {
        Ok(target) if target.components().count() == 1 => {
            symlink(&target, &to).on("create", &to)?;
            return copy(sysroot, tree, &file.with_file_name(target));
        }
        // An absolute link would lead to the host's file.
        Ok(target) if target.is_absolute() => return Err(missing(&file.display().to_string())),
        _ => {}
    }
    fs::copy(&from, &to).on("copy", &from)?;
    Ok(())
}

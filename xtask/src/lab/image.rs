// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run's machine boots from: the initramfs with the script, and the disk image.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::base::{Base, archive};
use super::error::{Context, Result};
use super::process::{output, output_with_input};
use super::script::{Disk, Script};
use super::server::SERIAL;
use super::tools::on_host;

/// Where the root file system's partition starts, in bytes.
const ROOT_OFFSET: u64 = 1 << 20;

/// Writes the tree of files that differ from script to script: `/init`, the script, its settings, the
/// project's binaries.
///
/// # Errors
/// The file system's.
pub fn overlay(
    base: &Base,
    script: &Script,
    guest: &Path,
    server: &str,
    binaries: &[PathBuf],
    tree: &Path,
) -> Result<()> {
    for directory in ["lab", "usr/bin"] {
        let path = tree.join(directory);
        fs::create_dir_all(&path).on("create", &path)?;
    }
    let copy = |from: &Path, to: &str| {
        let to = tree.join(to);
        fs::copy(from, &to).on("copy", from)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).on("change", &to)
    };
    copy(&guest.join("init"), "init")?;
    copy(&guest.join("host"), "usr/bin/host")?;
    for entry in fs::read_dir(guest).on("read", guest)? {
        let name = entry.on("read", guest)?.file_name();
        // What scripts share.
        if let Some(name) = name.to_str().filter(|name| name.ends_with(".sh")) {
            copy(&guest.join(name), &format!("lab/{name}"))?;
        }
    }
    copy(&script.path, "lab/script")?;
    if script.machine.kernel {
        copy(&base.kernel, "lab/vmlinuz")?;
    }
    for binary in binaries {
        // Without what debuggers need, most of it: the kernel copies all that is in its memory at each start.
        let to = tree
            .join("usr/bin")
            .join(binary.file_name().unwrap_or_default());
        let mut strip = Command::new("strip");
        output(strip.arg("--strip-debug").arg("-o").arg(to).arg(binary))?;
    }
    let machine = &script.machine;
    let disk = machine.disk.as_ref();
    let settings = [
        ("LAB_MODULES", machine.modules.join(" ")),
        ("LAB_CPUS", machine.cpus.to_string()),
        ("LAB_DISK_MIB", disk.map_or(0, |disk| disk.size).to_string()),
        ("LAB_QUEUES", disk.map_or(0, |disk| disk.queues).to_string()),
        ("LAB_SERIAL", SERIAL.to_owned()),
        ("LAB_SERVER", server.to_owned()),
    ];
    let text: String = settings
        .iter()
        .map(|(name, value)| format!("export {name}='{value}'\n"))
        .collect();
    let file = tree.join("lab/env");
    fs::write(&file, text).on("write", &file)
}

/// Puts the initramfs together. A script whose root is on the disk gets one without tools: they are there.
///
/// # Errors
/// The file system's.
pub fn initramfs(base: &Base, overlay: &Path, root_on_disk: bool, into: &Path) -> Result<()> {
    let mut out = File::create(into).on("create", into)?;
    let parts = if root_on_disk {
        vec![&base.core]
    } else {
        vec![&base.core, &base.tools]
    };
    for part in parts {
        let mut from = File::open(part).on("open", part)?;
        io::copy(&mut from, &mut out).on("write", into)?;
    }
    archive(overlay, out, false).on("write", into)
}

/// Makes the disk's image: empty, or with one partition that holds the guest's root file system.
///
/// # Errors
/// The file system's, or what the tools say.
pub fn disk(base: &Base, disk: &Disk, overlay: &Path, scratch: &Path, image: &Path) -> Result<()> {
    let bytes = disk.size << 20;
    let file = File::create(image).on("create", image)?;
    file.set_len(bytes).on("size", image)?;
    if !disk.root {
        return Ok(());
    }
    fs::create_dir_all(scratch).on("create", scratch)?;
    let mut copy = Command::new("cp");
    copy.arg("-a");
    for tree in base.trees.iter().map(PathBuf::as_path).chain([overlay]) {
        copy.arg(tree.join("."));
    }
    output(copy.arg(scratch))?;
    let mut table = on_host(&base.trees[1], "sfdisk")?;
    let layout = format!(
        "label: gpt\nstart={}, type=linux, name=root\n",
        ROOT_OFFSET / 512
    );
    output_with_input(table.arg("--quiet").arg(image), &layout)?;
    // The backup table takes the last 33 sectors.
    let blocks = (bytes - 2 * ROOT_OFFSET) / 1024;
    let mut make = on_host(&base.trees[1], "mke2fs")?;
    make.args(["-q", "-t", "ext4", "-F", "-L", "labroot", "-d"])
        .arg(scratch);
    make.arg("-E")
        .arg(format!("offset={ROOT_OFFSET},root_owner=0:0"));
    output(make.arg(image).arg(format!("{blocks}k")))?;
    fs::remove_dir_all(scratch).on("remove", scratch)
}

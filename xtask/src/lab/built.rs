// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Modules that Debian's kernels come without: the vDPA simulator of a block device, and the vDPA parent of a virtio PCI
//! function. They are built from Debian's source of the same version, with this machine's compiler.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Apt;
use super::error::{Context, Error, Result};
use super::packages::Package;
use super::plan::{digest, resolve, unpack};
use super::process::output;

/// The modules. Of the simulator's each needs the one before it.
pub const MODULES: [&str; 4] = ["vringh", "vdpa_sim", "vdpa_sim_blk", "vp_vdpa"];
/// Where their source lies in the kernel's tree.
const FILES: [&str; 5] = [
    "drivers/vhost/vringh.c",
    "drivers/vdpa/vdpa_sim/vdpa_sim.c",
    "drivers/vdpa/vdpa_sim/vdpa_sim.h",
    "drivers/vdpa/vdpa_sim/vdpa_sim_blk.c",
    "drivers/vdpa/virtio_pci/vp_vdpa.c",
];
const META: [&str; 2] = ["linux-headers-cloud-amd64", "linux-source"];
/// Changes whenever the code here builds something else from the same packages.
const LAYOUT: u32 = 2;

/// Finds or builds the modules for the kernel of version `kernel` in `suite`. Returns the directory they are in.
///
/// # Errors
/// What apt, dpkg or make says; a suite whose kernel is not the one that the lab boots.
pub fn prepare(lab: &Path, suite: &str, kernel: &str, update: bool) -> Result<PathBuf> {
    let suites = ["bookworm", suite];
    let name = format!("built-{suite}-{:016x}", digest(&(META, kernel)));
    let plan = resolve(lab, &name, &suites, update, |apt| packages_of(apt, suite))?;
    let directory = lab
        .join("built")
        .join(format!("{:016x}", digest(&(&plan, FILES, LAYOUT))));
    let done = directory.join("done");
    if done.exists() {
        return Ok(directory);
    }
    eprintln!("lab: building {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(&directory).on("remove", &directory)?;
    }
    let sysroot = directory.join("packages");
    unpack(lab, &suites, &plan, &sysroot)?;
    take_sources(&sysroot, &directory)?;
    build(&sysroot, &directory, kernel)?;
    fs::remove_dir_all(&sysroot).on("remove", &sysroot)?;
    fs::write(&done, "").on("write", &done)?;
    Ok(directory)
}

/// The headers with what builds modules, and the source.
fn packages_of(apt: &Apt, suite: &str) -> Result<Vec<Package>> {
    let mut packages = apt.closure(suite, &META)?;
    packages.retain(|package| {
        ["linux-headers-", "linux-kbuild-", "linux-source-"]
            .iter()
            .any(|prefix| package.name.starts_with(prefix))
            && !META.contains(&package.name.as_str())
    });
    Ok(packages)
}

/// Copies the wanted files out of the archive that the source's package carries, side by side into `into`.
fn take_sources(sysroot: &Path, into: &Path) -> Result<()> {
    let archive = find(&sysroot.join("usr/src"), |name| {
        name.starts_with("linux-source-") && name.ends_with(".tar.xz")
    })?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--wildcards", "--transform", "s,.*/,,"])
        .arg("--directory")
        .arg(into)
        .arg("--file")
        .arg(&archive)
        .args(FILES.map(|file| format!("*/{file}")));
    output(&mut tar).map(drop)
}

/// Builds the modules from the files in `directory`.
fn build(sysroot: &Path, directory: &Path, kernel: &str) -> Result<()> {
    let headers = sysroot.join(format!("usr/src/linux-headers-{kernel}"));
    let top = headers.join("Makefile");
    let text = match fs::read_to_string(&top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Missing {
                what: format!("the headers that were fetched are not those of kernel {kernel}"),
                hint: "fetch both anew with --update".to_owned(),
            });
        }
        text => text.on("read", &top)?,
    };
    // It names the tree that it shares with other flavours by where that would be installed.
    let installed = sysroot.join("usr/src");
    let text = text.replace("/usr/src", &installed.display().to_string());
    fs::write(&top, text).on("write", &top)?;
    let objects = MODULES.map(|module| format!("{module}.o")).join(" ");
    let makefile = directory.join("Makefile");
    fs::write(&makefile, format!("obj-m := {objects}\n")).on("write", &makefile)?;
    let mut make = Command::new("make");
    make.arg("-C")
        .arg(&headers)
        .arg(format!("M={}", directory.display()))
        // Type information for BPF would need another tool.
        .args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    match output(&mut make) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(Error::Missing {
                what: "kernel modules are built with make, which is not there".to_owned(),
                hint: "on Debian: apt-get install make gcc-12 libelf1".to_owned(),
            })
        }
        done => done.map(drop),
    }
}

/// The entry of `directory` whose name `wanted` takes.
fn find(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in fs::read_dir(directory).on("read", directory)? {
        let path = entry.on("read", directory)?.path();
        if path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(&wanted)
        {
            return Ok(path);
        }
    }
    Err(Error::Missing {
        what: format!(
            "{} has no archive of the kernel's source",
            directory.display()
        ),
        hint: "take_sources() in xtask/src/lab/built.rs must learn the package's new form"
            .to_owned(),
    })
}

/// Copies the modules to where the guest's script finds them.
///
/// # Errors
/// The file system's.
pub fn copy(directory: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).on("create", into)?;
    for module in MODULES {
        let file = format!("{module}.ko");
        let from = directory.join(&file);
        fs::copy(&from, into.join(&file)).on("copy", &from)?;
    }
    Ok(())
}

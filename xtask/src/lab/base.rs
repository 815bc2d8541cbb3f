// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The part of the lab that is the same for each script: kernel, modules, tools. Built once for each set
//! of package versions.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Apt;
use super::cpio;
use super::error::{Context, Error, Result};
use super::modules::{canonical, depends, modules_dep};
use super::packages::{Package, is_kernel, is_tool_or_library};
use super::plan::{digest, resolve, unpack};
use super::tools::copy_tools;

/// Where the tools in the guest come from. Independent of the kernel's suite and of the host.
const TOOLS_SUITE: &str = "bookworm";
const KERNEL_META: &str = "linux-image-cloud-amd64";
const TOOL_PACKAGES: [&str; 16] = [
    "busybox-static",
    "dash",
    "e2fsprogs",
    "fdisk",
    "fio",
    "iproute2",
    "kexec-tools",
    "kmod",
    "mount",
    "open-iscsi",
    "qemu-system-common",
    "qemu-utils",
    "tgt",
    "util-linux",
    "zlib1g",
    "zstd",
];
/// Loadable modules that scripts may ask for; what these need comes along. One that the kernel doesn't
/// have as a module (built in, or not built) is passed over.
const MODULES: [&str; 19] = [
    "crc32c_intel",
    "irqbypass",
    "iscsi_tcp",
    "kvm",
    "kvm_amd",
    "loop",
    "null_blk",
    "nvme_tcp",
    "nvmet_tcp",
    "sd_mod",
    "ublk_drv",
    "vdpa",
    "vduse",
    "vhost",
    "vhost_iotlb",
    "vhost_vdpa",
    "virtio_blk",
    "virtio_mmio",
    "virtio_vdpa",
];
/// Changes whenever the code here builds something else from the same packages.
const LAYOUT: u32 = 4;

/// The built parts.
pub struct Base {
    /// The kernel image.
    pub kernel: PathBuf,
    /// Initramfs with busybox and the modules.
    pub core: PathBuf,
    /// Initramfs, to be added to the core, with the tools and their libraries.
    pub tools: PathBuf,
    /// The trees that these two archives were made from.
    pub trees: [PathBuf; 2],
}

impl Base {
    /// Finds or builds the base with a kernel from `suite`.
    ///
    /// Works without a network once it has run, until `update` asks to look for newer packages.
    ///
    /// # Errors
    /// What apt or dpkg says.
    pub fn prepare(lab: &Path, suite: &str, update: bool) -> Result<Self> {
        let suites = suites(suite);
        let wish = digest(&(suite, TOOL_PACKAGES, KERNEL_META));
        let name = format!("{suite}-{wish:016x}");
        let plan = resolve(lab, &name, &suites, update, |apt| packages_of(apt, suite))?;
        let directory = lab
            .join("base")
            .join(format!("{:016x}", digest(&(&plan, MODULES, LAYOUT))));
        let base = Self {
            kernel: directory.join("vmlinuz"),
            core: directory.join("core.cpio"),
            tools: directory.join("tools.cpio"),
            trees: [directory.join("core"), directory.join("tools")],
        };
        let done = directory.join("done");
        if !done.exists() {
            eprintln!("lab: building {}", directory.display());
            if directory.exists() {
                fs::remove_dir_all(&directory).on("remove", &directory)?;
            }
            let sysroot = directory.join("packages");
            unpack(lab, &suites, &plan, &sysroot)?;
            base.build(&sysroot)?;
            fs::remove_dir_all(&sysroot).on("remove", &sysroot)?;
            fs::write(&done, "").on("write", &done)?;
        }
        Ok(base)
    }

    /// The kernel's version, as `uname -r` has it.
    ///
    /// # Errors
    /// The file system's.
    pub fn kernel_version(&self) -> Result<String> {
        let modules = self.trees[0].join("usr/lib/modules");
        for entry in fs::read_dir(&modules).on("read", &modules)? {
            if let Ok(version) = entry.on("read", &modules)?.file_name().into_string() {
                return Ok(version);
            }
        }
        Err(Error::Missing {
            what: format!("{} names no kernel", modules.display()),
            hint: "remove target/lab/base: it is built anew".to_owned(),
        })
    }

    fn build(&self, sysroot: &Path) -> Result<()> {
        let [core, tools] = &self.trees;
        self.build_core(sysroot)?;
        copy_tools(sysroot, tools)?;
        for (tree, into, console) in [(core, &self.core, true), (tools, &self.tools, false)] {
            let file = File::create(into).on("create", into)?;
            archive(tree, file, console).on("write", into)?;
        }
        Ok(())
    }

    fn build_core(&self, sysroot: &Path) -> Result<()> {
        let core = &self.trees[0];
        for name in [
            "dev",
            "etc",
            "mnt",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "busybox",
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
        ] {
            let path = core.join(name);
            fs::create_dir_all(&path).on("create", &path)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let path = core.join(name);
            symlink(format!("usr/{name}"), &path).on("create", &path)?;
        }
        let mtab = core.join("etc/mtab");
        symlink("/proc/mounts", &mtab).on("create", &mtab)?;
        let busybox = core.join("usr/bin/busybox");
        fs::copy(sysroot.join("bin/busybox"), &busybox).on("write", &busybox)?;

        let kernel = find_kernel(sysroot)?;
        fs::copy(&kernel.image, &self.kernel).on("copy", &kernel.image)?;
        let into = core.join("usr/lib/modules").join(&kernel.version);
        fs::create_dir_all(&into).on("create", &into)?;
        copy_modules(&kernel.modules, &sysroot.join("bin/busybox"), &into)
    }
}

/// A kernel in unpacked packages.
struct Kernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

fn find_kernel(sysroot: &Path) -> Result<Kernel> {
    let roots = [sysroot.join("lib/modules"), sysroot.join("usr/lib/modules")];
    let directories = roots.iter().flat_map(fs::read_dir).flatten().flatten();
    directories
        .map(|directory| directory.path())
        .find_map(|modules| {
            let version = modules.file_name()?.to_str()?.to_owned();
            // The newest packages have the image beside the modules.
            let images = [
                sysroot.join(format!("boot/vmlinuz-{version}")),
                modules.join("vmlinuz"),
            ];
            let image = images.into_iter().find(|image| image.exists())?;
            Some(Kernel {
                version,
                image,
                modules,
            })
        })
        .ok_or_else(|| Error::Missing {
            what: format!("no kernel image in the packages that {KERNEL_META} names"),
            hint: "find_kernel() in xtask/src/lab/base.rs must learn their new form".to_owned(),
        })
}

/// Copies the wanted modules below `from` and what they need, unpacked, side by side into `into`.
fn copy_modules(from: &Path, busybox: &Path, into: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    find_modules(from, &mut files)?;
    let mut graph = BTreeMap::new();
    let mut wanted: Vec<String> = MODULES.iter().map(ToString::to_string).collect();
    while let Some(module) = wanted.pop() {
        let Some(file) = files.get(&module).filter(|_| !graph.contains_key(&module)) else {
            continue;
        };
        let unpacked = into.join(format!("{module}.ko"));
        unpack_module(busybox, file, &unpacked)?;
        let needed = depends(&fs::read(&unpacked).on("read", &unpacked)?);
        wanted.extend(needed.iter().cloned());
        graph.insert(module, needed);
    }
    let list = into.join("modules.dep");
    fs::write(&list, modules_dep(&graph)).on("write", &list)
}

fn unpack_module(busybox: &Path, file: &Path, into: &Path) -> Result<()> {
    let applet = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xzcat",
        Some("gz") => "zcat",
        _ => "cat",
    };
    let out = File::create(into).on("create", into)?;
    let mut command = Command::new(busybox);
    let status = command
        .arg(applet)
        .arg(file)
        .stdout(out)
        .status()
        .on("unpack", file)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Tool {
        command: format!("busybox {applet} {}", file.display()),
        status: status.to_string(),
        stderr: String::new(),
    })
}

/// All modules below `directory`, by canonical name.
fn find_modules(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).on("read", directory)? {
        let entry = entry.on("read", directory)?;
        let path = entry.path();
        if entry.file_type().on("examine", &path)?.is_dir() {
            find_modules(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz" | "ko.gz")) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.split_once('.'))
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// Writes the archive of a tree, if wanted with the console device that the kernel opens as its first
/// process's standard files, before /dev is mounted.
///
/// # Errors
/// Those of reading the tree and writing the file.
pub fn archive(tree: &Path, file: File, with_console: bool) -> io::Result<()> {
    let mut writer = cpio::Writer::new(BufWriter::new(file));
    writer.tree(tree)?;
    if with_console {
        writer.character_device("dev/console", 5, 1)?;
    }
    writer.finish()?;
    Ok(())
}

fn suites(kernel: &str) -> Vec<&str> {
    let mut suites = vec![TOOLS_SUITE];
    if kernel != TOOLS_SUITE {
        suites.push(kernel);
    }
    suites
}

fn packages_of(apt: &Apt, suite: &str) -> Result<Vec<Package>> {
    let tools = apt.closure(TOOLS_SUITE, &TOOL_PACKAGES)?;
    let kernel = apt.closure(suite, &[KERNEL_META])?;
    let tools = tools
        .into_iter()
        .filter(|p| is_tool_or_library(p, &TOOL_PACKAGES));
    let kernel = kernel
        .into_iter()
        .filter(|p| is_kernel(p) && p.name != KERNEL_META);
    Ok(tools.chain(kernel).collect())
}

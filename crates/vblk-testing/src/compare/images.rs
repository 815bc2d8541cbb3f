// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The images that are compared on.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{Anew, Config, Part};
use crate::{Error, pattern};

/// Size of an image that is filled.
const EMPTY: &str = "64G";
/// Bytes of a backing file that is copied up.
const BACKING: u64 = 1 << 30;

/// Where they are.
pub(super) struct Images {
    /// All of it is written.
    pub disk: PathBuf,
    /// The same, for servers past the page cache.
    pub direct: PathBuf,
    /// Empty, with `disk` as its backing file.
    pub overlay: PathBuf,
    /// The backing file of [`Anew::Overlay`]: its bytes, all written.
    backing: PathBuf,
    /// An image that is made for one load.
    pub anew: PathBuf,
}

impl Images {
    pub fn new(dir: &Path) -> Self {
        Self {
            disk: dir.join("disk"),
            direct: dir.join("direct"),
            overlay: dir.join("overlay"),
            backing: dir.join("backing"),
            anew: dir.join("anew"),
        }
    }

    /// Makes the qcow2 images that all loads share, and what they stand on.
    pub fn make(&self, config: &Config) -> Result<(), Error> {
        let wants = |part| config.wants(part);
        pattern::create_file(&self.anew, config.len)?;
        let made = self.disk.with_extension("qcow2");
        qemu_img(
            &["convert", "-f", "raw", "-O", "qcow2"],
            &[&self.anew, &made],
        )?;
        self.remove_anew()?;
        copy(&made, &self.disk)?;
        std::fs::remove_file(&made).map_err(failed())?;
        if wants(Part::Overlay) {
            overlay(&self.disk, "qcow2", &self.overlay)?;
        }
        if wants(Part::Copies) || wants(Part::Direct) {
            pattern::create_file(&self.backing, BACKING)?;
            sync(&self.backing)?;
        }
        if wants(Part::Direct) {
            copy(&self.disk, &self.direct)?;
            sync(&self.direct)?;
        }
        Ok(())
    }

    pub fn make_anew(&self, how: Anew) -> Result<(), Error> {
        match how {
            Anew::Empty => qemu_img(&["create", "-f", "qcow2"], &[&self.anew, Path::new(EMPTY)]),
            Anew::Full => {
                copy(&self.disk, &self.anew)?;
                // The first barrier is to find what the load has written alone.
                sync(&self.anew)
            }
            Anew::Overlay => overlay(&self.backing, "raw", &self.anew),
        }
    }

    pub fn remove_anew(&self) -> Result<(), Error> {
        std::fs::remove_file(&self.anew).map_err(failed())
    }
}

fn failed() -> impl FnOnce(std::io::Error) -> Error {
    Error::io("the image")
}

/// Makes an empty image with a backing file.
fn overlay(backing: &Path, format: &str, path: &Path) -> Result<(), Error> {
    let backing = backing.to_string_lossy();
    let args = ["create", "-f", "qcow2", "-b", &backing, "-F", format];
    qemu_img(&args, &[path])
}

/// Runs `qemu-img` on some files.
fn qemu_img(args: &[&str], paths: &[&Path]) -> Result<(), Error> {
    let mut command = std::process::Command::new("qemu-img");
    command.args(args).arg("-q").args(paths);
    let status = command.status().map_err(Error::io("qemu-img"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Server(format!("{command:?} ended with {status}")))
    }
}

/// Copies a file, which is then in the page cache in single pages, as [`pattern::create_file`] leaves one.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let from = File::open(from).map_err(failed())?;
    let mut to = File::create(to).map_err(failed())?;
    let mut page = Vec::with_capacity(4096);
    loop {
        page.clear();
        let count = ((&from).take(4096).read_to_end(&mut page)).map_err(failed())?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&page).map_err(failed())?;
    }
}

/// Has a file on its disk.
fn sync(path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(failed())?;
    file.sync_all().map_err(failed())
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lab scripts and what their headers ask for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Context, Error, Result};

/// A script under `lab/` with the machine it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The file's name without `.sh`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// One line that says what it shows.
    pub about: String,
    /// The machine.
    pub machine: Machine,
}

/// What a script's header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory: u32,
    /// The hard limit for the whole run.
    pub timeout: Duration,
    /// Modules to load before the script, in this order.
    pub modules: Vec<String>,
    /// Binaries of this project to put into the guest.
    pub binaries: Vec<String>,
    /// The same for those that can't be built for musl.
    pub gnu: Vec<String>,
    /// Whether the guest gets its own kernel as a file, to boot it once more inside.
    pub kernel: bool,
    /// Whether the guest gets the modules that are built for the lab, in `/lab/built`.
    pub built: bool,
    /// The size in MiB of a virtio-blk PCI function behind an IOMMU, if there is one.
    pub function: Option<u32>,
    /// These are built for speed, without debug assertions.
    pub release: bool,
    /// The script runs only when it is named.
    pub named: bool,
    /// The disk that a server on the host exports, if any.
    pub disk: Option<Disk>,
}

/// A disk served over vhost-user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The image's size in MiB at the start.
    pub size: u64,
    /// Number of request queues.
    pub queues: u32,
    /// Whether the guest's root file system is on it.
    pub root: bool,
    /// Whether the script kills the server, so that the server must keep track of requests in flight.
    pub crashes: bool,
    /// Whether the guest moves between servers of the image.
    pub migrates: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory: 1024,
            timeout: Duration::from_secs(180),
            modules: Vec::new(),
            binaries: Vec::new(),
            gnu: Vec::new(),
            kernel: false,
            built: false,
            function: None,
            release: false,
            named: false,
            disk: None,
        }
    }
}

impl Machine {
    /// Whether a Linux guest runs in this guest: it takes both CPUs of the host's, and QEMU's faults with nested guests
    /// show more often on a busy host.
    pub fn nests(&self) -> bool {
        self.kernel
    }
}

impl Script {
    /// All scripts of a directory, by name.
    ///
    /// # Errors
    /// A directory or header that can't be read.
    pub fn all(directory: &Path) -> Result<Vec<Self>> {
        let mut scripts = Vec::new();
        for entry in fs::read_dir(directory).on("read", directory)? {
            let path = entry.on("read", directory)?.path();
            if path.extension().is_some_and(|extension| extension == "sh") {
                scripts.push(Self::read(&path)?);
            }
        }
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scripts)
    }

    fn read(path: &Path) -> Result<Self> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(path).on("read", path)?;
        let (about, machine) = parse(&text).map_err(|what| Error::Script {
            script: path.display().to_string(),
            what,
        })?;
        Ok(Self {
            name: name.into_owned(),
            path: path.to_owned(),
            about,
            machine,
        })
    }
}

/// Reads the header of a script: the line `# about: TEXT` and any number of `# lab: KEY=VALUE ...`.
///
/// # Errors
/// What is wrong, in words for the script's author.
pub fn parse(text: &str) -> std::result::Result<(String, Machine), String> {
    let mut about = None;
    let mut machine = Machine::default();
    for line in text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with('#'))
    {
        if let Some(text) = line.strip_prefix("# about:") {
            about = Some(text.trim().to_owned());
        }
        let settings = line.strip_prefix("# lab:").unwrap_or_default();
        for word in settings.split_whitespace() {
            set(&mut machine, word)?;
        }
    }
    let about = about.ok_or("the header has no line `# about: what it shows`")?;
    Ok((about, machine))
}

fn set(machine: &mut Machine, word: &str) -> std::result::Result<(), String> {
    let (key, value) = word
        .split_once('=')
        .ok_or_else(|| format!("{word}: not KEY=VALUE"))?;
    let number = || {
        let number = value.parse::<u32>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("{word}: not a number above 0"))
    };
    let names = || value.split(',').map(str::to_owned).collect();
    match key {
        "cpus" => machine.cpus = number()?,
        "memory" => machine.memory = number()?,
        "timeout" => machine.timeout = Duration::from_secs(number()?.into()),
        "modules" => machine.modules = names(),
        "binaries" => machine.binaries = names(),
        "gnu" => machine.gnu = names(),
        "kernel" if value == "yes" => machine.kernel = true,
        "built" if value == "yes" => machine.built = true,
        "function" => machine.function = Some(number()?),
        "build" if value == "release" => machine.release = true,
        "run" if value == "named" => machine.named = true,
        "disk" => {
            machine.disk = Some(Disk {
                size: number()?.into(),
                queues: 1,
                root: false,
                crashes: false,
                migrates: false,
            });
        }
        _ => {
            let disk = machine
                .disk
                .as_mut()
                .filter(|_| ["queues", "root", "crashes", "migrates"].contains(&key));
            let disk =
                disk.ok_or_else(|| format!("{word}: unknown, or it must follow disk=MIB"))?;
            match (key, value) {
                ("queues", _) => disk.queues = number()?,
                ("root", "yes") => disk.root = true,
                ("crashes", "yes") => disk.crashes = true,
                ("migrates", "yes") => disk.migrates = true,
                _ => return Err(format!("{word}: only `yes` is possible")),
            }
        }
    }
    Ok(())
}

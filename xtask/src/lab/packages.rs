// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which packages there are: what apt says it would install, read from its simulation.

use std::fmt;

/// One version of one Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Package {
    /// The name, without architecture.
    pub name: String,
    /// The full version.
    pub version: String,
    /// The architecture, `all` included.
    pub arch: String,
}

impl Package {
    /// The name that `apt-get download` gives the file.
    pub fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.arch)
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (name, version, arch) = (words.next()?, words.next()?, words.next()?);
        Some(Self {
            name: name.to_owned(),
            version: version.to_owned(),
            arch: arch.to_owned(),
        })
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.version, self.arch)
    }
}

/// The packages that `apt-get --simulate install` would install.
///
/// The lines meant are `Inst NAME [OLD] (VERSION ORIGIN... [ARCH])`, the old version only where one is
/// installed; all others are passed over.
pub fn parse_simulation(output: &str) -> Vec<Package> {
    output
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("Inst ")?;
            let (name, rest) = rest.split_once(' ')?;
            let inside = rest.split_once('(')?.1.split_once(')')?.0;
            let version = inside.split_whitespace().next()?;
            let arch = inside.rsplit_once('[')?.1.split_once(']')?.0;
            Some(Package {
                name: name.split(':').next()?.to_owned(),
                version: version.to_owned(),
                arch: arch.to_owned(),
            })
        })
        .collect()
}

/// Whether `package`, found in the closure of `wanted`, is to be fetched: what was asked for by name
/// and shared libraries. Interpreters, init systems and the like are left out: nothing in the lab runs them.
pub fn is_tool_or_library(package: &Package, wanted: &[&str]) -> bool {
    wanted.contains(&package.name.as_str())
        || (package.name.starts_with("lib") && !package.name.starts_with("libpython"))
}

/// Whether `package`, found in the closure of a kernel's meta package, carries the kernel or its modules.
/// The newest kernels come in several packages.
pub fn is_kernel(package: &Package) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"]
        .iter()
        .any(|prefix| package.name.starts_with(prefix))
}

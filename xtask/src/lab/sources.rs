// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where packages come from: the mirror and keyring this machine's apt already uses.

use std::fs;
use std::path::Path;

/// A Debian archive: where it is and how its signature is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The archive's root address.
    pub uri: String,
    /// The keyring file, where the source names one.
    pub signed_by: Option<String>,
}

/// The suites of a Debian archive end in none of these; security and such live at other addresses.
const OTHER_SUITES: [&str; 2] = ["-security", "-debug"];

impl Archive {
    /// The archive this system takes its Debian packages from, or Debian's public one where the system
    /// is no Debian or has no such source.
    pub fn of_this_system() -> Self {
        let mut texts = Vec::new();
        let listed = fs::read_dir("/etc/apt/sources.list.d");
        let mut files: Vec<_> = listed
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        files.sort();
        files.push("/etc/apt/sources.list".into());
        for file in files {
            if let Ok(text) = fs::read_to_string(&file) {
                let deb822 = file.extension().is_some_and(|e| e == "sources");
                let lines = deb822 || file.extension().is_some_and(|e| e == "list");
                if lines {
                    texts.push((text, deb822));
                }
            }
        }
        let debian = system_codename().is_some();
        let found = texts.iter().find_map(|(text, deb822)| match deb822 {
            true => from_deb822(text),
            false => from_lines(text),
        });
        match found {
            Some(archive) if debian => archive,
            _ => Self {
                uri: "https://deb.debian.org/debian".to_owned(),
                signed_by: Some("/usr/share/keyrings/debian-archive-keyring.gpg".to_owned()),
            },
        }
    }

    /// A deb822 sources file that offers these suites of this archive.
    pub fn sources_file(&self, suites: &[&str]) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
            self.uri,
            suites.join(" ")
        );
        if let Some(keyring) = &self.signed_by {
            text.push_str(&format!("Signed-By: {keyring}\n"));
        }
        text
    }
}

/// Debian's code name of this system's release, or `None` if this is another system.
pub fn system_codename() -> Option<String> {
    let text = fs::read_to_string(Path::new("/etc/os-release")).ok()?;
    debian_codename(&text)
}

/// The code name in the text of an os-release file, if it is Debian's.
pub fn debian_codename(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        os_release.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix('=')?;
            Some(value.trim_matches('"').to_owned())
        })
    };
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME"))?
}

/// The first usable archive in a deb822 sources file.
pub fn from_deb822(text: &str) -> Option<Archive> {
    // Comments may stand between the fields of one stanza.
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        if field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) {
            return None;
        }
        let suites = field("Suites")?;
        let components = field("Components")?;
        let binary = field("Types")?.split_whitespace().any(|word| word == "deb");
        let keyring = field("Signed-By").filter(|value| value.starts_with('/'));
        let usable = binary && is_main(suites.split_whitespace(), components.split_whitespace());
        usable.then_some(Archive {
            uri: field("URIs")?.split_whitespace().next()?.to_owned(),
            signed_by: keyring,
        })
    })
}

/// The first usable archive in a sources file of one-line entries.
pub fn from_lines(text: &str) -> Option<Archive> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        is_main([suite].into_iter(), words).then(|| Archive {
            uri: uri.to_owned(),
            signed_by: options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(str::to_owned),
        })
    })
}

fn is_main<'a>(
    mut suites: impl Iterator<Item = &'a str>,
    mut components: impl Iterator<Item = &'a str>,
) -> bool {
    components.any(|word| word == "main")
        && suites.any(|suite| {
            !suite.contains('/') && !OTHER_SUITES.iter().any(|other| suite.ends_with(other))
        })
}

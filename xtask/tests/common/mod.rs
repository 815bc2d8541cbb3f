// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of the repository.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::fs;
use std::path::Path;

/// The folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A file of it.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below `dir` whose name has one of the `endings`, by their path from the root.
pub fn files(dir: &str, endings: &[&str], found: &mut Vec<String>) {
    for entry in fs::read_dir(root().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = match dir {
            "" => name.clone(),
            _ => format!("{dir}/{name}"),
        };
        if entry.file_type().unwrap().is_dir() {
            let built = name == "target" || name == "corpus" || name.starts_with('.');
            if !built {
                files(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// All files whose name has one of the `endings`.
pub fn all(endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    files("", endings, &mut found);
    found.sort();
    found
}

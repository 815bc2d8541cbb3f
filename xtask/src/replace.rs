// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writing a file so that a reader, also after a kill, finds all of the old content or all of the new.

use std::ffi::OsString;
use std::path::Path;
use std::{fs, io, process};

/// Replaces the content of a file, or makes the file.
///
/// # Errors
/// The file system's. The file is as it was then.
pub fn replace(file: &Path, content: &str) -> io::Result<()> {
    let mut name = OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(format!(".{}.new", process::id()));
    let new = file.with_file_name(name);
    let replaced = fs::write(&new, content).and_then(|()| fs::rename(&new, file));
    if replaced.is_err() {
        // Of no use to anybody, if it is there.
        let _ = fs::remove_file(&new);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("note");
        let names = || fs::read_dir(dir.path()).unwrap().count();
        replace(&file, "old").unwrap();
        // Who has it open keeps what there was: nothing is written into it.
        let before = fs::File::open(&file).unwrap();
        replace(&file, "new").unwrap();
        assert_eq!(io::read_to_string(before).unwrap(), "old");
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(names(), 1);
        let directory = dir.path().join("directory");
        fs::create_dir(&directory).unwrap();
        replace(&directory, "content").unwrap_err();
        assert_eq!(names(), 2, "nothing is left behind");
    }
}

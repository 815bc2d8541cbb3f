// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several disks on one command line: each `--disk` begins a group of options.

use std::ffi::{OsStr, OsString};

fn begins_group(argument: &OsStr) -> bool {
    argument == "--disk" || argument.as_encoded_bytes().starts_with(b"--disk=")
}

/// Command lines of one disk each, in the order given. Options in front of the first `--disk` are part of each;
/// those behind one belong to it. A command line with one disk or none stays as it is.
pub fn split(arguments: impl Iterator<Item = OsString>) -> Vec<Vec<OsString>> {
    let arguments: Vec<OsString> = arguments.collect();
    let serves = arguments.iter().any(|argument| argument == "serve");
    let mut starts: Vec<usize> = (0..)
        .zip(&arguments)
        .filter(|(_, argument)| begins_group(argument))
        .map(|(index, _)| index)
        .collect();
    let Some(&first) = starts.first().filter(|_| serves && starts.len() > 1) else {
        return vec![arguments];
    };
    starts.push(arguments.len());
    let (common, _) = arguments.split_at(first);
    let groups = starts.windows(2).filter_map(|ends| match ends {
        [from, to] => arguments.get(*from..*to),
        _ => None,
    });
    groups.map(|group| [common, group].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(line: &str) -> Vec<String> {
        let split = split(line.split(' ').map(OsString::from));
        let joined = |words: Vec<OsString>| words.join(OsStr::new(" ")).into_string().unwrap();
        split.into_iter().map(joined).collect()
    }

    #[test]
    fn one_disk_stays_as_it_is() {
        for line in [
            "vblk serve vduse --name a --disk x --poll 0",
            "vblk serve vduse --help",
            "vblk features --disk x --disk y",
        ] {
            assert_eq!(lines(line), [line]);
        }
    }

    #[test]
    fn each_disk_has_its_options_and_those_in_front() {
        assert_eq!(
            lines("vblk serve vduse --poll 0 --disk x --name a --disk=y --name b --read-only"),
            [
                "vblk serve vduse --poll 0 --disk x --name a",
                "vblk serve vduse --poll 0 --disk=y --name b --read-only"
            ]
        );
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all sources have in common.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{all, read};

/// A module with files of its own is `x/mod.rs`, not `x.rs` beside the folder `x`.
#[test]
fn modules_have_one_style() {
    let sources = all(&[".rs"]);
    let folders: BTreeSet<&str> = (sources.iter())
        .filter_map(|path| path.rsplit_once('/'))
        .map(|(folder, _)| folder)
        .collect();
    let beside: Vec<&String> = (sources.iter())
        .filter(|path| {
            path.strip_suffix(".rs")
                .is_some_and(|name| folders.contains(name))
        })
        .collect();
    assert!(
        beside.is_empty(),
        "move each into its folder, as mod.rs: {beside:?}"
    );
}

/// Words of speech where technical English has others: continues, the caller, returns, during.
const SPEECH: [&str; 7] = [
    "goes on",
    "go on ",
    "whoever",
    "in the midst",
    "hands back",
    "handed back",
    "Answers whether",
];

/// The comment of a line of source; a document is one comment.
fn comment<'a>(path: &str, line: &'a str) -> &'a str {
    if path.ends_with(".md") {
        return line;
    }
    let mark = if path.ends_with(".rs") { "//" } else { "#" };
    line.split_once(mark).map_or("", |(_, comment)| comment)
}

#[test]
fn comments_are_plain() {
    let mut found = Vec::new();
    for path in all(&[".rs", ".md", ".sh"]) {
        // The list itself.
        if path == "xtask/tests/style.rs" {
            continue;
        }
        for (number, line) in (1..).zip(read(&path).lines()) {
            let text = comment(&path, line);
            let word = |word: &&&str| text.to_lowercase().contains(&word.to_lowercase());
            found.extend(
                (SPEECH.iter().filter(word)).map(|word| format!("{path}:{number}: {word}")),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

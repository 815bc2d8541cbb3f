// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `docs/embedding.md` and the README quote is what the sources say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

/// The lines between `// ANCHOR: name` and `// ANCHOR_END: name`, without their common indentation.
fn anchored(source: &str, name: &str) -> String {
    let (start, end) = (
        format!("// ANCHOR: {name}"),
        format!("// ANCHOR_END: {name}"),
    );
    let lines: Vec<&str> = source
        .lines()
        .skip_while(|line| line.trim() != start)
        .skip(1)
        .take_while(|line| line.trim() != end)
        .collect();
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let written = lines.iter().filter(|line| !line.trim().is_empty());
    let common = written.map(indent).min().unwrap_or(0);
    let lines = lines.iter().map(|line| line.get(common..).unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

#[test]
fn every_quote_is_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (document, count) in [("docs/embedding.md", 6), ("README.md", 1)] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        assert_eq!(quotes(&root, &text), count, "quotes found in {document}");
    }
}

/// Compares all quotes in `text` with their sources. Returns how many there are.
fn quotes(root: &Path, text: &str) -> usize {
    let mut quotes = 0;
    for part in text.split("<!-- quote: ").skip(1) {
        let (reference, rest) = part.split_once(" -->").unwrap();
        let (file, name) = reference.split_once('#').unwrap();
        let source = fs::read_to_string(root.join(file)).unwrap();
        let quoted = rest.trim_start().strip_prefix("```rust\n").unwrap();
        let (quoted, _) = quoted.split_once("\n```").unwrap();
        let expected = anchored(&source, name);
        assert!(!expected.is_empty(), "{reference}: no such anchor");
        assert_eq!(quoted, expected, "{reference}");
        quotes += 1;
    }
    quotes
}

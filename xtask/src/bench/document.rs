// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sections of `docs/performance.md` that are written by program.

use std::fs;

use crate::command::{Error, root};

/// Replaces what stands between `<!-- bench:NAME -->` and `<!-- bench:end -->`, for each name and text.
///
/// # Errors
/// The file or a mark is missing; nothing was written then.
pub fn update(sections: &[(&str, String)]) -> Result<(), Error> {
    let path = root().join("docs/performance.md");
    let file = |source| Error::File {
        path: path.clone(),
        source,
    };
    let mut text = fs::read_to_string(&path).map_err(file)?;
    for (name, section) in sections {
        text = replace(&text, name, section).ok_or_else(|| {
            Error::Other(format!(
                "{} has no section between `{}` and `{END}`",
                path.display(),
                mark(name)
            ))
        })?;
    }
    crate::replace::replace(&path, &text).map_err(file)
}

const END: &str = "<!-- bench:end -->";

fn mark(name: &str) -> String {
    format!("<!-- bench:{name} -->")
}

fn replace(text: &str, name: &str, section: &str) -> Option<String> {
    let mark = mark(name);
    let (before, rest) = text.split_once(&mark)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{mark}\n{}\n{END}{after}", section.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_section_is_replaced() {
        let text = "a\n<!-- bench:x -->\nold\n<!-- bench:end -->\nb\n<!-- bench:y -->\n<!-- bench:end -->\nc\n";
        let new = replace(text, "x", "new\n").unwrap();
        assert_eq!(
            new,
            "a\n<!-- bench:x -->\nnew\n<!-- bench:end -->\nb\n<!-- bench:y -->\n<!-- bench:end -->\nc\n"
        );
        assert_eq!(replace(&new, "z", ""), None);
    }

    #[test]
    fn the_document_has_its_sections() {
        let text = fs::read_to_string(root().join("docs/performance.md")).unwrap();
        for name in ["instructions", "servers", "qcow2"] {
            assert!(replace(&text, name, "").is_some(), "{name}");
        }
    }
}

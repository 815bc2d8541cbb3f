// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The documents of the repository name things that exist: tests, files, rules by their number.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{all, files, read, root};

/// Rules in `docs/conformance.md`.
const RULES: usize = 85;

/// What stands between pairs of backticks.
fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether `source` has a test function of this name.
fn has_test(source: &str, name: &str) -> bool {
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else {
        return false;
    };
    before
        .lines()
        .rev()
        .map(str::trim)
        .take_while(|line| line.is_empty() || line.starts_with('#') || line.starts_with("//"))
        .any(|line| line == "#[test]")
}

/// A rule of `docs/conformance.md`: its number, and the files it lists with the tests of each.
struct Rule<'a> {
    number: usize,
    tests: Vec<(PathBuf, Vec<&'a str>)>,
}

fn rules(text: &str) -> Vec<Rule<'_>> {
    let mut rules = Vec::new();
    for rule in text.split("\n- **").skip(1) {
        let (number, rest) = rule.split_once("**").unwrap();
        // The last rule of a group ends where the next heading begins.
        let rest = rest.split("\n#").next().unwrap();
        let mut tests = Vec::new();
        for line in rest.split("\n  - ").skip(1) {
            let spans = code_spans(line);
            match spans.split_first() {
                Some((file, names)) if file.ends_with(".rs") => {
                    let below = if file.starts_with("examples/") {
                        ""
                    } else {
                        "crates"
                    };
                    tests.push((root().join(below).join(file), names.to_vec()));
                }
                _ => assert!(
                    line.starts_with("Section ") || line.starts_with("Kernel: "),
                    "{number}: neither source nor tests: {line}"
                ),
            }
        }
        assert!(
            rest.contains("\n  - Section ") || rest.contains("\n  - Kernel: "),
            "{number} has no source"
        );
        rules.push(Rule {
            number: number.parse().unwrap(),
            tests,
        });
    }
    rules
}

#[test]
fn each_rule_of_conformance_has_tests_that_exist() {
    let text = read("docs/conformance.md");
    let rules = rules(&text);
    let numbers: Vec<_> = rules.iter().map(|rule| rule.number).collect();
    assert_eq!(numbers, (1..=RULES).collect::<Vec<_>>());
    for Rule { number, tests } in &rules {
        assert!(!tests.is_empty(), "{number} has no test");
        for (file, names) in tests {
            let source = fs::read_to_string(file)
                .unwrap_or_else(|error| panic!("{number}: {}: {error}", file.display()));
            assert!(!names.is_empty(), "{number}: no test of {}", file.display());
            for name in names {
                assert!(
                    has_test(&source, name),
                    "{number}: {} has no test {name}",
                    file.display()
                );
            }
        }
    }
}

/// Code cites the specification; who cites a rule by its number cites one that is there.
#[test]
fn no_source_names_a_rule_that_is_not_there() {
    let this = "xtask/tests/documents.rs";
    for path in all(&[".rs", ".md", ".sh", ".toml"]) {
        if path == this {
            continue;
        }
        let text = read(&path);
        for (at, line) in text.lines().enumerate() {
            let place = format!("{path}:{}", at + 1);
            let lower = line.to_lowercase();
            assert!(!lower.contains("checklist"), "{place}: which?");
            assert!(!lower.contains("fn item_"), "{place}: say what it shows");
            for cited in lower.split("conformance.md, ").skip(1) {
                let digits: String = cited.chars().take_while(char::is_ascii_digit).collect();
                if let Ok(number) = digits.parse::<usize>() {
                    assert!(
                        (1..=RULES).contains(&number),
                        "{place}: there is no {number}"
                    );
                }
            }
        }
    }
}

/// Links between documents, and files of the repository that they name by their path from the root.
#[test]
fn documents_name_files_that_exist() {
    let of_ours = ["crates/", "examples/", "docs/", "lab/", "fuzz/", "xtask/"];
    let sources = all(&[".rs"]);
    let mut missing = Vec::new();
    for path in all(&[".md"]) {
        let text = read(&path);
        let near = root().join(&path).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#', ' ']).next().unwrap();
            if !target.contains("://") && !near.join(target).exists() {
                missing.push(format!("{path}: {target}"));
            }
        }
        for span in code_spans(&text) {
            if span.contains("NAME") || span.contains([' ', '*', '…', '{', '<', ':', '\n']) {
                continue;
            }
            let file = span.split('#').next().unwrap();
            // Of a source file as much of the path as it takes: `ring/split.rs`.
            let end = format!("/{file}");
            let is_source = || sources.iter().any(|source| source.ends_with(&end));
            let exists = if of_ours.iter().any(|dir| span.starts_with(dir)) {
                // A crate's README may name an example of the crate.
                root().join(file).exists() || near.join(file).exists()
            } else {
                !file.contains('/') || !file.ends_with(".rs") || is_source()
            };
            if !exists {
                missing.push(format!("{path}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The documents speak of the repository alone.
#[test]
fn documents_name_no_place_of_one_machine() {
    for path in all(&[".md"]) {
        let text = read(&path);
        for foreign in ["/work/", "/root/", "/home/"] {
            assert!(!text.contains(foreign), "{path} names {foreign}");
        }
        let near = Path::new(&path).parent().unwrap();
        for (at, _) in text.match_indices("../") {
            // The rest of a run that was looked at from its beginning.
            if text[..at].ends_with("../") {
                continue;
            }
            let is_end = |char: char| !(char.is_ascii_alphanumeric() || "._-/".contains(char));
            let relative = text[at..].split(is_end).next().unwrap();
            let up = relative.matches("../").count();
            let stays =
                up <= near.components().count() && root().join(near).join(relative).exists();
            assert!(
                stays,
                "{path} names {relative}, which is not in the repository"
            );
        }
    }
}

/// What the manifest of a member names of the repository's own crates, without dependencies for tests.
fn uses(manifest: &str, crates: &[String]) -> Vec<String> {
    let mut counts = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            counts = section.contains("dependencies")
                && !section.contains("dev-")
                && !section.contains("build-");
        } else if counts {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if crates.iter().any(|known| known == name) {
                found.push(name.to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The crates of `crates/`, each with what it uses of the others.
fn crates() -> Vec<(String, Vec<String>)> {
    let mut names: Vec<String> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let of = |name: &String| uses(&read(&format!("crates/{name}/Cargo.toml")), &names);
    names.iter().map(|name| (name.clone(), of(name))).collect()
}

#[test]
fn no_crate_depends_on_one_above_it() {
    let mut left = crates();
    while !left.is_empty() {
        let names: Vec<_> = left.iter().map(|(name, _)| name.clone()).collect();
        let before = left.len();
        left.retain(|(_, uses)| uses.iter().any(|used| names.contains(used)));
        assert!(left.len() < before, "a circle is among {names:?}");
    }
}

#[test]
fn the_table_of_crates_is_that_of_the_manifests() {
    let text = read("docs/architecture.md");
    let (_, table) = text.split_once("\n## The crates\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let columns: Vec<_> = row.split(" | ").collect();
        let name = code_spans(columns[0])[0].to_owned();
        let mut uses: Vec<_> = code_spans(columns.get(2).copied().unwrap_or_default())
            .iter()
            .map(|&used| used.to_owned())
            .collect();
        uses.sort();
        rows.push((name, uses));
    }
    rows.sort();
    assert_eq!(rows, crates());
}

/// Whether `text` has `word` by itself, not as a part of another one.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(inside) && !text[at + word.len()..].starts_with(inside)
    })
}

/// A `Type::item` of ours that a document names is in the source of the crate that has the type.
#[test]
fn documents_name_items_that_exist() {
    let mut sources = String::new();
    let mut by_crate = Vec::new();
    for (name, _) in crates() {
        let mut paths = Vec::new();
        files(&format!("crates/{name}/src"), &[".rs"], &mut paths);
        sources.clear();
        paths.iter().for_each(|path| sources.push_str(&read(path)));
        by_crate.push(sources.clone());
    }
    let declares = |source: &str, name: &str| {
        ["struct", "enum", "trait", "type"]
            .iter()
            .any(|kind| has_word(source, &format!("{kind} {name}")))
    };
    let mut missing = Vec::new();
    for path in all(&[".md"]) {
        for span in code_spans(&read(&path)) {
            let span = span.trim_end_matches("()");
            let parts: Vec<_> = span.split("::").collect();
            let [.., holder, item] = parts[..] else {
                continue;
            };
            let plain = |word: &str| word.chars().all(|c| c.is_alphanumeric() || c == '_');
            if !holder.starts_with(char::is_uppercase) || !plain(holder) || !plain(item) {
                continue;
            }
            let mut of_ours = by_crate
                .iter()
                .filter(|source| declares(source, holder))
                .peekable();
            if of_ours.peek().is_some() && !of_ours.any(|source| has_word(source, item)) {
                missing.push(format!("{path}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Each library's front page says what to begin with, and has an example that is compiled.
#[test]
fn front_pages_name_types_and_have_an_example() {
    for (name, _) in crates() {
        let library = root().join("crates").join(&name).join("src/lib.rs");
        // The tool is a program.
        if !library.exists() {
            continue;
        }
        let lib = fs::read_to_string(library).unwrap();
        assert!(
            lib.contains("#![doc = include_str!(\"../README.md\")]"),
            "{name}"
        );
        let page = read(&format!("crates/{name}/README.md"));
        let (_, rest) = page
            .split_once("\n## The types to know\n")
            .unwrap_or_else(|| panic!("{name}: no types"));
        let table = rest.split("\n## ").next().unwrap();
        let mut sources = Vec::new();
        files(&format!("crates/{name}/src"), &[".rs"], &mut sources);
        let source: String = sources.iter().map(|path| read(path)).collect();
        let types: Vec<_> = table
            .lines()
            .filter_map(|row| row.strip_prefix("| `"))
            .filter_map(|row| row.split_once(" | "))
            .flat_map(|(first, _)| first.split(", "))
            .map(|span| span.trim_matches('`').rsplit("::").next().unwrap())
            .collect();
        assert!(types.len() >= 4, "{name}: {types:?}");
        for item in types {
            assert!(has_word(&source, item), "{name}: there is no {item}");
        }
        let compiled = ["\n```\nuse ", "\n```rust\nuse "];
        assert!(
            compiled.iter().any(|fence| page.contains(fence)),
            "{name}: no example"
        );
    }
}

/// A table of files in a crate's README: each is there.
#[test]
fn tables_of_files_are_those_of_the_sources() {
    for (name, _) in crates() {
        let page = root().join("crates").join(&name).join("README.md");
        let Ok(text) = fs::read_to_string(page) else {
            continue;
        };
        let Some((_, table)) = text.split_once("| file | holds |\n|---|---|\n") else {
            continue;
        };
        let rows = table.lines().map_while(|row| row.strip_prefix("| "));
        for file in rows.flat_map(|row| code_spans(row.split(" | ").next().unwrap())) {
            let source = root().join("crates").join(&name).join("src").join(file);
            assert!(
                source.is_dir() || source.with_extension("rs").exists(),
                "{name}: there is no {file}"
            );
        }
    }
}

/// Grouped by crate, each entry once, in lines that fit a page.
#[test]
fn decisions_are_in_their_groups() {
    let text = read("docs/decisions.md");
    let known = |group: &str| {
        [
            "All crates",
            "vblk-testing and other tests",
            "fuzz, xtask, lab",
        ]
        .contains(&group)
            || root().join("crates").join(group).is_dir()
            || root().join(group).is_dir()
    };
    let mut titles = Vec::new();
    for line in text.lines() {
        assert!(line.chars().count() <= 120, "too long: {line}");
        if let Some(group) = line.strip_prefix("## ") {
            assert!(known(group), "no group: {group}; an entry begins with ###");
        } else if let Some(title) = line.strip_prefix("### ") {
            assert!(!titles.contains(&title), "twice: {title}");
            titles.push(title);
        }
    }
}

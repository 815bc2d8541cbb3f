// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What files are to each other: no circles, and none too long.
//!
//! Of two files of a crate, one can be read without the other.
//! A file uses another one if it names an item of it, by a path from `crate`, `self`, `super` or one of its own modules;
//! what a module only passes on (`pub use`) counts for the file that has the item. A module and those in its folder
//! (`x/mod.rs`, `x/y.rs`) are one thing and may use each other. Tests are left out. That no crate depends on one above it
//! is in `documents.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{all, files, read};

/// Crates with circles that are left, and the most files that one has. An image or an export is one engine around a state
/// that its parts share; a bitmap and its file refer to each other.
const ACCEPTED: [(&str, usize); 9] = [
    ("mini-vmm", 2),
    ("nbd-server", 3),
    ("vblk-testing", 2),
    ("vdpa-bus", 2),
    ("vduse-backend", 2),
    ("virtio-blk-disks", 2),
    ("virtio-blk-nbd", 9),
    ("virtio-blk-qcow2", 22),
    ("virtio-blk-rbd", 10),
];

/// A path of names, from the root of the crate or as it is written.
type Names = Vec<String>;

/// What a file has besides its text.
#[derive(Default)]
struct Module {
    file: String,
    /// Paths that it names, without those that it passes on.
    named: Vec<Names>,
    /// Names that it brings into its scope, and the paths that they stand for.
    scope: BTreeMap<String, Names>,
}

/// The text without comments, strings and inline tests.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test = line.trim() == "#[cfg(test)]";
        if is_test
            && lines
                .peek()
                .is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'))
        {
            lines.find(|line| *line == "}");
            continue;
        }
        let line = line.split("//").next().unwrap();
        // Every second piece between quotes is a text.
        let plain: Vec<&str> = line.split('"').step_by(2).collect();
        code.push_str(&plain.join(" "));
        code.push('\n');
    }
    code
}

/// The paths of a `use`, with the names that they bring.
fn tree(text: &str, before: &[String], found: &mut Vec<(Names, String)>) {
    let text = text.trim();
    if let Some((start, rest)) = text.split_once('{') {
        let mut names = before.to_vec();
        names.extend(
            start
                .split("::")
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        );
        let (mut depth, mut from) = (0, 0);
        let inside = rest.strip_suffix('}').unwrap_or(rest);
        for (at, char) in inside.char_indices() {
            match char {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    tree(&inside[from..at], &names, found);
                    from = at + 1;
                }
                _ => {}
            }
        }
        return tree(&inside[from..], &names, found);
    }
    if text.is_empty() {
        return;
    }
    let (path, alias) = text
        .split_once(" as ")
        .map_or((text, None), |(path, alias)| (path, Some(alias)));
    let mut names = before.to_vec();
    names.extend(path.split("::").map(|name| name.trim().to_owned()));
    names.pop_if(|last| last == "self" && names_something(before));
    let brought = alias
        .map(str::trim)
        .or(names.last().map(String::as_str))
        .unwrap_or_default()
        .to_owned();
    found.push((names, brought));
}

fn names_something(names: &[String]) -> bool {
    !names.is_empty()
}

/// The words of paths in the code, each with the words of the same path.
fn paths(code: &str) -> Vec<Names> {
    let is_path = |char: char| char.is_alphanumeric() || char == '_' || char == ':';
    let words = code
        .split(|char| !is_path(char))
        .filter(|word| word.contains("::") && !word.starts_with(':'));
    words
        .map(|word| {
            word.split("::")
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .collect()
}

fn module(file: &str) -> Module {
    let code = code(&read(file));
    let mut module = Module {
        file: file.to_owned(),
        ..Module::default()
    };
    let mut rest = String::new();
    // A `use` begins a line, and ends with a semicolon.
    let mut statements = code.split_inclusive(';');
    for statement in &mut statements {
        let at = statement.rfind("use ").filter(|at| {
            let start = statement[..*at].rfind('\n').map_or(0, |line| line + 1);
            let before = statement[start..*at].trim();
            before.is_empty() || before.starts_with("pub")
        });
        let Some(at) = at.filter(|_| statement.ends_with(';')) else {
            rest.push_str(statement);
            continue;
        };
        let start = statement[..at].rfind('\n').map_or(0, |line| line + 1);
        let passes_on = statement[start..at].contains("pub");
        rest.push_str(&statement[..start]);
        let mut found = Vec::new();
        tree(statement[at + 4..].trim_end_matches(';'), &[], &mut found);
        for (path, name) in found {
            if !passes_on {
                module.named.push(path.clone());
            }
            module.scope.insert(name, path);
        }
    }
    for path in paths(&rest) {
        match module.scope.get(&path[0]) {
            Some(known) => module.named.push([&known[..], &path[1..]].concat()),
            None => module.named.push(path),
        }
    }
    module
}

/// The modules of a crate by their path from its root.
fn modules(src: &str) -> BTreeMap<Names, Module> {
    let mut sources = Vec::new();
    files(src, &[".rs"], &mut sources);
    let mut modules = BTreeMap::new();
    for file in sources {
        let path = file.strip_prefix(src).unwrap().trim_start_matches('/');
        let mut names: Names = path
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        if names.iter().any(|name| name == "tests") {
            continue;
        }
        names.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
        modules.insert(names, module(&file));
    }
    modules
}

/// A path as it is written in `of`, from the root of the crate. `None`: it is of another crate.
fn from_root(modules: &BTreeMap<Names, Module>, of: &[String], path: &[String]) -> Option<Names> {
    let mut base = of.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while let Some(after) = rest.strip_prefix(&["super".to_owned()]) {
                base.pop();
                rest = after;
            }
        }
        first => {
            base.push(first.to_owned());
            modules.get(&base)?;
            rest = &path[1..];
        }
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// The module that has the item of a path from the root.
fn holder(modules: &BTreeMap<Names, Module>, path: &[String], depth: u8) -> Option<Names> {
    let end = (0..=path.len())
        .rev()
        .find(|end| modules.contains_key(&path[..*end]))?;
    let (holder_path, rest) = path.split_at(end);
    if let Some(name) = rest.first()
        && let Some(target) = modules[holder_path].scope.get(name)
    {
        let target = from_root(modules, holder_path, target)?;
        let target = [&target[..], &rest[1..]].concat();
        return if depth == 0 {
            None
        } else {
            holder(modules, &target, depth - 1)
        };
    }
    Some(holder_path.to_vec())
}

/// The groups of modules each of which uses the others, by way of others or not.
fn circles(modules: &BTreeMap<Names, Module>) -> Vec<BTreeSet<Names>> {
    let is_one = |a: &[String], b: &[String]| a.starts_with(b) || b.starts_with(a);
    let mut uses: BTreeMap<&Names, BTreeSet<Names>> = BTreeMap::new();
    for (names, module) in modules {
        let found = module
            .named
            .iter()
            .filter_map(|path| holder(modules, &from_root(modules, names, path)?, 8));
        uses.insert(names, found.filter(|other| !is_one(names, other)).collect());
    }
    let reach = |from: &Names| {
        let mut seen = BTreeSet::new();
        let mut left = vec![from.clone()];
        while let Some(next) = left.pop() {
            left.extend(
                uses[&next]
                    .iter()
                    .filter(|name| seen.insert((*name).clone()))
                    .cloned(),
            );
        }
        seen
    };
    let reached: BTreeMap<&Names, BTreeSet<Names>> =
        modules.keys().map(|names| (names, reach(names))).collect();
    let mut found: Vec<BTreeSet<Names>> = Vec::new();
    for (names, others) in &reached {
        let circle: BTreeSet<Names> = (others.iter())
            .filter(|other| reached[other].contains(*names))
            .cloned()
            .collect();
        if !circle.is_empty() && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

#[test]
fn files_use_each_other_one_way() {
    let mut sources = Vec::new();
    files("", &["lib.rs", "main.rs"], &mut sources);
    let roots: BTreeSet<&str> = (sources.iter())
        .filter_map(|path| path.rsplit_once('/'))
        .map(|(folder, _)| folder)
        .filter(|folder| folder.ends_with("/src"))
        .collect();
    assert!(roots.len() > 15, "{roots:?}");
    let mut wrong = Vec::new();
    for src in roots {
        let name = src.strip_suffix("/src").unwrap();
        let name = name.rsplit('/').next().unwrap();
        let accepted = ACCEPTED
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, most)| *most);
        let modules = modules(src);
        let found = circles(&modules);
        let most = found.iter().map(BTreeSet::len).max().unwrap_or(0);
        if most > accepted {
            let largest = found.iter().filter(|circle| circle.len() > accepted);
            let names = largest.map(|circle| {
                circle
                    .iter()
                    .map(|names| modules[names].file.as_str())
                    .collect()
            });
            wrong.extend(
                names.map(|files: Vec<_>| format!("{name}, {}: {}", files.len(), files.join(" "))),
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "files that use each other:\n{}",
        wrong.join("\n")
    );
}

/// Lines. A source file holds one thing, in 500 lines as a rule; one that grows is split before it is much longer. Tests
/// are lists of cases.
const LONGEST: usize = 550;
const LONGEST_TEST: usize = 700;

/// Files that are longer, with their own bound: to be split by the next who changes them.
const LONGER: [(&str, usize); 6] = [
    ("crates/nbd-server/src/connection/mod.rs", 660),
    ("crates/vhost-vdpa-frontend/tests/slow.rs", 800),
    ("crates/virtio-blk-qcow2/src/keeper.rs", 620),
    ("crates/virtio-blk-qcow2/src/queue/mod.rs", 650),
    ("crates/virtio-blk-qcow2/tests/bitmaps.rs", 800),
    ("fuzz/src/vduse/mod.rs", 620),
];

#[test]
fn files_are_short() {
    let mut long = Vec::new();
    for path in all(&[".rs"]) {
        let lines = read(&path).lines().count();
        let is_test = path.contains("/tests/") || path.ends_with("/tests.rs");
        let own = LONGER.iter().find(|(known, _)| *known == path);
        let most = match own {
            Some((_, most)) => *most,
            None if is_test => LONGEST_TEST,
            None => LONGEST,
        };
        if lines > most {
            long.push(format!("{path}: {lines} lines, of at most {most}"));
        }
    }
    assert!(long.is_empty(), "split by noun:\n{}", long.join("\n"));
}

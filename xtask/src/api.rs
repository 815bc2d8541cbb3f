// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask api`: public types and functions of each library with default features, as rustdoc sees them, and its
//! lines; beside those of an earlier commit if one is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use crate::command::{Error, command, output, root, run as execute, target_dir};

/// Options of `cargo xtask api`.
#[derive(clap::Args)]
pub struct Args {
    /// A commit to compare with
    #[arg(long, value_name = "COMMIT")]
    before: Option<String>,
    /// Only these crates
    #[arg(value_name = "CRATE")]
    crates: Vec<String>,
}

/// What is counted of a crate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Structures, enumerations, unions, traits and aliases, each once.
    types: usize,
    /// Functions that are no methods.
    functions: usize,
    /// Lines below `src`, without files of tests.
    lines: usize,
    /// Lines of these, and of `tests`.
    tests: usize,
}

/// Counts, and prints a table.
///
/// # Errors
/// A crate can't be documented, which takes the nightly toolchain; or there is no such commit.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let target = target_dir().join("api");
    let now = count(&root(), &target, &args.crates)?;
    let before = match &args.before {
        None => BTreeMap::new(),
        Some(commit) => {
            let tree = target.join("before");
            let mut add = command("git", ["worktree", "add", "--force", "--detach"]);
            execute(add.arg(&tree).arg(commit))?;
            let counted = count(&tree, &target, &args.crates);
            execute(command("git", ["worktree", "remove", "--force"]).arg(&tree))?;
            counted?
        }
    };
    println!("| crate | types | functions | lines | of tests |\n|---|--:|--:|--:|--:|");
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    for name in names {
        let column = |part: fn(&Counts) -> usize| {
            let of = |counts: &BTreeMap<String, Counts>| {
                (counts.get(name)).map_or("–".to_owned(), |counts| part(counts).to_string())
            };
            match before.is_empty() {
                true => of(&now),
                false => format!("{} → {}", of(&before), of(&now)),
            }
        };
        println!(
            "| `{name}` | {} | {} | {} | {} |",
            column(|counts| counts.types),
            column(|counts| counts.functions),
            column(|counts| counts.lines),
            column(|counts| counts.tests)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The counts of the crates in a checkout of the repository.
fn count(tree: &Path, target: &Path, only: &[String]) -> Result<BTreeMap<String, Counts>, Error> {
    let folder = tree.join("crates");
    let mut counts = BTreeMap::new();
    for name in names(&folder)? {
        if !only.is_empty() && !only.contains(&name) {
            continue;
        }
        let crate_folder = folder.join(&name);
        let mut found = Counts::default();
        lines(&crate_folder.join("src"), false, &mut found)?;
        lines(&crate_folder.join("tests"), true, &mut found)?;
        if crate_folder.join("src/lib.rs").exists() {
            let mut document = command("cargo", ["+nightly", "rustdoc", "--quiet", "--lib", "-p"]);
            document
                .arg(&name)
                .args([
                    "--",
                    "-Zunstable-options",
                    "--output-format=json",
                    "--cap-lints=allow",
                ])
                .env("CARGO_TARGET_DIR", target)
                .current_dir(tree);
            output(&mut document)?;
            let path = target.join(format!("doc/{}.json", name.replace('-', "_")));
            let text = read(&path)?;
            let json: Value = serde_json::from_str(&text).map_err(|source| Error::Format {
                what: path.display().to_string(),
                source,
            })?;
            let mut public = Public {
                json: &json,
                types: BTreeSet::new(),
                functions: BTreeSet::new(),
                seen: BTreeSet::new(),
            };
            public.module(&json["root"]);
            (found.types, found.functions) = (public.types.len(), public.functions.len());
        }
        counts.insert(name, found);
    }
    Ok(counts)
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// The names in a folder, if it is there, in order.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let wrong = |source| Error::File {
        path: folder.to_owned(),
        source,
    };
    let entries = fs::read_dir(folder).map_err(wrong)?;
    let names = entries.map(|entry| {
        Ok(entry
            .map_err(wrong)?
            .file_name()
            .to_string_lossy()
            .into_owned())
    });
    let mut names = names.collect::<Result<Vec<_>, Error>>()?;
    names.sort();
    Ok(names)
}

/// Adds the lines of the sources in a folder.
fn lines(folder: &Path, are_tests: bool, counts: &mut Counts) -> Result<(), Error> {
    for name in names(folder)? {
        let path = folder.join(&name);
        let are_tests = are_tests || name == "tests" || name == "tests.rs";
        if path.is_dir() {
            lines(&path, are_tests, counts)?;
        } else if name.ends_with(".rs") {
            let found = read(&path)?.lines().count();
            *(if are_tests {
                &mut counts.tests
            } else {
                &mut counts.lines
            }) += found;
        }
    }
    Ok(())
}

/// What is reached from the root of a crate, also through `pub use`.
struct Public<'a> {
    json: &'a Value,
    types: BTreeSet<String>,
    functions: BTreeSet<String>,
    /// Modules.
    seen: BTreeSet<String>,
}

impl Public<'_> {
    fn module(&mut self, id: &Value) {
        let item = &self.json["index"][id.to_string()];
        if !self.seen.insert(id.to_string()) {
            return;
        }
        for child in item["inner"]["module"]["items"]
            .as_array()
            .into_iter()
            .flatten()
        {
            self.item(child);
        }
    }

    fn item(&mut self, id: &Value) {
        let item = &self.json["index"][id.to_string()];
        let Some((kind, inner)) = item["inner"]
            .as_object()
            .and_then(|inner| inner.iter().next())
        else {
            return;
        };
        match kind.as_str() {
            "module" => self.module(id),
            "struct" | "enum" | "union" | "trait" | "type_alias" => {
                self.types.insert(id.to_string());
            }
            "function" => {
                self.functions.insert(id.to_string());
            }
            "use" => {
                let target = &inner["id"];
                let is_local = !self.json["index"][target.to_string()].is_null();
                match (is_local, inner["is_glob"] == true) {
                    (true, true) => self.module(target),
                    (true, false) => self.item(target),
                    // Of another crate.
                    (false, _) => {
                        self.types.insert(target.to_string());
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_passed_on_counts_once() {
        let json = json!({"root": 0, "index": {
            "0": {"inner": {"module": {"items": [1, 2, 3, 4]}}},
            "1": {"inner": {"use": {"id": 5, "is_glob": false}}},
            "2": {"inner": {"module": {"items": [5, 6, 7]}}},
            "3": {"inner": {"use": {"id": 2, "is_glob": true}}},
            "4": {"inner": {"use": {"id": 99, "is_glob": false}}},
            "5": {"inner": {"struct": {}}},
            "6": {"inner": {"function": {}}},
            "7": {"inner": {"constant": {}}},
        }});
        let mut public = Public {
            json: &json,
            types: BTreeSet::new(),
            functions: BTreeSet::new(),
            seen: BTreeSet::new(),
        };
        public.module(&json["root"]);
        assert_eq!(public.types.len(), 2, "{:?}", public.types);
        assert_eq!(public.functions.len(), 1);
    }
}

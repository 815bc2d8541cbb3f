// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernel modules: what each needs, and in which order they are loaded.
//!
//! Debian generates `modules.dep` at installation, so a package that was only unpacked has none; the
//! same facts are in each module's `.modinfo` section.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The names of the modules that `module` (an uncompressed `.ko`) needs, as its `depends=` entry says.
pub fn depends(module: &[u8]) -> Vec<String> {
    // Entries are NUL-terminated strings; the section's first one follows a NUL of the section before it.
    module
        .split(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_prefix(b"depends="))
        .filter_map(|list| std::str::from_utf8(list).ok())
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

/// A module's name as the kernel shows it: file names use either dash or underscore.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The order in which `module` and all it needs (by `graph`) are loaded, itself last.
///
/// A module that `graph` doesn't know is taken to need nothing; a cycle, which the kernel doesn't
/// allow, is cut.
pub fn load_order(graph: &BTreeMap<String, Vec<String>>, module: &str) -> Vec<String> {
    fn visit(
        graph: &BTreeMap<String, Vec<String>>,
        module: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) {
        if !seen.insert(module.to_owned()) {
            return;
        }
        for needed in graph.get(module).into_iter().flatten() {
            visit(graph, needed, seen, order);
        }
        order.push(module.to_owned());
    }
    let mut order = Vec::new();
    visit(graph, module, &mut BTreeSet::new(), &mut order);
    order
}

/// The text of a `modules.dep` for modules that lie side by side as `NAME.ko`: after each module what
/// it needs, to be loaded from right to left.
pub fn modules_dep(graph: &BTreeMap<String, Vec<String>>) -> String {
    let mut text = String::new();
    for module in graph.keys() {
        let mut order = load_order(graph, module);
        order.pop();
        let _ = write!(text, "{module}.ko:");
        for needed in order.iter().rev() {
            let _ = write!(text, " {needed}.ko");
        }
        text.push('\n');
    }
    text
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all sources have in common.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::all;

/// Where modules in files of their own name are left.
const SELF_NAMED: [&str; 3] = [
    "crates/virtio-blk-core/",
    "crates/virtio-blk-disks/src/raw",
    "crates/virtio-blk-qcow2/",
];

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
        .filter(|path| !SELF_NAMED.iter().any(|left| path.starts_with(left)))
        .collect();
    assert!(
        beside.is_empty(),
        "move each into its folder, as mod.rs: {beside:?}"
    );
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of operations on an image, with QEMU as the judge of what they leave.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::Path;

use proptest::prelude::*;
use virtio_blk_disks::Engine;
use virtio_blk_qcow2::Qcow2Options;

use super::{BLOCKS, RawFiles, open_with};
use crate::common::{Act, BLOCK, Rig, act};
use crate::qemu;

pub fn acts() -> impl Strategy<Value = Vec<Act>> {
    let most = prop_oneof![6 => Just(16_u64), 1 => Just(700)];
    proptest::collection::vec(most.prop_flat_map(|most| act(BLOCKS, most)), 1..60)
}

/// A discard leaves parts of clusters alone: it is made smaller.
pub fn whole_clusters(act: Act, cluster: &str) -> Act {
    let bytes: u64 = match cluster.split_at(cluster.len() - 1) {
        (number, "k") => number.parse::<u64>().unwrap() << 10,
        (number, "M") => number.parse::<u64>().unwrap() << 20,
        _ => cluster.parse().unwrap(),
    };
    let blocks = bytes / BLOCK as u64;
    match act {
        Act::Discard(at, len) if at + len < BLOCKS => {
            let first = at.next_multiple_of(blocks);
            let end = ((at + len) / blocks * blocks).max(first);
            Act::Discard(first.min(BLOCKS), end.min(BLOCKS) - first.min(BLOCKS))
        }
        Act::Discard(at, len) if at + len == BLOCKS => {
            let first = at.next_multiple_of(blocks).min(BLOCKS);
            Act::Discard(first, BLOCKS - first)
        }
        act => act,
    }
}

/// Runs a sequence on an image that holds what `model` says, then has QEMU look at it.
pub fn play(
    image: &Path,
    files: RawFiles,
    options: Qcow2Options,
    depth: u16,
    acts: Vec<Act>,
    cluster: &str,
    model: Option<Vec<u8>>,
) {
    let disk = open_with(image, files, options);
    let mut rig = Rig::new(&disk, depth, BLOCK);
    if let Some(model) = model {
        assert!(rig.model == model);
    }
    acts.into_iter()
        .for_each(|act| rig.act(whole_clusters(act, cluster)));
    let model = rig.finish();
    drop(disk);
    qemu::check(image);
    qemu::compare(image, &model);
}

pub fn raw() -> impl Strategy<Value = RawFiles> {
    prop_oneof![
        Just(Engine::Auto),
        Just(Engine::Sync),
        Just(Engine::IoUring)
    ]
    .prop_map(|engine| RawFiles {
        engine,
        ..RawFiles::default()
    })
}

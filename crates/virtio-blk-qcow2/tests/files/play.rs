// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of operations on an image, with QEMU as the judge of what they leave.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::Path;

use proptest::prelude::*;
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::{Engine, RawDisk, RawOptions};
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

/// Whether a file can be read and written past the page cache in blocks of [`BLOCK`] bytes.
fn takes_direct(file: &Path) -> bool {
    let look = RawOptions::new(file).direct(true).inspect(true);
    RawDisk::open(&look.read_only(true))
        .is_ok_and(|disk| disk.caps().align.guest_block as usize <= BLOCK)
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
    let files = RawFiles {
        direct: files.direct && takes_direct(image),
        ..files
    };
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

/// Every engine, through the page cache and past it.
pub fn raw() -> impl Strategy<Value = RawFiles> {
    let engine = prop_oneof![
        Just(Engine::Auto),
        Just(Engine::Sync),
        Just(Engine::IoUring)
    ];
    (engine, any::<bool>()).prop_map(|(engine, direct)| RawFiles {
        engine,
        direct,
        ..RawFiles::default()
    })
}

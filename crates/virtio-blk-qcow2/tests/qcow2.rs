// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images against a vector of bytes, with QEMU's `qemu-img` as the judge of what is in the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;

use common::{Act, BLOCK, Rig, act, directory, read, run, write};
use files::{BLOCKS, RawFiles, SIZE, open, open_with, path};
use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
use virtio_blk_disks::Engine;
use virtio_blk_qcow2::Qcow2Options;

#[test]
fn what_is_written_is_read_by_us_and_by_qemu() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "compat=1.1", SIZE);
    let mut model = vec![0; SIZE];
    let disk = open(&image);
    let mut queue = disk.open_queue(4).unwrap();
    for (at, value) in [(0, 1), (3, 2), (127, 3), (128, 4), (1000, 5)] {
        write(&mut *queue, at * 512, vec![value; 1024]).unwrap();
        model[at as usize * 512..][..1024].fill(value);
    }
    assert!(read(&mut *queue, 0, SIZE).unwrap() == model);
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    drop((queue, disk));
    qemu::check(&image);
    qemu::compare(&image, &model);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    assert!(read(&mut *queue, 0, SIZE).unwrap() == model);
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let most = prop_oneof![6 => Just(16_u64), 1 => Just(700)];
    proptest::collection::vec(most.prop_flat_map(|most| act(BLOCKS, most)), 1..60)
}

/// A discard leaves parts of clusters alone: it is made smaller.
fn whole_clusters(act: Act, cluster: &str) -> Act {
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
fn play(
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

fn raw() -> impl Strategy<Value = RawFiles> {
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn new_images(
        acts in acts(),
        depth in prop_oneof![Just(1_u16), Just(2), Just(32)],
        raw in raw(),
        cluster in prop_oneof![Just("512"), Just("4k"), Just("64k"), Just("2M")],
        refcounts in prop_oneof![Just(1), Just(2), Just(4), Just(8), Just(16), Just(32), Just(64)],
        discard in any::<bool>(),
    ) {
        let directory = directory();
        let image = path(&directory, "disk.qcow2");
        qemu::create(&image, &format!("cluster_size={cluster},refcount_bits={refcounts}"), SIZE);
        play(&image, raw, Qcow2Options::new().discard(discard), depth, acts, cluster, None);
    }

    #[test]
    fn images_with_subclusters(
        acts in acts(),
        raw in raw(),
        cluster in prop_oneof![Just("16k"), Just("64k")],
        backing in any::<bool>(),
    ) {
        let directory = directory();
        let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
        let mut options = format!("extended_l2=on,cluster_size={cluster}");
        let mut model = vec![0; SIZE];
        if backing {
            model = (0..SIZE).map(|i| (i / 700) as u8).collect();
            std::fs::write(&base, &model).unwrap();
            options += ",backing_file=base.img,backing_fmt=raw";
        }
        qemu::create(&image, &options, SIZE);
        play(&image, raw, Qcow2Options::new().backing(true), 8, acts, cluster, Some(model));
    }

    #[test]
    fn images_over_others(
        acts in acts(),
        short in any::<bool>(),
        compressed in prop_oneof![Just(None), Just(Some("zlib")), Just(Some("zstd"))],
        cluster in prop_oneof![Just("4k"), Just("64k")],
        raw in raw(),
    ) {
        let directory = directory();
        let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
        // A backing file may be shorter: behind its end there are zeroes.
        let len = if short { SIZE / 2 + BLOCK } else { SIZE };
        let mut model: Vec<u8> = (0..len).map(|i| (i / 700) as u8).collect();
        std::fs::write(&base, &model).unwrap();
        model.resize(SIZE, 0);
        let options = format!("cluster_size={cluster}");
        if let Some(compression) = compressed {
            let options = format!("{options},compression_type={compression}");
            let (base, image) = (base.to_str().unwrap(), image.to_str().unwrap());
            qemu::ok(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, base, image]);
            qemu::ok(&["resize", "-q", image, &SIZE.to_string()]);
        } else {
            let options = format!("{options},backing_file=base.img,backing_fmt=raw");
            qemu::create(&image, &options, SIZE);
        }
        play(&image, raw, Qcow2Options::new().backing(true), 8, acts, cluster, Some(model.clone()));
        prop_assert!(std::fs::read(&base).unwrap() == model[..len] || compressed.is_some());
    }
}

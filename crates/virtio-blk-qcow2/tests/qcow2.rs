// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images against a vector of bytes, with QEMU's `qemu-img` as the judge of what is in the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use common::{BLOCK, directory, read, run, write};
use files::play::{acts, play, raw};
use files::{SIZE, open, path};
use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
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

/// Content that no two places have in common.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 700) as u8).collect()
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

    #[test]
    fn images_over_images(
        acts in acts(),
        raw in raw(),
        (cluster, below) in prop_oneof![
            Just(("4k", "64k")),
            Just(("64k", "512")),
            Just(("512", "4k")),
            Just(("64k", "64k")),
        ],
        extended in any::<bool>(),
        len in prop_oneof![Just(SIZE), Just(SIZE / 2 + BLOCK), Just(2 * SIZE)],
    ) {
        let directory = directory();
        let (first, base) = (path(&directory, "first.img"), path(&directory, "base.qcow2"));
        let image = path(&directory, "disk.qcow2");
        let mut model = content(len);
        model[len / 4..len / 2].fill(0);
        std::fs::write(&first, &model).unwrap();
        // Half of it is in the middle image, half in the first.
        let options = format!("cluster_size={below},backing_file=first.img,backing_fmt=raw");
        qemu::create(&base, &options, len);
        let disk = open(&base);
        let mut queue = disk.open_queue(1).unwrap();
        let middle = vec![0x77; len / 3 / BLOCK * BLOCK];
        write(&mut *queue, (len / 8 / BLOCK * BLOCK) as u64, middle.clone()).unwrap();
        model[len / 8 / BLOCK * BLOCK..][..middle.len()].copy_from_slice(&middle);
        drop((queue, disk));
        model.resize(SIZE, 0);
        let extended = if extended && cluster == "64k" { ",extended_l2=on" } else { "" };
        let options = format!("cluster_size={cluster}{extended},backing_file=base.qcow2,backing_fmt=qcow2");
        qemu::create(&image, &options, SIZE);
        let whole = if cluster == "512" { "4k" } else { cluster };
        play(&image, raw, Qcow2Options::new().backing(true), 8, acts, whole, Some(model));
    }

    #[test]
    fn images_with_snapshots(
        acts in acts(),
        raw in raw(),
        setup in prop_oneof![
            Just("cluster_size=4k"),
            Just("cluster_size=512"),
            Just("cluster_size=64k,extended_l2=on"),
            Just("cluster_size=64k,compat=0.10"),
        ],
    ) {
        let directory = directory();
        let image = path(&directory, "disk.qcow2");
        qemu::create(&image, setup, SIZE);
        let model = content(SIZE);
        let disk = open(&image);
        write(&mut *disk.open_queue(1).unwrap(), 0, model.clone()).unwrap();
        drop(disk);
        let name = image.to_str().unwrap();
        qemu::ok(&["snapshot", "-q", "-c", "before", name]);
        play(&image, raw, Qcow2Options::new(), 8, acts, "64k", Some(model.clone()));
        qemu::ok(&["snapshot", "-q", "-a", "before", name]);
        qemu::check(&image);
        qemu::compare(&image, &model);
    }

    #[test]
    fn images_that_were_allocated_before(
        acts in acts(),
        raw in raw(),
        setup in prop_oneof![
            Just("preallocation=metadata"),
            Just("preallocation=full,extended_l2=on"),
            Just("preallocation=falloc,cluster_size=4k"),
        ],
    ) {
        let directory = directory();
        let image = path(&directory, "disk.qcow2");
        qemu::create(&image, setup, SIZE);
        play(&image, raw, Qcow2Options::new(), 8, acts, "64k", Some(vec![0; SIZE]));
    }

    #[test]
    fn images_with_a_data_file(
        acts in acts(),
        raw in raw(),
        is_raw in any::<bool>(),
        cluster in prop_oneof![Just("4k"), Just("64k")],
        extended in any::<bool>(),
    ) {
        let directory = directory();
        let (data, image) = (path(&directory, "data.img"), path(&directory, "disk.qcow2"));
        let extended = if extended && cluster == "64k" { ",extended_l2=on" } else { "" };
        let is = if is_raw { "on" } else { "off" };
        let options = format!("cluster_size={cluster}{extended},data_file={},data_file_raw={is}", data.display());
        qemu::create(&image, &options, SIZE);
        play(&image, raw, Qcow2Options::new().backing(true), 8, acts, cluster, Some(vec![0; SIZE]));
        if is_raw {
            let found = std::fs::read(&data).unwrap();
            let disk = open(&image);
            let model = read(&mut *disk.open_queue(1).unwrap(), 0, SIZE).unwrap();
            prop_assert!(found[..SIZE] == model);
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images that are created, checked, mended and mapped: QEMU agrees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{directory, read, run, write};
use files::{RawFiles, SIZE, Setup, open, path};
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};
use virtio_blk_qcow2::{
    Access, Checked, CreateOptions, Extent, Files, Repair, Where, check, create,
};

fn file(path: &Path, access: Access) -> Arc<dyn Disk> {
    RawFiles::default().open(path, access).unwrap()
}

/// Makes an image.
fn made(path: &Path, options: &CreateOptions) {
    std::fs::write(path, b"").unwrap();
    create(&file(path, Access::Write), options).unwrap();
}

fn checked(path: &Path, repair: Repair) -> Checked {
    let access = match repair {
        Repair::Nothing => Access::Read,
        _ => Access::Write,
    };
    let mut last = 0;
    let found = check(&file(path, access), path, repair, &mut |done, all| {
        assert!(done > last && done <= all);
        last = done;
    });
    found.unwrap()
}

#[test]
fn images_that_are_created_are_those_that_were_asked_for() {
    let directory = directory();
    let (image, base) = (path(&directory, "disk.qcow2"), path(&directory, "base.img"));
    std::fs::write(&base, vec![5; SIZE]).unwrap();
    let new = |size| CreateOptions::new(size);
    let large = 1 << 30;
    for (options, size, words) in [
        (
            new(SIZE as u64),
            SIZE as u64,
            &["\"cluster-size\": 65536"][..],
        ),
        (new(0), 0, &[]),
        (new(large).cluster(512), large, &["\"cluster-size\": 512"]),
        (new(1 << 43), 1 << 43, &[]),
        (
            new(large).cluster(2 << 20).zstd(true),
            large,
            &["\"compression-type\": \"zstd\""],
        ),
        (
            new(large).subclusters(true),
            large,
            &["\"extended-l2\": true"],
        ),
        (new(64 << 20).cluster(4096).metadata(true), 64 << 20, &[]),
        (
            new(64 << 20).subclusters(true).metadata(true),
            64 << 20,
            &[],
        ),
        (
            new(SIZE as u64).backing("base.img", "raw"),
            SIZE as u64,
            &[
                "\"backing-filename\": \"base.img\"",
                "\"backing-filename-format\": \"raw\"",
            ],
        ),
    ] {
        made(&image, &options);
        qemu::check(&image);
        let output = qemu::run(&["info", "--output=json", image.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let size_word = format!("\"virtual-size\": {size}");
        for word in words.iter().chain([&&*size_word]) {
            assert!(text.contains(*word), "{options:?}: {text} lacks {word}");
        }
        let found = checked(&image, Repair::Nothing);
        assert!(
            found.is_sound() && found.leaks == 0,
            "{options:?}: {found:?}"
        );
        if size == 0 {
            continue;
        }
        let disk = open(&image);
        assert_eq!(disk.caps().capacity_bytes(), size);
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, size - 4096, vec![7; 4096]).unwrap();
        assert!(read(&mut *queue, size - 4096, 4096).unwrap() == [7; 4096]);
        drop((queue, disk));
        qemu::check(&image);
    }
}

#[test]
fn what_can_not_be_created_is_named() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    std::fs::write(&image, b"").unwrap();
    let new = CreateOptions::new;
    for (options, word) in [
        (new(1000), "multiple of 512"),
        (new(1 << 20).cluster(1000), "power of two"),
        (new(1 << 20).cluster(256), "power of two"),
        (new(1 << 20).cluster(4 << 20), "power of two"),
        (new(1 << 20).cluster(8192).subclusters(true), "16384"),
        (new(1 << 40).cluster(512), "use larger ones"),
        (new(1 << 20).backing("a", "vmdk"), "vmdk"),
        (new(1 << 20).backing("", "raw"), "name"),
        (new(1 << 20).backing("a".repeat(1024), "raw"), "name"),
        (
            new(1 << 20).cluster(512).backing("a".repeat(500), "raw"),
            "name",
        ),
        (
            new(1 << 20).backing("a", "raw").metadata(true),
            "backing file",
        ),
    ] {
        let error = create(&file(&image, Access::Write), &options).unwrap_err();
        assert!(error.to_string().contains(word), "{options:?}: {error}");
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 0);
    }
}

/// Puts a refcount of 16 bits in the first block.
fn set_count(image: &Path, cluster: u64, count: u16) {
    let file = std::fs::File::options().read(true).write(true).open(image);
    let file = file.unwrap();
    let be64 = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let block = be64(be64(48));
    file.write_all_at(&count.to_be_bytes(), block + cluster * 2)
        .unwrap();
}

#[test]
fn leaks_and_lost_counts_are_found_and_mended() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=4k", SIZE);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![7; 64 << 10]).unwrap();
    drop((queue, disk));
    let name = image.to_str().unwrap();
    qemu::ok(&["snapshot", "-q", "-c", "before", name]);
    qemu::ok(&["bitmap", "--add", name, "b0"]);
    let sound = checked(&image, Repair::Nothing);
    assert!(sound.is_sound(), "{sound:?}");
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 4096, vec![8; 32 << 10]).unwrap();
    drop((queue, disk));
    // The bitmap is out of date now.
    let lost = checked(&image, Repair::Leaks);
    assert!(lost.leaks > 0 && lost.repaired == lost.leaks, "{lost:?}");
    let sound = checked(&image, Repair::Nothing);
    assert!(sound.is_sound(), "{sound:?}");
    assert_eq!((sound.allocated, sound.clusters), (16, SIZE as u64 / 4096));
    let last = sound.end / 4096 - 1;
    set_count(&image, last + 2, 1);
    set_count(&image, last, 0);
    let found = checked(&image, Repair::Nothing);
    assert!(!found.is_sound());
    assert_eq!(found.leaks, 1, "{found:?}");
    // The count, and the mark that says that it is 1.
    assert!(found.corruptions >= 1, "{found:?}");
    let found = checked(&image, Repair::Leaks);
    assert_eq!((found.leaks, found.repaired), (1, 1));
    assert_eq!(checked(&image, Repair::Nothing).leaks, 0);
    let found = checked(&image, Repair::Counts);
    assert_eq!((found.corruptions, found.repaired), (1, 1), "{found:?}");
    assert!(checked(&image, Repair::Nothing).is_sound());
    qemu::ok(&["check", "-q", name]);
}

/// An image with lazy refcounts after a kill: no count is right but those of the beginning.
#[test]
fn an_image_that_was_not_closed_is_mended() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=512,lazy_refcounts=on", SIZE);
    let commands = ["write -P 7 0 400k", "abort"];
    let mut qemu_io = std::process::Command::new("qemu-io");
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let output = qemu_io.args(["-f", "qcow2"]).arg(&image).output().unwrap();
    assert!(!output.status.success());
    let copy = path(&directory, "copy.qcow2");
    std::fs::copy(&image, &copy).unwrap();
    let refused = Setup::new(&copy).open().unwrap_err().to_string();
    assert!(refused.contains("dirty"), "{refused}");
    drop(Setup::new(&copy).repair(true).open().unwrap());
    qemu::check(&copy);
    let found = checked(&image, Repair::Nothing);
    assert!(found.dirty && !found.is_sound(), "{found:?}");
    let found = checked(&image, Repair::Counts);
    assert!(found.is_sound(), "{found:?}");
    qemu::check(&image);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![9; 512]).unwrap();
    run(&mut *queue, OpKind::Flush, IoBuf::new())
        .result
        .unwrap();
    drop((queue, disk));
    qemu::check(&image);
}

#[test]
fn extents_say_what_is_where() {
    let directory = directory();
    let (image, base) = (path(&directory, "disk.qcow2"), path(&directory, "base.img"));
    std::fs::write(&base, vec![5; SIZE / 2]).unwrap();
    let options = CreateOptions::new(SIZE as u64)
        .cluster(4096)
        .backing("base.img", "raw");
    made(&image, &options);
    let disk = open(&image);
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 8192, vec![7; 8192]).unwrap();
    let discard = OpKind::Discard {
        offset: 32768,
        len: 4096,
    };
    run(&mut *queue, discard, IoBuf::new()).result.unwrap();
    let all = disk.extents(0, 100).unwrap();
    let half = SIZE as u64 / 2;
    let shape: Vec<_> = all.iter().map(|e| (e.offset, e.len)).collect();
    assert_eq!(
        shape,
        [
            (0, 8192),
            (8192, 8192),
            (16384, 16384),
            (32768, 4096),
            (36864, half - 36864),
            (half, half)
        ]
    );
    let kind = |extent: &Extent| extent.place;
    assert_eq!(kind(&all[0]), Where::Backing);
    assert!(matches!(kind(&all[1]), Where::Data(host) if host % 4096 == 0));
    assert_eq!(kind(&all[3]), Where::Zero);
    assert_eq!(kind(&all[5]), Where::Zero);
    assert_eq!(disk.extents(16384, 1).unwrap(), all[2..3]);
    assert_eq!(disk.extents(SIZE as u64, 9).unwrap(), []);
}

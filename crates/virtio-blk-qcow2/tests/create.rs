// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images that are created: QEMU finds in them what was asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use common::{directory, read, write};
use files::{RawFiles, SIZE, open, path};
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_qcow2::{Access, CreateOptions, Files, Preallocation, Repair, check, create};

fn file(path: &Path, access: Access) -> Arc<dyn Disk> {
    RawFiles::default().open(path, access).unwrap()
}

/// Makes an image, and its data file if it has one. The progress that is told ends where it should.
fn made(image: &Path, data: Option<&Path>, options: &CreateOptions) -> Result<(), DiskError> {
    std::fs::write(image, b"").unwrap();
    let data = data.map(|data| {
        std::fs::write(data, b"").unwrap();
        file(data, Access::Write)
    });
    let mut told = (0, 0);
    let result = create(
        &file(image, Access::Write),
        data.as_ref(),
        options,
        &mut |done, all| {
            assert!(done >= told.0 && done <= all && all >= told.1);
            told = (done, all);
        },
    );
    assert!(
        result.is_err() || told.0 > 0 && told.0 * 2 > told.1,
        "{told:?}"
    );
    result
}

fn info(image: &Path) -> String {
    let output = qemu::run(&["info", "--output=json", image.to_str().unwrap()]);
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that the host has for a file.
fn space(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
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
        (
            new(64 << 20)
                .cluster(4096)
                .preallocation(Preallocation::Metadata),
            64 << 20,
            &[],
        ),
        (
            new(64 << 20)
                .subclusters(true)
                .preallocation(Preallocation::Metadata),
            64 << 20,
            &[],
        ),
        (
            new(large).refcount_bits(1).lazy_refcounts(true),
            large,
            &["\"refcount-bits\": 1,", "\"lazy-refcounts\": true"],
        ),
        (
            new(SIZE as u64)
                .cluster(4096)
                .refcount_bits(64)
                .preallocation(Preallocation::Full),
            SIZE as u64,
            &["\"refcount-bits\": 64"],
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
        made(&image, None, &options).unwrap();
        qemu::check(&image);
        let text = info(&image);
        let size_word = format!("\"virtual-size\": {size}");
        for word in words.iter().chain([&&*size_word]) {
            assert!(text.contains(*word), "{options:?}: {text} lacks {word}");
        }
        let found = check(
            &file(&image, Access::Read),
            &image,
            Repair::Nothing,
            &mut |_, _| {},
        )
        .unwrap();
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
            "use larger ones",
        ),
        (
            new(1 << 20)
                .backing("a", "raw")
                .preallocation(Preallocation::Metadata),
            "backing file",
        ),
        (new(1 << 20).refcount_bits(3), "power of two"),
        (new(1 << 20).refcount_bits(128), "power of two"),
        (new(1 << 20).data_file("", false), "name"),
        (
            new(1 << 20).data_file("a", true).backing("b", "raw"),
            "raw data file",
        ),
        (new(1 << 20).data_file("a", false), "opened"),
    ] {
        let error = made(&image, None, &options).unwrap_err();
        assert!(error.to_string().contains(word), "{options:?}: {error}");
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 0);
    }
}

#[test]
fn space_is_set_aside_as_asked_for() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let size = 8 << 20;
    let mut spaces = Vec::new();
    for what in [
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for options in [
            CreateOptions::new(size),
            CreateOptions::new(size).subclusters(true),
        ] {
            made(&image, None, &options.preallocation(what)).unwrap();
            qemu::check(&image);
            qemu::compare(&image, &vec![0; size as usize]);
            spaces.push(space(&image));
        }
    }
    let has_all: Vec<bool> = spaces.iter().map(|space| *space >= size).collect();
    assert_eq!(
        has_all,
        [false, false, false, false, true, true, true, true],
        "{spaces:?}"
    );
    assert!(spaces[2] > spaces[0], "there are tables: {spaces:?}");
}

#[test]
fn data_can_have_a_file_of_its_own() {
    let directory = directory();
    let (image, data) = (path(&directory, "disk.qcow2"), path(&directory, "data.img"));
    for is_raw in [false, true] {
        for what in [
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
        ] {
            let options = CreateOptions::new(SIZE as u64)
                .data_file(data.to_str().unwrap(), is_raw)
                .preallocation(what);
            made(&image, Some(&data), &options).unwrap();
            qemu::check(&image);
            let text = info(&image);
            assert!(
                text.contains(&format!("\"data-file\": \"{}\"", data.display())),
                "{text}"
            );
            assert!(
                text.contains(&format!("\"data-file-raw\": {is_raw}")),
                "{text}"
            );
            assert_eq!(std::fs::metadata(&data).unwrap().len(), SIZE as u64);
            assert_eq!(space(&data) >= SIZE as u64, what == Preallocation::Falloc);
            let disk = open(&image);
            let mut queue = disk.open_queue(1).unwrap();
            write(&mut *queue, 65536 + 512, vec![7; 1024]).unwrap();
            drop((queue, disk));
            qemu::check(&image);
            let mut model = vec![0; SIZE];
            model[65536 + 512..][..1024].fill(7);
            qemu::compare(&image, &model);
            if is_raw {
                assert!(std::fs::read(&data).unwrap() == model);
            }
        }
    }
}

// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What changes about an image while it is in use: its size, and its persistent bitmaps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::path::Path;

use common::{directory, read, run, write};
use files::{SIZE, Setup, open, path, sizes};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, OpKind};

/// The image's bitmaps as QEMU lists them, and what it says about them.
fn bitmaps(image: &Path) -> (bool, String) {
    let output = qemu::run(&["info", "--output=json", image.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    (text.contains("\"b0\""), warning)
}

#[test]
fn nothing_is_written_before_the_first_change() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let changes: [(&str, OpKind, usize); 3] = [
        (
            "a write",
            OpKind::Write {
                offset: 0,
                fua: false,
            },
            512,
        ),
        (
            "a discard",
            OpKind::Discard {
                offset: 64 << 10,
                len: 64 << 10,
            },
            0,
        ),
        (
            "a write-zeroes",
            OpKind::WriteZeroes {
                offset: 64 << 10,
                len: 512,
                unmap: false,
                fua: false,
            },
            0,
        ),
    ];
    for (what, kind, len) in changes {
        qemu::create(&image, "cluster_size=64k", SIZE);
        // Something that is there, and known to a queue after a read.
        write(
            &mut *open(&image).open_queue(1).unwrap(),
            0,
            vec![5; 128 << 10],
        )
        .unwrap();
        qemu::ok(&["bitmap", "--add", image.to_str().unwrap(), "b0"]);
        let (there, _) = bitmaps(&image);
        assert!(there);
        let before = (
            std::fs::read(&image).unwrap(),
            std::fs::metadata(&image).unwrap().modified().unwrap(),
        );
        let same = || {
            let content = std::fs::read(&image).unwrap();
            let time = std::fs::metadata(&image).unwrap().modified().unwrap();
            (content, time) == before
        };
        let options = Setup::new(&image);
        let served = open(&image);
        let look = options.clone().inspect(true).open().unwrap();
        assert_eq!(look.caps(), served.caps(), "beside one that is served");
        let mut queue = look.open_queue(4).unwrap();
        assert!(read(&mut *queue, 0, 512).unwrap() == [5; 512]);
        run(&mut *queue, OpKind::Flush, IoBuf::new())
            .result
            .unwrap();
        let refused = run(&mut *queue, kind, IoBuf::from_vec(vec![6; len])).result;
        assert!(matches!(refused, Err(DiskError::ReadOnly)));
        assert!(matches!(look.resize(1 << 30), Err(DiskError::ReadOnly)));
        drop((queue, look));
        assert_eq!(served.persistent_bitmaps(), 0);
        let mut queue = served.open_queue(4).unwrap();
        for _ in 0..2 {
            assert!(read(&mut *queue, 0, 128 << 10).unwrap() == vec![5; 128 << 10]);
            run(&mut *queue, OpKind::Flush, IoBuf::new())
                .result
                .unwrap();
        }
        assert!(same(), "{what}");
        drop((queue, served));
        assert!(same(), "{what}");
        let (there, warning) = bitmaps(&image);
        assert!(there && warning.is_empty(), "{warning}");

        let served = open(&image);
        let mut queue = served.open_queue(4).unwrap();
        read(&mut *queue, 0, 4096).unwrap();
        run(&mut *queue, kind, IoBuf::from_vec(vec![6; len]))
            .result
            .unwrap();
        drop((queue, served));
        assert!(!same(), "{what}");
        let (there, warning) = bitmaps(&image);
        assert!(there && warning.is_empty(), "{warning}");
        qemu::check(&image);
    }
}

#[test]
fn an_image_grows_while_it_is_in_use() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    for (setup, snapshot) in [
        ("cluster_size=512", false),
        ("cluster_size=4k", true),
        ("cluster_size=64k", false),
        ("cluster_size=2M", true),
        ("cluster_size=64k,compat=0.10", false),
    ] {
        // No whole number of clusters.
        let mut model = vec![0; SIZE - 512];
        qemu::create(&image, setup, model.len());
        if snapshot {
            qemu::ok(&["snapshot", "-q", "-c", "before", image.to_str().unwrap()]);
        }
        let disk = open(&image);
        let told = sizes(&disk);
        let mut queue = disk.open_queue(4).unwrap();
        let put = |queue: &mut dyn virtio_blk_core::disk::IoQueue, model: &mut [u8], at, len| {
            write(queue, at as u64, vec![7; len]).unwrap();
            model[at..at + len].fill(7);
        };
        put(&mut *queue, &mut model, SIZE - 4096 - 512, 4096);
        for size in [SIZE + 512, 3 * SIZE, 3 * SIZE, 40 * SIZE] {
            disk.resize(size as u64).unwrap();
            assert_eq!(disk.caps().capacity_bytes(), size as u64);
            let before = model.len();
            model.resize(size, 0);
            // A queue that was open before.
            let end = before.min(size - 8192);
            let found = read(&mut *queue, end as u64, 8192).unwrap();
            assert!(found == model[end..end + 8192], "{setup}");
            let (offset, fua) = (size as u64 - 512, true);
            run(
                &mut *queue,
                OpKind::Write { offset, fua },
                IoBuf::from_vec(vec![9; 512]),
            )
            .result
            .unwrap();
            model[size - 512..].fill(9);
            put(&mut *queue, &mut model, end, 4096);
        }
        assert_eq!(
            *told.lock().unwrap(),
            [SIZE + 512, 3 * SIZE, 40 * SIZE].map(|size| size as u64)
        );
        for (bytes, part) in [(SIZE as u64, "smaller"), (40 * SIZE as u64 + 7, "512")] {
            let error = disk.resize(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = disk.resize(!511).unwrap_err();
        assert!(disk.flush_error().is_none(), "{error}");
        put(&mut *queue, &mut model, 0, 4096);
        drop((queue, disk));
        qemu::check(&image);
        qemu::compare(&image, &model);
    }
    let disk = Setup::open(&Setup::new(&image).read_only(true)).unwrap();
    assert!(matches!(disk.resize(1 << 40), Err(DiskError::ReadOnly)));
}

/// Its snapshots would be of an unknown size: QEMU refuses that, too.
#[test]
fn version_2_does_not_grow_with_snapshots() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let name = image.to_str().unwrap();
    qemu::create(&image, "compat=0.10", SIZE);
    qemu::ok(&["snapshot", "-q", "-c", "before", name]);
    let disk = open(&image);
    let error = disk.resize(2 * SIZE as u64).unwrap_err().to_string();
    assert!(error.contains("qemu-img amend"), "{error}");
    assert_eq!(disk.caps().capacity_bytes(), SIZE as u64);
    drop(disk);
    qemu::ok(&["amend", "-f", "qcow2", "-o", "compat=v3", name]);
    open(&image).resize(2 * SIZE as u64).unwrap();
    qemu::check(&image);
}

/// The smallest clusters: tables that are much larger than what one refcount block counts.
#[test]
fn a_small_image_becomes_a_large_one() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=512", SIZE);
    let disk = open(&image);
    let mut queue = disk.open_queue(4).unwrap();
    write(&mut *queue, 0, vec![1; 4096]).unwrap();
    let mut last = 0;
    for size in [600 << 20, 601 << 20, 100 << 30] {
        disk.resize(size).unwrap();
        last = size - 4096;
        assert!(read(&mut *queue, last, 4096).unwrap() == [0; 4096]);
        write(&mut *queue, last, vec![2; 4096]).unwrap();
    }
    let error = disk.resize(1 << 40).unwrap_err().to_string();
    assert!(error.contains("512 bytes"), "{error}");
    drop((queue, disk));
    qemu::check(&image);
    let disk = open(&image);
    let mut queue = disk.open_queue(4).unwrap();
    for (at, value) in [(0, 1), ((600 << 20) - 4096, 2), (last, 2)] {
        assert!(read(&mut *queue, at, 4096).unwrap() == [value; 4096]);
    }
}

/// What a backing file holds behind the image's end would show.
#[test]
fn an_image_over_a_larger_one_does_not_grow() {
    let directory = directory();
    let (base, image) = (path(&directory, "base.img"), path(&directory, "disk.qcow2"));
    std::fs::write(&base, vec![7; 2 * SIZE]).unwrap();
    let setup = "backing_file=base.img,backing_fmt=raw";
    for (size, grows) in [(SIZE, false), (2 * SIZE, true)] {
        qemu::create(&image, setup, size);
        let disk = Setup::open(&Setup::new(&image).backing(true)).unwrap();
        let result = disk.resize(3 * SIZE as u64);
        if grows {
            result.unwrap();
            let mut queue = disk.open_queue(1).unwrap();
            let found = read(&mut *queue, 2 * SIZE as u64 - 512, 1024).unwrap();
            assert!(found == [[7; 512], [0; 512]].concat());
        } else {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("backing file"), "{error}");
            assert_eq!(disk.caps().capacity_bytes(), size as u64);
        }
    }
}

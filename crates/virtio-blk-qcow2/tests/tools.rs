// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images that are checked, mended and mapped: QEMU agrees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{directory, read, run, write};
use files::{RawFiles, SIZE, Setup, open, path};
use virtio_blk_core::disk::{Allocation, Disk, IoBuf, OpKind};
use virtio_blk_qcow2::{
    Access, Checked, CreateOptions, Extent, Files, Repair, Where, check, create,
};

fn file(path: &Path, access: Access) -> Arc<dyn Disk> {
    RawFiles::default().open(path, access).unwrap()
}

/// Makes an image.
fn made(path: &Path, options: &CreateOptions) {
    std::fs::write(path, b"").unwrap();
    create(&file(path, Access::Write), None, options, &mut |_, _| {}).unwrap();
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

fn to_change(image: &Path) -> File {
    let file = File::options().read(true).write(true).open(image);
    file.unwrap()
}

fn be64(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Where the first L2 table is.
fn first_l2(file: &File) -> u64 {
    be64(file, be64(file, 40)) & !(1 << 63)
}

/// Puts a refcount of 16 bits in the first block.
fn set_count(image: &Path, cluster: u64, count: u16) {
    let file = to_change(image);
    let block = be64(&file, be64(&file, 48));
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
    assert_eq!((found.leaks, found.leaks_fixed), (1, 1));
    assert_eq!(checked(&image, Repair::Nothing).leaks, 0);
    let found = checked(&image, Repair::Counts);
    assert_eq!(
        (found.corruptions, found.corruptions_fixed),
        (1, 1),
        "{found:?}"
    );
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
    for word in ["copy.qcow2", "dirty", "qemu-img check -r all"] {
        assert!(refused.contains(word), "{refused}");
    }
    // Nobody who only reads looks at the counts: also as a backing file.
    let before = std::fs::read(&copy).unwrap();
    let over = path(&directory, "over.qcow2");
    qemu::create(&over, "backing_file=copy.qcow2,backing_fmt=qcow2", SIZE);
    for setup in [
        Setup::new(&copy).read_only(true),
        Setup::new(&over).backing(true),
    ] {
        let disk = setup.open().unwrap();
        let found = read(&mut *disk.open_queue(1).unwrap(), 0, 400 << 10).unwrap();
        assert!(found == vec![7; 400 << 10], "{setup:?}");
    }
    assert!(std::fs::read(&copy).unwrap() == before);
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

/// The counts of much are missing: new ones must not lie on what they are to count.
#[test]
fn new_counts_are_not_put_where_data_is() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    let data: Vec<u8> = (0..12 << 20).map(|at| (at / 512) as u8 | 1).collect();
    qemu::create(&image, "cluster_size=512", data.len());
    let disk = open(&image);
    write(&mut *disk.open_queue(1).unwrap(), 0, data.clone()).unwrap();
    drop(disk);
    // Of a refcount table that counts more than it says.
    let short = File::options().write(true).open(&image).unwrap();
    short.write_all_at(&1_u32.to_be_bytes(), 56).unwrap();
    let found = check(
        &file(&image, Access::Write),
        &image,
        Repair::Counts,
        &mut |_, _| {},
    );
    let disk = open(&image);
    let found_data = common::read(&mut *disk.open_queue(1).unwrap(), 0, data.len()).unwrap();
    let wrong = found_data.iter().zip(&data).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "{found:?}");
    drop(disk);
    assert!(
        !found.unwrap().is_sound()
            || qemu::run(&["check", image.to_str().unwrap()])
                .status
                .success()
    );
}

/// A cluster that is used twice where counts end at 1: a mended count must not be that of a free one.
#[test]
fn what_can_not_be_counted_is_not_mended() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    for bits in [1, 2] {
        qemu::create(
            &image,
            &format!("cluster_size=4k,refcount_bits={bits}"),
            SIZE,
        );
        let disk = open(&image);
        let data = vec![1; 5 * 4096];
        write(&mut *disk.open_queue(1).unwrap(), 0, data).unwrap();
        drop(disk);
        let file = to_change(&image);
        let table = first_l2(&file);
        let first = be64(&file, table);
        for entry in 1..5 {
            file.write_all_at(&first.to_be_bytes(), table + entry * 8)
                .unwrap();
        }
        let found = checked(&image, Repair::Counts);
        assert!(
            !found.is_sound() && found.corruptions_left() > 0,
            "{found:?}"
        );
        let found = checked(&image, Repair::Nothing);
        let zero = format!(
            "cluster {} is used 5 times, counted 0",
            (first & !(1 << 63)) / 4096
        );
        assert!(
            !found.is_sound() && !found.told.contains(&zero),
            "{found:?}"
        );
    }
}

/// An entry that can't be right may still refer to data: to free lost space leaves that alone.
#[test]
fn a_faulty_entry_keeps_its_clusters() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    qemu::create(&image, "cluster_size=64k,extended_l2=on", SIZE);
    let disk = open(&image);
    write(&mut *disk.open_queue(1).unwrap(), 0, vec![1; 64 << 10]).unwrap();
    drop(disk);
    let file = to_change(&image);
    let bits = first_l2(&file) + 8;
    let right = be64(&file, bits);
    // The first subcluster is data and zero.
    let wrong = right | 1 << 32;
    file.write_all_at(&wrong.to_be_bytes(), bits).unwrap();
    let found = checked(&image, Repair::Leaks);
    assert_eq!((found.leaks, found.corruptions), (0, 1), "{found:?}");
    file.write_all_at(&right.to_be_bytes(), bits).unwrap();
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
    assert_eq!(kind(&all[5]), Where::Unallocated);
    assert_eq!(disk.extents(16384, 1).unwrap(), all[2..3]);
    assert_eq!(disk.extents(SIZE as u64, 9).unwrap(), []);
    // What a copy needs to know.
    let whole = Disk::extents(&disk, 0..SIZE as u64, 9).unwrap();
    let found: Vec<_> = whole.iter().map(|e| (e.len, e.allocation)).collect();
    assert_eq!(
        found,
        [
            (32768, Allocation::Data),
            (4096, Allocation::Hole),
            (half - 36864, Allocation::Data),
            (half, Allocation::Hole)
        ]
    );
    let part = Disk::extents(&disk, 32768..36864 + 512, 9).unwrap();
    let found: Vec<_> = part.iter().map(|e| (e.len, e.allocation)).collect();
    assert_eq!(found, [(4096, Allocation::Hole), (512, Allocation::Data)]);
    assert!(Disk::extents(&disk, 0..SIZE as u64 + 1, 9).is_err());
}

/// A part of a disk, as `qemu-img map` tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    end: u64,
    zero: bool,
    compressed: bool,
    /// Where in which file of the chain, of data that is in one piece.
    at: Option<(u64, u64)>,
}

impl Part {
    /// Adds a part to others. Neighbours of one kind become one.
    fn push(self, into: &mut Vec<Self>) {
        if let Some(last) = into.last_mut() {
            assert_eq!(last.end, self.start);
            let follows = match (last.at, self.at) {
                (Some((depth, at)), Some(next)) => (depth, at + last.end - last.start) == next,
                (at, next) => at == next,
            };
            if follows && (last.zero, last.compressed) == (self.zero, self.compressed) {
                last.end = self.end;
                return;
            }
        }
        into.push(self);
    }
}

/// What `qemu-img map` says.
fn qemu_map(image: &Path) -> Vec<Part> {
    let output = qemu::run(&["map", "--output=json", image.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut parts = Vec::new();
    for object in text.split('}').filter(|object| object.contains("start")) {
        let word = |name: &str| {
            let (_, rest) = object.split_once(&format!("\"{name}\": "))?;
            Some(rest.split([',', ' ']).next().unwrap().to_owned())
        };
        let number = |name: &str| word(name).map(|word| word.parse::<u64>().unwrap());
        let is = |name: &str| word(name).unwrap() == "true";
        let start = number("start").unwrap();
        let part = Part {
            start,
            end: start + number("length").unwrap(),
            zero: is("zero"),
            compressed: is("compressed"),
            at: number("offset")
                .filter(|_| is("data"))
                .map(|at| (number("depth").unwrap(), at)),
        };
        part.push(&mut parts);
    }
    parts
}

/// What we say, asking for so many extents at a time.
fn own_map(image: &Path, most: usize) -> Vec<Part> {
    let disk = Setup::new(image).backing(true).inspect(true);
    let disk = disk.open().unwrap();
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        let extents = disk.map(at, most).unwrap();
        assert!(extents.len() <= most);
        let Some(last) = extents.last() else {
            assert_eq!(at, disk.caps().capacity_bytes());
            return parts;
        };
        at = last.offset + last.len;
        for extent in extents {
            let part = Part {
                start: extent.offset,
                end: extent.offset + extent.len,
                zero: matches!(extent.place, Where::Zero | Where::Unallocated),
                compressed: extent.place == Where::Compressed,
                at: match extent.place {
                    Where::Data(at) => Some((extent.depth as u64, at)),
                    _ => None,
                },
            };
            part.push(&mut parts);
        }
    }
}

/// Bytes of a disk with several L2 tables.
const LARGE: usize = 4 << 20;

#[test]
fn qemu_has_the_same_map_of_a_chain() {
    let directory = directory();
    let path = |name: &str| path(&directory, name);
    // No holes, which are the host's affair; and it ends within a cluster.
    std::fs::write(path("raw.img"), vec![5; LARGE / 2 + 512]).unwrap();
    let compressed = path("compressed.qcow2");
    let options = "cluster_size=64k,backing_file=raw.img,backing_fmt=raw";
    qemu::create(&compressed, options, LARGE);
    let io = |image: &Path, commands: &[&str]| {
        let mut qemu_io = std::process::Command::new("qemu-io");
        for command in commands {
            qemu_io.args(["-c", command]);
        }
        let output = qemu_io.args(["-f", "qcow2"]).arg(image).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    io(
        &compressed,
        &["write -c -P 3 64k 64k", "write -P 4 1M 128k"],
    );
    let top = path("top.qcow2");
    for setup in [
        "cluster_size=4k",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=512",
    ] {
        let options = format!("{setup},backing_file=compressed.qcow2,backing_fmt=qcow2");
        qemu::create(&top, &options, LARGE + 4096);
        io(
            &top,
            &[
                "write -P 1 8k 4k",
                "write -P 1 20k 4k",
                "write -z 128k 64k",
                "write -P 2 3M 9k",
            ],
        );
        for most in [1, 7, 1000] {
            assert_eq!(own_map(&top, most), qemu_map(&top), "{setup}");
        }
        let disk = Setup::new(&top).backing(true).inspect(true).open().unwrap();
        let chain = disk.chain().unwrap();
        let names: Vec<_> = chain
            .iter()
            .map(|file| (file.path.clone(), file.raw))
            .collect();
        let expected = [
            (top.clone(), false),
            (compressed.clone(), false),
            (path("raw.img"), true),
        ];
        assert_eq!(names, expected);
        std::fs::remove_file(&top).unwrap();
    }
    let data = path("data.img");
    let options = format!("cluster_size=64k,data_file={}", data.display());
    qemu::create(&top, &options, LARGE);
    io(&top, &["write -P 1 128k 64k", "write -P 2 0 4k"]);
    assert_eq!(own_map(&top, 2), qemu_map(&top));
    let disk = Setup::new(&top).backing(true).inspect(true).open().unwrap();
    assert_eq!(disk.chain().unwrap()[0].data_file, Some(data));
}

/// Numbers of `qemu-img check`, by name. What it does not say is 0.
fn qemu_check(image: &Path, name: &str) -> u64 {
    let output = qemu::run(&["check", "--output=json", image.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    let found = text.split_once(&format!("\"{name}\": "));
    found.map_or(0, |(_, rest)| {
        rest.split([',', '\n']).next().unwrap().parse().unwrap()
    })
}

#[test]
fn qemu_counts_the_same() {
    let directory = directory();
    let image = path(&directory, "disk.qcow2");
    for setup in [
        "cluster_size=4k",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=512",
    ] {
        qemu::create(&image, setup, LARGE);
        let mut qemu_io = std::process::Command::new("qemu-io");
        for command in [
            "write 0 64k",
            "write -c 1M 64k",
            "write 512k 9k",
            "write 256k 8k",
            "write -z 256k 4k",
        ] {
            qemu_io.args(["-c", command]);
        }
        assert!(
            qemu_io
                .args(["-f", "qcow2"])
                .arg(&image)
                .output()
                .unwrap()
                .status
                .success()
        );
        let found = checked(&image, Repair::Nothing);
        assert!(found.is_sound(), "{found:?}");
        for (name, number) in [
            ("total-clusters", found.clusters),
            ("allocated-clusters", found.allocated),
            ("compressed-clusters", found.compressed),
            ("fragmented-clusters", found.fragmented),
            ("image-end-offset", found.end),
        ] {
            assert_eq!(number, qemu_check(&image, name), "{setup}: {name}");
        }
        std::fs::remove_file(&image).unwrap();
    }
}

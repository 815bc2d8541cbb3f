// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! qcow2 images that lie: each gives an error, or data, but never a panic, a hang or a foreign file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod files;
#[path = "../../virtio-blk-disks/tests/common/qemu.rs"]
mod qemu;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{directory, read, run, write};
use files::{Setup, open};
use proptest::prelude::*;
use virtio_blk_core::disk::{Disk, IoBuf, OpKind};

const SIZE: usize = 1 << 20;

/// Why an image can't be opened.
fn refusal(options: &Setup) -> String {
    match Setup::open(options) {
        Ok(_) => panic!("{options:?} was opened"),
        Err(error) => error.to_string(),
    }
}

fn put(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn be64(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    let file = std::fs::File::open(path).unwrap();
    file.read_exact_at(&mut bytes, offset).unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn each_lie_in_the_header_has_its_error() {
    let directory = directory();
    let good = directory.path().join("good.qcow2");
    qemu::create(&good, "cluster_size=64k", SIZE);
    let path = directory.path().join("bad.qcow2");
    let huge = u64::MAX.to_be_bytes();
    for (offset, bytes, words) in [
        (0, &b"QFI\xfa"[..], &["not a qcow2 image", "raw:"][..]),
        (4, &[0, 0, 0, 4], &["version 4"]),
        (8, &huge, &["backing"]),
        (20, &[0, 0, 0, 8], &["cluster size"]),
        (20, &[0, 0, 0, 22], &["cluster size"]),
        (20, &[0xff; 4], &["cluster size"]),
        (24, &huge, &["L1 table is too small"]),
        (24, &[0, 0, 0, 0, 0, 1, 0, 1], &["512"]),
        (32, &[0, 0, 0, 2], &["encryption", "qemu-img convert"]),
        (36, &[0xff; 4], &["L1 table is larger"]),
        (36, &[0, 1, 0, 0], &["L1 table lies outside"]),
        (40, &huge, &["L1 table lies outside"]),
        (40, &[0, 0, 0, 0, 0, 0, 2, 0], &["L1 table lies outside"]),
        (48, &huge, &["refcount table lies outside"]),
        (48, &[0; 8], &["refcount table lies outside"]),
        (56, &[0xff; 4], &["refcount table is larger"]),
        (56, &[0; 4], &["no refcount table"]),
        (
            72,
            &[0, 0, 0, 0, 0, 0, 0, 2],
            &["corrupt", "qemu-img check -r all"],
        ),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], &["external data file"]),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8], &["compression"]),
        (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], &["0x8000000000000000"]),
        (96, &[0, 0, 0, 7], &["refcounts"]),
        (100, &[0xff; 4], &["header's length"]),
        (100, &[0; 4], &["header's length"]),
    ] {
        std::fs::copy(&good, &path).unwrap();
        put(&path, offset, bytes);
        for options in [Setup::new(&path), Setup::new(&path).read_only(true)] {
            let message = refusal(&options);
            for word in words {
                assert!(
                    message.contains(word),
                    "{offset} {bytes:?}: {message} lacks {word}"
                );
            }
            assert!(message.contains("bad.qcow2"), "{message}");
        }
    }
}

#[test]
fn what_qemu_makes_but_we_do_not_read_is_named() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let name = path.to_str().unwrap();
    let secret = "secret,id=s,data=abc";
    qemu::ok(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        secret,
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        name,
        "1M",
    ]);
    let message = refusal(&Setup::new(&path));
    assert!(message.contains("encryption"), "{message}");
}

/// The image's author does not decide how long opening it takes.
#[test]
fn counts_of_too_many_tables_are_not_mended() {
    const CLUSTER: u64 = 2 << 20;
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    // 512 GiB for each table.
    qemu::create(&path, "cluster_size=2M", 300 << 40);
    let mut bytes = std::fs::read(&path).unwrap();
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap());
    bytes[79] |= 1;
    for number in 0..600 {
        let entry = (((1000 + number) * CLUSTER) | (1 << 63)).to_be_bytes();
        bytes[(l1 + 8 * number) as usize..][..8].copy_from_slice(&entry);
    }
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1600 * CLUSTER).unwrap();
    for (repair, part) in [(false, "repair=on"), (true, "more than 1 GiB of tables")] {
        let message = refusal(&Setup::new(&path).repair(repair));
        assert!(
            message.contains(part) && message.contains("qemu-img check"),
            "{message}"
        );
    }
}

#[test]
fn tables_must_not_share_clusters() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let fresh = || {
        qemu::create(&path, "cluster_size=4k,preallocation=metadata", 4 << 20);
        (be64(&path, 40), be64(&path, 48))
    };
    let damaged = |what: &str| {
        let message = refusal(&Setup::new(&path));
        assert!(message.contains(what), "{message}");
    };
    let (l1, refcounts) = fresh();
    // Two L2 tables in one place: a guest's write to one part would appear in another.
    put(&path, l1 + 8, &be64(&path, l1).to_be_bytes());
    damaged("share a cluster");
    fresh();
    // The L1 table as its own L2 table.
    put(&path, l1, &(l1 | 1 << 63).to_be_bytes());
    damaged("share a cluster");
    fresh();
    put(&path, refcounts + 8, &be64(&path, refcounts).to_be_bytes());
    damaged("share a cluster");
    fresh();
    put(&path, l1, &((1 << 40) | 1_u64 << 63).to_be_bytes());
    damaged("outside the file");
    fresh();
    put(&path, l1, &(be64(&path, l1) + 512).to_be_bytes());
    damaged("outside the file");
    let (_, refcounts) = fresh();
    put(
        &path,
        refcounts + 8 * 500,
        &(be64(&path, l1) & !(1 << 63)).to_be_bytes(),
    );
    damaged("share a cluster");
    fresh();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(refcounts + 8).unwrap();
    damaged("outside the file");
}

/// Used, but free by its refcount: then it would get other content.
#[test]
fn refcounts_of_zero_do_no_harm() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    let fresh = || {
        qemu::create(&path, "cluster_size=4k,preallocation=metadata", 1 << 20);
        let (l1, refcounts) = (be64(&path, 40), be64(&path, 48));
        (
            l1,
            be64(&path, l1) & 0x00ff_ffff_ffff_fe00,
            be64(&path, refcounts),
        )
    };
    let (l1, l2, _) = fresh();
    for table in [0, l1, l2] {
        let (_, _, block) = fresh();
        put(&path, block + table / 4096 * 2, &[0, 0]);
        let before = std::fs::read(&path).unwrap()[table as usize..][..512].to_vec();
        let disk = Setup::open(&Setup::new(&path)).unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        let kind = OpKind::Discard {
            offset: 512 << 10,
            len: 512 << 10,
        };
        run(&mut *queue, kind, IoBuf::new()).result.unwrap();
        let kind = OpKind::Write {
            offset: 512 << 10,
            fua: true,
        };
        let data = IoBuf::from_vec(vec![7; 512 << 10]);
        run(&mut *queue, kind, data).result.unwrap();
        drop((queue, disk));
        let after = std::fs::read(&path).unwrap()[table as usize..][..512].to_vec();
        assert!(before == after, "the table at {table:#x} was used for data");
    }
    // Of data: the guest loses what the image lost, and nothing else.
    let (_, l2, block) = fresh();
    let data = be64(&path, l2) & 0x00ff_ffff_ffff_fe00;
    put(&path, block + data / 4096 * 2, &[0; 64]);
    let disk = Setup::open(&Setup::new(&path)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    for round in 0..64_u64 {
        let kind = match round % 4 {
            0 => OpKind::Discard {
                offset: round * 4096,
                len: 4096,
            },
            _ => OpKind::Write {
                offset: round * 4096,
                fua: false,
            },
        };
        let data = if round % 4 == 0 { 0 } else { 4096 };
        let _ = run(&mut *queue, kind, IoBuf::zeroed(data)).result;
    }
    drop((queue, disk));
    let header = std::fs::read(&path).unwrap();
    assert!(header.starts_with(b"QFI\xfb"));
}

/// A compressed cluster in the header's place is let go when the guest writes it, and the header's cluster with it.
#[test]
fn a_header_that_is_given_away_stays() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    qemu::create(&path, "cluster_size=4k", 64 << 20);
    let disk = Setup::open(&Setup::new(&path)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let kind = |offset| OpKind::Write { offset, fua: true };
    let data = || IoBuf::from_vec(vec![7; 4096]);
    run(&mut *queue, kind(0), data()).result.unwrap();
    drop((queue, disk));
    let l2 = be64(&path, be64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
    put(&path, l2, &(1_u64 << 62).to_be_bytes());
    let header = std::fs::read(&path).unwrap()[..4096].to_vec();
    let disk = Setup::open(&Setup::new(&path)).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    // The first lets it go. Each of the others needs a table of its own.
    let results = (0..8).map(|index| run(&mut *queue, kind(index * (512 << 12)), data()).result);
    let refused = results.filter(Result::is_err).count();
    drop((queue, disk));
    assert!(std::fs::read(&path).unwrap()[..4096] == header);
    assert!(refused > 0);
}

/// A guest that could write the header could name a backing file for the next opening.
#[test]
fn data_never_goes_where_tables_are() {
    let directory = directory();
    let path = directory.path().join("disk.qcow2");
    qemu::create(&path, "cluster_size=4k,preallocation=metadata", 4 << 20);
    let l1 = be64(&path, 40);
    let l2 = be64(&path, l1) & 0x00ff_ffff_ffff_fe00;
    // The header, the L1 table and an L2 table as the places of guest clusters.
    for (index, place) in [0, l1, l2].into_iter().enumerate() {
        put(
            &path,
            l2 + index as u64 * 8,
            &(place | 1 << 63).to_be_bytes(),
        );
    }
    let header = std::fs::read(&path).unwrap()[..4096].to_vec();
    let disk = Setup::open(&Setup::new(&path)).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    for index in 1..3 {
        let kind = OpKind::Write {
            offset: index * 4096,
            fua: true,
        };
        assert!(
            run(&mut *queue, kind, IoBuf::from_vec(vec![7; 4096]))
                .result
                .is_err()
        );
    }
    // An offset of 0 means that there is no cluster: the write gets a new one.
    let kind = OpKind::Write {
        offset: 0,
        fua: true,
    };
    let _ = run(&mut *queue, kind, IoBuf::from_vec(vec![7; 4096])).result;
    drop((queue, disk));
    assert!(std::fs::read(&path).unwrap()[..4096] == header);
}

#[test]
fn backing_files_are_opened_by_permission_only() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let path = at("disk.qcow2");
    std::fs::write(at("base.img"), vec![5; SIZE]).unwrap();
    qemu::create(&path, "backing_file=base.img,backing_fmt=raw", SIZE);
    let deny = Setup::new(&path);
    let allow = deny.clone().backing(true);
    let message = refusal(&deny);
    assert!(
        message.contains("base.img") && message.contains("backing=allow"),
        "{message}"
    );
    let disk = Setup::open(&allow).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    assert_eq!(read(&mut *queue, 512, 512).unwrap(), [5; 512]);
    drop((queue, disk));

    let name = path.to_str().unwrap();
    for (backing, format, word) in [
        (
            "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
            "raw",
            "protocol",
        ),
        ("nbd:localhost:10809", "raw", "protocol"),
        ("file:base.img", "raw", "protocol"),
        ("missing.img", "raw", "missing.img"),
        ("base.img", "qcow2", "not a qcow2"),
        ("base.img", "vmdk", "vmdk"),
        ("disk.qcow2", "qcow2", "its own backing file"),
        ("/dev/zero", "raw", "character device"),
    ] {
        qemu::ok(&["rebase", "-q", "-u", "-b", backing, "-F", format, name]);
        let message = refusal(&allow);
        assert!(message.contains(word), "{backing}: {message}");
    }
    // Without a format: qemu-img no longer makes one, so the extension is renamed to an unknown one.
    qemu::ok(&["rebase", "-q", "-u", "-b", "base.img", "-F", "raw", name]);
    let header = std::fs::read(&path).unwrap();
    let extension = 0xe279_2aca_u32.to_be_bytes();
    let place = header
        .windows(4)
        .position(|bytes| bytes == extension)
        .unwrap();
    put(&path, place as u64, &[1, 2, 3, 4]);
    let message = refusal(&allow);
    assert!(message.contains("never guessed"), "{message}");

    // Two images, each over the other.
    let (a, b) = (at("a.qcow2"), at("b.qcow2"));
    for (image, other) in [(&a, "b.qcow2"), (&b, "a.qcow2")] {
        qemu::create(image, "cluster_size=64k", SIZE);
        qemu::ok(&[
            "rebase",
            "-q",
            "-u",
            "-b",
            other,
            "-F",
            "qcow2",
            image.to_str().unwrap(),
        ]);
    }
    let message = refusal(&Setup::new(&a).backing(true));
    assert!(message.contains("its own backing file"), "{message}");
}

#[test]
fn what_is_cut_off_gives_errors_or_zeroes() {
    let directory = directory();
    let (good, path) = (directory.path().join("good"), directory.path().join("cut"));
    qemu::create(&good, "cluster_size=4k,preallocation=metadata", SIZE);
    let content = std::fs::read(&good).unwrap();
    for len in (0..content.len()).step_by(1789) {
        std::fs::write(&path, &content[..len]).unwrap();
        if let Ok(disk) = Setup::open(&Setup::new(&path)) {
            let mut queue = disk.open_queue(1).unwrap();
            if let Ok(data) = read(&mut *queue, 0, SIZE) {
                assert!(data.iter().all(|byte| *byte == 0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any bytes in any of the tables: whatever comes of it, it ends, and the file stays small.
    #[test]
    fn anything_in_the_tables(
        damage in proptest::collection::vec((0..24_u64 << 10, any::<u64>(), 0..64_u32), 1..12),
        aligned in any::<bool>(),
    ) {
        let directory = directory();
        let path = directory.path().join("disk.qcow2");
        qemu::create(&path, "cluster_size=4k,preallocation=metadata", 256 << 10);
        for (place, value, shift) in damage {
            // Small numbers, and places inside the file, are the more interesting ones.
            let value = if aligned { (value % 128 * 4096) | (1 << 63) } else { value >> shift };
            put(&path, 112 + place / 8 * 8, &value.to_be_bytes());
        }
        if let Ok(disk) = Setup::open(&Setup::new(&path)) {
            let mut queue = disk.open_queue(8).unwrap();
            for round in 0..8_u64 {
                let offset = (round * 28) << 10;
                let len = 8192;
                for kind in [
                    OpKind::Read { offset },
                    OpKind::Write { offset, fua: round == 3 },
                    OpKind::WriteZeroes { offset: offset + 4096, len, unmap: false, fua: false },
                    OpKind::Discard { offset, len },
                    OpKind::Flush,
                ] {
                    let data = matches!(kind, OpKind::Read { .. } | OpKind::Write { .. });
                    let buf = IoBuf::zeroed(if data { 8192 } else { 0 });
                    let _ = run(&mut *queue, kind, buf).result;
                }
            }
        }
    }
}

/// A bitmap whose bits are said to be where data is: the data stays, and nobody takes the bitmap for true.
#[test]
fn a_bitmap_on_top_of_data_harms_the_data_in_no_way() {
    let directory = directory();
    let image_path = directory.path().join("disk.qcow2");
    for is_shared in [false, true] {
        qemu::create(&image_path, "cluster_size=64k", 4 << 20);
        let name = image_path.to_str().unwrap();
        qemu::ok(&["bitmap", "--add", "-g", "4k", name, "fine"]);
        qemu::ok(&["bitmap", "--add", "-g", "64k", name, "more"]);
        let disk = open(&image_path);
        write(&mut *disk.open_queue(1).unwrap(), 0, vec![7; 64 << 10]).unwrap();
        drop(disk);
        let mut bytes = std::fs::read(&image_path).unwrap();
        let be64 = |bytes: &[u8], at: u64| {
            u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap())
        };
        let offset = |word: u64| word & 0x00ff_ffff_ffff_fe00;
        let data = offset(be64(&bytes, offset(be64(&bytes, be64(&bytes, 40)))));
        assert!(bytes[data as usize..][..64 << 10] == [7; 64 << 10]);
        let magic = (bytes.windows(4)).position(|word| word == [0x23, 0x85, 0x28, 0x75]);
        let fine = be64(&bytes, magic.unwrap() as u64 + 24);
        let second = (fine + 24 + 4).next_multiple_of(8);
        let (table, other) = (be64(&bytes, fine), be64(&bytes, second));
        let place = if is_shared { be64(&bytes, other) } else { data };
        bytes[table as usize..][..8].copy_from_slice(&place.to_be_bytes());
        std::fs::write(&image_path, bytes).unwrap();
        let disk = open(&image_path);
        assert_eq!(disk.bitmaps().unwrap().is_empty(), is_shared);
        let mut queue = disk.open_queue(1).unwrap();
        for at in [0, 320 << 10] {
            write(&mut *queue, at, vec![8; 512]).unwrap();
        }
        drop(queue);
        assert!(disk.bitmap("fine").unwrap().is_none());
        drop(disk);
        if !is_shared {
            let info = qemu::run(&["info", "--output=json", name]).stdout;
            let info = String::from_utf8(info).unwrap();
            assert_eq!(info.matches("in-use").count(), 2, "{info}");
        }
        // What was given up would be used now.
        let disk = open(&image_path);
        let mut queue = disk.open_queue(1).unwrap();
        for at in (1 << 20..4 << 20).step_by(64 << 10) {
            write(&mut *queue, at, vec![9; 64 << 10]).unwrap();
        }
        let found = read(&mut *queue, 0, 64 << 10).unwrap();
        assert!(found[..512] == [8; 512] && found[512..] == vec![7; (64 << 10) - 512]);
        drop((queue, disk));
        std::fs::remove_file(&image_path).unwrap();
    }
}
